"""`sora` in a shell where pipes close early, output is closed, or the disk is full."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.sandbox import SandboxServer
from flows.record.generation import State
from tests.deployments.cli.sora import Sora
from tests.flows.conftest import StoredBlocks

NOISE = ("Traceback", "Exception ignored", "BrokenPipe", "Errno", "SystemExit")


NEW_INTERPRETER = [sys.executable, "-m", "deployments.cli"]


def run_in_shell(sora: Sora, arguments: list[str], rest: str, folder: Path) -> tuple[int, str]:
    """Runs `sora` in a shell command line.

    Args:
        sora: the command line whose environment is used.
        arguments: the arguments of `sora`.
        rest: the rest of the line: a pipe, or redirections of the output.
        folder: a new folder to run in.

    Returns:
        The exit code of `sora`, and what could be read from the line's standard error.
    """
    folder.mkdir()
    program = sora.program() if folder.name in FORKED else NEW_INTERPRETER
    line = f'exec 3>&1; {{ "$@" 3>&-; echo $? > code; }} {rest}'
    done = subprocess.run(
        ["bash", "-c", line, "-", *program, *arguments],
        cwd=folder,
        # The suite's own environment keeps Prefect's console handler silent, even with --verbose.
        env={**sora.environment, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    return int((folder / "code").read_text()), done.stderr


PAYING = {
    "stdout": "| head -1",
    "nobody-reads": "| true",
    "both": "2>&1 | head -1",
    "both-nobody-reads": "2>&1 | true",
    "stderr": "2>&1 >&3 | true",
    "closed": ">&- 2>&-",
    "full-disk": "> /dev/full 2> /dev/full",
}
"""Ways to lose the output of a command that pays."""
FORKED = ("stdout", "nobody-reads", "show", "usage")
"""Cases that lose only the result: a forked process behaves the same. Its Prefect log is silenced as in the suite."""
DEFAULT_CASES = ("nobody-reads", "both", "full-disk")
"""The other cases behave like these: partly read output like the first two, closed output like the full disk."""


@pytest.mark.parametrize(
    "names", [DEFAULT_CASES, pytest.param(tuple(PAYING), marks=pytest.mark.attack)], ids=["some", "all"]
)
async def test_video_is_paid_once_and_archived_when_output_is_lost(
    names: tuple[str, ...], sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    slots = asyncio.Semaphore(os.cpu_count() or 1)

    async def attack(name: str, rest: str) -> None:
        command = ["generate", f"A kite, {name}", "--key", f"{key}-{name}", "-v", *blocks]
        async with slots:
            code, err = await asyncio.to_thread(run_in_shell, sora, command, rest, sora.folder / name)
        assert code == 0, (name, err)
        assert not [word for word in NOISE if word in err], (name, err)
        generation = await stored.recorded(f"{key}-{name}")
        assert generation is not None, name
        assert generation.state is State.ARCHIVED, name

    await asyncio.gather(*(attack(name, PAYING[name]) for name in names))
    paid = sorted(json.loads(item.body)["input"]["prompt"] for item in sandbox.record.submits())
    assert paid == sorted(f"A kite, {name}" for name in names)


async def test_lists_and_help_end_quietly_when_output_is_not_read(sora: Sora, stored: StoredBlocks) -> None:
    lines = {
        "help": (["--help"], "| head -1"),
        "help-unread": (["--help"], "| true"),
        "help-closed": (["--help"], ">&-"),
        "help-full": (["--help"], "> /dev/full"),
        "list": (["list", "--archive", stored.name], "2>&1 | true"),
        "show": (["show", "never-heard-of", "--archive", stored.name], "2>&1 | true"),
        "usage": (["generate"], "2>&1 | true"),
    }
    ended = await asyncio.gather(
        *(asyncio.to_thread(run_in_shell, sora, *line, sora.folder / name) for name, line in lines.items())
    )
    codes = dict.fromkeys(lines, 0) | {"show": 1, "usage": 2}
    assert dict(zip(lines, ended, strict=True)) == {name: (code, "") for name, code in codes.items()}
