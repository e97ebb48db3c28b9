"""`sora` in a shell whose pipes close early, whose output goes nowhere, or whose disk is full."""

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


REAL = [sys.executable, "-m", "deployments.cli"]


def in_a_shell(sora: Sora, arguments: list[str], rest: str, folder: Path) -> tuple[int, str]:
    """Runs `sora` in a line of a shell.

    Args:
        sora: whose environment it gets.
        arguments: of the command.
        rest: what the shell does with its output.
        folder: a new one, to run in.

    Returns:
        Its exit code, and what could be read of the standard error of the line.
    """
    folder.mkdir()
    program = sora.program() if folder.name in FORKED else REAL
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
"""What happens to the output of a command that pays."""
FORKED = ("stdout", "nobody-reads", "show", "usage")
"""Where only the result is not read, a fork shows the same. It has Prefect's log as silent as the suite has."""
IN_THE_SUITE = ("nobody-reads", "both", "full-disk")
"""Output that is read for a line, or errors that nobody reads, end as the first two do; a closed one as a full disk."""


@pytest.mark.parametrize(
    "names", [IN_THE_SUITE, pytest.param(tuple(PAYING), marks=pytest.mark.attack)], ids=["some", "all"]
)
async def test_whatever_becomes_of_its_output_a_video_is_paid_once_and_archived(
    names: tuple[str, ...], sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    at_once = asyncio.Semaphore(os.cpu_count() or 1)

    async def attack(name: str, rest: str) -> None:
        order = ["generate", f"A kite, {name}", "--key", f"{key}-{name}", "-v", *blocks]
        async with at_once:
            code, err = await asyncio.to_thread(in_a_shell, sora, order, rest, sora.folder / name)
        assert code == 0, (name, err)
        assert not [word for word in NOISE if word in err], (name, err)
        made = await stored.recorded(f"{key}-{name}")
        assert made is not None, name
        assert made.state is State.ARCHIVED, name

    await asyncio.gather(*(attack(name, PAYING[name]) for name in names))
    paid = sorted(json.loads(item.body)["input"]["prompt"] for item in sandbox.record.submits())
    assert paid == sorted(f"A kite, {name}" for name in names)


async def test_lists_and_help_end_quietly_where_nobody_reads_on(sora: Sora, stored: StoredBlocks) -> None:
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
        *(asyncio.to_thread(in_a_shell, sora, *line, sora.folder / name) for name, line in lines.items())
    )
    codes = dict.fromkeys(lines, 0) | {"show": 1, "usage": 2}
    assert dict(zip(lines, ended, strict=True)) == {name: (code, "") for name, code in codes.items()}
