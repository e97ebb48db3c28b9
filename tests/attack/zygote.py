"""Forks a child for each job: importing Prefect takes seconds, forking takes milliseconds.

Run as a program, it reads one `Order` per line from stdin, forks, and writes one `Ended` per line to stdout. It has no
event loop and no other threads, so its children start without them. It does not open a store either: in a child of a
process that has used obstore, every call would hang. The tests use `Zygote`.
"""

import asyncio
import contextlib
import importlib
import json
import os
import select
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from PIL import Image
from pydantic import BaseModel

from tests.attack.jobs import Child, run_child

PRELOADED: Final = (
    "anyio._backends._asyncio",
    "av.subtitles.stream",
    "encodings.idna",
    "fastapi",
    "numpy",
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect.telemetry.run_telemetry",
    "prefect.utilities.visualization",
)
"""What a flow run imports late. Otherwise each child would import it again, for 0.3 s of processor time."""
ROOT: Final = Path(__file__).parent.parent.parent
POLL_SECONDS: Final = 0.02
JOB_SECONDS: Final = 90.0
"""The time limit for a job. A flow run takes 1 to 3 s, and longer if a lease must expire or the machine is busy."""


class Order(BaseModel):
    """Starts this child under this number."""

    number: int
    child: Child
    log: Path


class Ended(BaseModel):
    """How a child ended: its exit code, or minus the signal that killed it."""

    number: int
    code: int


class Zygote:
    """The forking process, and the results of its children."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment, self._folder = environment, folder
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ends: dict[int, asyncio.Future[int]] = {}

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "zygote.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.attack.zygote", cwd=ROOT, env=self._environment,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
            )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()  # it then kills its children and exits
        await asyncio.wait_for(self._process.wait(), 10)
        if self._reading is not None:
            await self._reading

    async def run(self, child: Child) -> int:
        """Runs a child until it ends. Returns its exit code, or minus the signal that killed it."""
        assert self._process is not None
        assert self._process.stdin is not None
        number = len(self._ends)
        self._ends[number] = ended = asyncio.get_running_loop().create_future()
        order = Order(number=number, child=child, log=self._folder / f"child-{number}.log")
        self._process.stdin.write(order.model_dump_json().encode() + b"\n")
        return await asyncio.wait_for(ended, JOB_SECONDS)

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            ended = Ended.model_validate_json(line)
            self._ends[ended.number].set_result(ended.code)
        for end in self._ends.values():
            if not end.done():
                end.set_exception(RuntimeError(f"the zygote has ended; see {self._folder}/zygote.log"))


def main() -> None:
    """Forks until stdin ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    Image.preinit()
    running: dict[int, int] = {}
    buffer = b""
    while True:
        if select.select([0], [], [], POLL_SECONDS)[0]:
            piece = os.read(0, 1_048_576)
            if not piece:
                break
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                order = Order.model_validate(json.loads(line))
                running[_fork(order)] = order.number
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended = Ended(number=running.pop(pid), code=os.waitstatus_to_exitcode(status))
            os.write(1, ended.model_dump_json().encode() + b"\n")
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)


def _fork(order: Order) -> int:
    assert threading.active_count() == 1
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(order.log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = run_child(order.child)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
