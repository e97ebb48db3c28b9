"""Fifty videos in one `sora batch`, which runs in its own process and is disrupted. If it takes too long, it hangs."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.sandbox import SandboxServer
from flows.record.generation import Generation, State
from tests.e2e.running import ROOT
from tests.flows.conftest import StoredBlocks
from tests.support import make_api
from tests.support.waiting import until

ROWS = 50
TIME_LIMIT_SECONDS = 240.0
"""Longer than any outage here with its retries and the work itself. A run that takes longer counts as hung."""


@dataclass
class Commands:
    """Runs `sora` with the blocks of one test."""

    stored: StoredBlocks
    environment: dict[str, str]
    folder: Path
    prefix: tuple[str, ...] = ()
    program: tuple[str, ...] = (sys.executable, "-m", "deployments.cli")

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.prefix, *self.program, *arguments, "--api", self.stored.name, "--archive", self.stored.name,
            cwd=self.folder, env=self.environment | {"PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def end(self, process: asyncio.subprocess.Process) -> tuple[int, str]:
        """Exit code and output, within the time limit."""
        out, _ = await asyncio.wait_for(process.communicate(), TIME_LIMIT_SECONDS)
        return process.returncode or 0, out.decode()

    async def recorded(self, key: str) -> Generation | None:
        return await self.stored.recorded(key)


def realistic_api(sandbox: SandboxServer, **changed: Any) -> Any:
    """The block as a user has it, except for the speed of the sandbox. The delays between retries are the defaults."""
    fields = {"initial_wait_seconds": 3, "poll_interval_seconds": 0.5, "deadline_seconds": 150} | changed
    return make_api(sandbox, **({"submit_timeout_seconds": 5, "retry_delay_seconds": 2} | fields))


Disrupt = Callable[[asyncio.subprocess.Process], Awaitable[None]]
"""What happens to the batch, or to something that it needs. It gets the process of the batch."""


async def run_disrupted_batch(
    commands: Commands, sandbox: SandboxServer, key: str, disrupt: Disrupt, *, then: Commands | None = None
) -> int:
    """Starts fifty videos, disrupts them halfway, and runs the batch again if needed, optionally with other commands.

    Returns:
        The exit code of the last run.
    """
    calendar = commands.folder / "fifty.csv"
    calendar.write_text("id,prompt\n" + "".join(f"{number:02},The same video\n" for number in range(ROWS)))
    command = ("batch", str(calendar), "--key", key, "--submissions-per-second", "10")
    running = await commands.start(*command)

    async def half() -> bool:
        return len(sandbox.record.charged()) >= ROWS // 2

    try:
        await until(half, what="half of the submissions", pause=0.05)
        await disrupt(running)
        code, output = await commands.end(running)
    finally:
        if running.returncode is None:
            running.kill()
    archived = sum(key in line and " archived " in line for line in output.splitlines())
    print(f"\ndisrupted: exit code {code}, {archived} lines archived, {len(sandbox.record.charged())} paid")
    if code:
        code, output = await (then or commands).end(await (then or commands).start(*command))
        print(f"one more run: exit code {code}, {len(sandbox.record.charged())} paid")
    return code


async def states_of(commands: Commands, key: str) -> dict[str, State]:
    """The state of each of the fifty records."""
    found = [await commands.recorded(f"{key}-{number:02}") for number in range(ROWS)]
    assert None not in found
    return {item.key: item.state for item in found if item is not None}


async def assert_all_archived(commands: Commands, sandbox: SandboxServer, key: str) -> None:
    """All are archived, and each was paid for once."""
    assert set((await states_of(commands, key)).values()) == {State.ARCHIVED}
    assert len(sandbox.record.charged()) == ROWS


async def resubmit_unconfirmed(commands: Commands, sandbox: SandboxServer, key: str) -> None:
    """Resubmits what is unconfirmed, as a user does who has seen in their account that it was not charged."""
    states = await states_of(commands, key)
    unclear = [name for name, state in states.items() if state is State.UNCONFIRMED]
    assert set(states.values()) <= {State.ARCHIVED, State.UNCONFIRMED}
    assert len(sandbox.record.charged()) == ROWS - len(unclear)
    print(f"{ROWS - len(unclear)} archived and paid, {len(unclear)} unconfirmed")
    for name in unclear:
        code, output = await commands.end(await commands.start("resolve", name, "--resubmit", "--yes"))
        assert code == 0, output
    await assert_all_archived(commands, sandbox, key)
