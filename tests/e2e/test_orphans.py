"""A worker is killed while its run pays for a batch: the run continues, but nothing reads its output any more."""

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate

from deployments.local.processes import ManagedProcess
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.generate_batch import generate_batch
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from tests.e2e.conftest import ROOT
from tests.e2e.running import descendants
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, make_archive, unique
from tests.support.receiver import receiving
from tests.support.waiting import until

ROWS = 12
PAID_BEFORE_THE_KILL = 3
"""The worker is killed when this many rows are paid. The others are still to be paid, or being paid."""
ENDS_WITHIN_SECONDS = 120.0

StartBatch = Callable[..., Awaitable[UUID]]


@pytest.fixture
async def worker(
    prefect: PrefectClient, client_environment: dict[str, str], tmp_path: Path
) -> AsyncIterator[tuple[ManagedProcess, StartBatch]]:
    """A worker with its own pool, and a function that starts a run of `generate-batch` there.

    Prefect's process worker reads the output of its runs through pipes, so they break when it is killed.
    """
    pool = unique("orphans")
    await prefect.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    flow_id = await prefect.create_flow(generate_batch)
    deployment_id = await prefect.create_deployment(
        flow_id,
        pool,
        entrypoint="flows/generate_batch.py:generate_batch",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
        work_pool_name=pool,
    )

    async def start(**parameters: Any) -> UUID:
        return (await prefect.create_flow_run_from_deployment(deployment_id, parameters=parameters)).id

    process = ManagedProcess(
        [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
        name="worker",
        log_path=tmp_path / "worker.log",
        # The suite's own environment keeps Prefect's console handler silent.
        environment={**client_environment, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "DEBUG"},
        cwd=ROOT,
    )
    yield process, start
    process.stop()


@asynccontextmanager
async def saved_blocks(mode: str, sandbox: SandboxServer, minio: ObjectStoreServer) -> AsyncIterator[StoredBlocks]:
    """The blocks of one mode. In callback mode, a receiver is running."""
    api, archive = make_api(sandbox, submit_timeout_seconds=20), make_archive(minio)
    async with AsyncExitStack() as stack:
        if mode == "callback":
            api = (await stack.enter_async_context(receiving(api, archive))).api
        yield await store_blocks(api, archive)


async def recorded(stored: StoredBlocks, keys: list[str]) -> list[Generation | None]:
    """The record of each key; None: there is none."""
    async with aclosing(stored.archive.store()) as store:
        found = await Ledger(store).read_all(keys)
    return [found.get(key) for key in keys]


def is_running(pid: int) -> bool:
    """Whether a process that is not our child is still running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# `make test` covers the parts: `test_kills.py` kills a run, `tests/deployments/cli/test_output.py` closes a pipe.
@pytest.mark.attack
@pytest.mark.parametrize("mode", ["polling", "callback"])
async def test_orphaned_run_pays_each_row_once_and_records_every_payment(
    mode: str,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    worker: tuple[ManagedProcess, StartBatch],
    key: str,
) -> None:
    process, start = worker
    sandbox.faults.add(
        Fault(call="submit", kind="slow", seconds=1, times=-1)
    )  # charged at once, answered a second later
    rows = [{"id": f"row-{number}", "prompt": f"Row {number} of an orphan"} for number in range(ROWS)]
    keys = [f"{key}-{row['id']}" for row in rows]
    async with saved_blocks(mode, sandbox, minio) as stored:
        parameters: dict[str, Any] = {"requests": rows, "key": key, "api": stored.name, "archive": stored.name}
        await start(**parameters)

        async def paying() -> int | None:
            """The process that pays."""
            if len(sandbox.record.charged()) < PAID_BEFORE_THE_KILL:
                return None
            claims = [item for item in await recorded(stored, keys) if item is not None]
            return claims[0].attempt.claimed_by.pid

        orphan = await until(paying, what="a batch that pays", pause=0.05)
        worker_pid = descendants(process.pid)[0]
        assert orphan in descendants(worker_pid)
        os.kill(worker_pid, signal.SIGKILL)
        before = len(sandbox.record.charged())
        assert before < ROWS
        try:

            async def ended() -> bool:
                return not is_running(orphan)

            await until(ended, what="the end of the orphan", seconds=ENDS_WITHIN_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.kill(orphan, signal.SIGKILL)

        left = [item for item in await recorded(stored, keys) if item is not None]
        written = {attempt.task_id for item in left for attempt in item.attempts}
        posts = Counter(item.body for item in sandbox.record.submits())
        assert set(posts.values()) == {1}
        assert {item.task_id for item in sandbox.record.charged()} <= written
        assert not [item.key for item in left if item.state in (State.CLAIMED, State.UNCONFIRMED)]

        sandbox.faults.clear()
        await asyncio.wait_for(generate_batch(**parameters), 150)
        assert {item.state for item in await recorded(stored, keys) if item is not None} == {State.ARCHIVED}
        assert len(sandbox.record.submits()) == len(sandbox.record.charged()) == ROWS
