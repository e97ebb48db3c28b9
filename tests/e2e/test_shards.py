"""Batches split into shards: real workers, a real Prefect server, and each run in its own process."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
)
from prefect.client.schemas.objects import FlowRun

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.local.processes import ManagedProcess
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from flows.batch.shares import FOLDER
from flows.batch.summary import BatchFailedError, BatchSummary
from flows.generate_batch import generate_batch
from flows.record.generation import Generation
from flows.record.ledger import Ledger
from tests.e2e.conftest import retry, wait_for_end
from tests.e2e.stack import fork_runs
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api
from tests.support.fork_server import ForkServer
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def shards_deployed(deployment: str, client_environment: dict[str, str], forks: ForkServer) -> None:
    fork_runs(client_environment["PREFECT_API_URL"], forks, lambda name: name in ("generate-batch", "generate-shard"))


@pytest.fixture(scope="module")
def workers(
    shards_deployed: None, worker: ManagedProcess, start_worker: Callable[[], ManagedProcess]
) -> Iterator[None]:
    """Two workers, as on two machines."""
    second = start_worker()
    yield
    second.stop()


@pytest.fixture
def sandbox(video_folder: Path) -> Iterator[SandboxServer]:
    """Each video takes 4 to 8 s, so all are in progress when something dies."""
    with SandboxServer(SandboxSettings(speed=30, video_height=90, data_dir=video_folder)) as server:
        yield server


@pytest.fixture
async def stored(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    api = make_api(
        sandbox, price_per_second=1, submit_timeout_seconds=20, deadline_seconds=120, poll_interval_seconds=0.5
    )
    return await store_blocks(api, archive)


def make_rows(count: int, **fields: object) -> list[dict[str, Any]]:
    return [{"id": f"{number:02}", "prompt": "Dunes at dawn"} | fields for number in range(count)]


async def run(stored: StoredBlocks, key: str, **parameters: Any) -> BatchSummary:
    """Like `sora batch`: the run of the batch is in this process, its shards are on the workers."""
    summary = await generate_batch(
        key=key, api=stored.name, archive=stored.name, **({"submissions_per_second": 50} | parameters)
    )
    assert isinstance(summary, BatchSummary)
    return summary


async def records(stored: StoredBlocks, key: str, count: int) -> list[Generation]:
    async with aclosing(stored.archive.store()) as store:
        found = await Ledger(store).read_all([f"{key}-{number:02}" for number in range(count)])
    return list(found.values())


async def left_over(stored: StoredBlocks) -> list[str]:
    async with aclosing(stored.archive.store()) as store:
        return [*await store.names(FOLDER), *await store.names("open/")]


async def children(prefect: PrefectClient, parent: UUID) -> list[FlowRun]:
    wanted = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[parent]))
    return await prefect.read_flow_runs(flow_run_filter=wanted)


async def shard_of(prefect: PrefectClient, stored: StoredBlocks, key: str, count: int) -> tuple[int, UUID]:
    """The process and the run of a shard that has submitted something."""

    async def submitted() -> Generation | None:
        found = [item for item in await records(stored, key, count) if item.state == "submitted"]
        return found[0] if found else None

    owner = (await until(submitted, what="a submission of a shard")).attempt.claimed_by
    return owner.pid, UUID(str(owner.flow_run_id))


async def kill_between_payments(pid: int, stored: StoredBlocks, key: str, count: int) -> None:
    """Kills a shard while it is not waiting for the reply to a paid call, which would rightly become unconfirmed."""
    async with asyncio.timeout(60):
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.3)  # a claim that it has just sent is in the store by then
            claimed = [item for item in await records(stored, key, count) if item.state == "claimed"]
            if not any(item.attempt.claimed_by.pid == pid for item in claimed):
                return os.kill(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.1)


async def test_shards_on_two_workers_generate_each_video_once_when_one_is_killed(
    stored: StoredBlocks, sandbox: SandboxServer, workers: None, key: str, prefect: PrefectClient
) -> None:
    batch = asyncio.create_task(run(stored, key, requests=make_rows(6), shards=2))
    pid, _ = await shard_of(prefect, stored, key, 6)
    await kill_between_payments(pid, stored, key, 6)
    summary = await batch
    assert summary.counts == {"archived": 6}
    assert [row.line for row in summary.rows] == list(range(1, 7))
    assert summary.price == 6 * 4
    assert summary.spent_before == 0
    assert len(sandbox.record.submits()) == 6
    found = await records(stored, key, 6)
    assert len({item.attempt.claimed_by.flow_run_id for item in found}) >= 2
    assert await left_over(stored) == []
    rerun = await run(stored, key, requests=make_rows(6), shards=2)
    assert rerun.price == 0
    assert rerun.spent_before == 24
    assert len(sandbox.record.submits()) == 6


# In `make test`, a failed parent is rerun (below), and a shard is killed (above).
@pytest.mark.attack  # waits for what Prefect does by itself after a kill
async def test_killed_parent_resumes_same_shards_after_retry(
    stored: StoredBlocks,
    sandbox: SandboxServer,
    workers: None,
    key: str,
    prefect: PrefectClient,
) -> None:
    found = await prefect.read_deployment_by_name("generate-batch/generate-batch")
    parameters = {"requests": make_rows(6), "key": key, "shards": 2, "api": stored.name, "archive": stored.name}
    parent = await prefect.create_flow_run_from_deployment(found.id, parameters=parameters)

    async def both() -> list[FlowRun]:
        found = await children(prefect, parent.id)
        return found if len(found) == 2 else []

    before = await until(both, what="two shards")
    await shard_of(prefect, stored, key, 6)
    where = (await prefect.read_flow_run(parent.id)).infrastructure_pid
    assert where is not None
    parent_pid = int(where.rpartition(":")[2])
    os.kill(parent_pid, signal.SIGKILL)
    assert (await wait_for_end(prefect, parent.id)).is_crashed()
    await asyncio.sleep(15)  # Prefect's worker reports the crash a second time, and would overwrite a retry before that
    rerun = await retry(prefect, parent.id, await wait_for_end(prefect, parent.id))
    assert rerun.is_completed(), rerun.message
    assert {run.id for run in await children(prefect, parent.id)} == {run.id for run in before}
    assert len(sandbox.record.submits()) == 6


@pytest.mark.attack  # takes half a minute
async def test_max_spend_applies_to_all_shards_together(
    stored: StoredBlocks, sandbox: SandboxServer, workers: None, key: str
) -> None:
    with pytest.raises(BatchFailedError) as caught:
        await run(stored, key, requests=make_rows(6), shards=2, max_spend=17)
    summary = caught.value.summary
    assert summary.counts == {"archived": 4, "not submitted": 2}
    assert [row.state for row in summary.rows][-2:] == ["not submitted"] * 2
    assert "max_spend is 17" in summary.rows[-1].problem
    assert summary.price == 16
    assert len(sandbox.record.submits()) == 4


@pytest.mark.attack  # takes half a minute
async def test_account_rejection_in_one_shard_stops_the_others(
    stored: StoredBlocks, sandbox: SandboxServer, workers: None, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_402", skip=1, times=-1))
    with pytest.raises(BatchFailedError) as caught:
        await run(stored, key, requests=make_rows(40), shards=2, submissions_per_second=2)
    assert caught.value.summary.blocked is not None
    # Each shard submits one per second, and learns of the other's rejection within 4 s.
    assert len(sandbox.record.submits()) < 12


@pytest.mark.attack
async def test_shards_together_stay_within_both_provider_limits(
    archive: VideoArchive, video_folder: Path, workers: None, key: str, prefect_server: PrefectServer
) -> None:
    settings = SandboxSettings(speed=30, video_height=90, data_dir=video_folder, max_concurrent_tasks=6)
    with SandboxServer(settings) as sandbox:
        api = make_api(sandbox, submit_timeout_seconds=20, deadline_seconds=200, max_in_flight=6)
        api.requests_per_minute = 600
        stored = await store_blocks(api, archive)
        summary = await run(stored, key, requests=make_rows(24), shards=2)
        submits = len(sandbox.record.submits())
        stamps = sorted(item.time for item in sandbox.record.all() if item.call in ("submit", "status"))
    assert summary.counts == {"archived": 24}
    assert submits == 24  # one more for each 429
    densest = max(sum(start <= stamp < start + 5 for stamp in stamps) for start in stamps)
    print(f"\nat most {densest} requests in 5 s; 600 a minute are 50")
    assert densest <= 50 + 10  # one second's worth at the start of the window


@pytest.mark.attack  # takes half a minute
async def test_user_rerun_of_batch_pays_for_failed_videos_again_in_new_shards(
    stored: StoredBlocks,
    sandbox: SandboxServer,
    workers: None,
    key: str,
    prefect: PrefectClient,
) -> None:
    sandbox.faults.add(Fault(call="status", kind="failed"))
    found = await prefect.read_deployment_by_name("generate-batch/generate-batch")
    parameters = {"requests": make_rows(4), "key": key, "shards": 2, "api": stored.name, "archive": stored.name}
    parent = await prefect.create_flow_run_from_deployment(found.id, parameters=parameters)
    failed = await wait_for_end(prefect, parent.id)
    assert failed.is_failed()
    assert len(sandbox.record.submits()) == 4
    before = await children(prefect, parent.id)
    rerun = await retry(prefect, parent.id, failed)
    assert rerun.is_completed(), rerun.message
    assert len(sandbox.record.submits()) == 5
    assert len(await children(prefect, parent.id)) == len(before) + 2
