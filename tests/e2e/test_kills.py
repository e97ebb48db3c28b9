"""kill -9 at the worst moment: the provider has accepted the request, and its reply was never stored."""

import asyncio
import os
import signal

import anyio
import pytest
from prefect.client.orchestration import PrefectClient

from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import State
from tests.e2e.conftest import ROOT, RUN_SECONDS, Runs, retry, wait_for_end
from tests.flows.conftest import store_blocks
from tests.support import make_api, make_archive
from tests.support.fork_server import ForkServer


@pytest.mark.parametrize("resolution", ["task_id", pytest.param("resubmit", marks=pytest.mark.attack)])
async def test_rerun_after_kill_during_paid_call_does_not_pay_and_resolve_archives_video(
    resolution: str,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    prefect: PrefectClient,
    start_quick_run: Runs,
    forks: ForkServer,
    client_environment: dict[str, str],
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=3), make_archive(minio))
    sandbox.faults.add(Fault(call="submit", kind="hang_after", seconds=60))
    run = await start_quick_run(
        request={"prompt": "killed at the worst moment"}, key=key, api=stored.name, archive=stored.name
    )
    with anyio.fail_after(RUN_SECONDS):
        while not sandbox.record.charged():
            await asyncio.sleep(0.05)
    claimed = await stored.recorded(key)
    assert claimed is not None
    assert claimed.state is State.CLAIMED
    os.kill(claimed.attempt.claimed_by.pid, signal.SIGKILL)
    (paid,) = sandbox.record.charged()

    crashed = await wait_for_end(prefect, run.id)
    assert crashed.state is not None
    await asyncio.sleep(1)
    await retry(prefect_server, crashed)
    rerun = await wait_for_end(prefect, run.id, than=crashed.state.id)
    assert rerun.state is not None
    if rerun.state.is_crashed():  # Prefect reports a killed process a second time, over the retry
        await retry(prefect_server, rerun)
        rerun = await wait_for_end(prefect, run.id, than=rerun.state.id)
    assert rerun.state is not None
    assert rerun.state.is_failed(), rerun.state
    reported = rerun.state.message or ""
    assert key in reported
    assert str(claimed.attempt.claimed_by.pid) in reported
    assert f"sora resolve {key} --task-id" in reported
    assert f"sora resolve {key} --resubmit" in reported
    assert len(sandbox.record.submits()) == 1

    options = ["--task-id", paid.task_id or ""] if resolution == "task_id" else ["--resubmit", "--yes"]
    command = ["resolve", key, *options, "--api", stored.name, "--archive", stored.name]
    resolving = forks.start(command, client_environment, ROOT)
    output = await asyncio.to_thread(resolving.communicate, RUN_SECONDS)
    assert resolving.returncode == 0, output
    archived = await stored.recorded(key)
    assert archived is not None
    assert archived.state is State.ARCHIVED
    assert len(sandbox.record.submits()) == (1 if resolution == "task_id" else 2)
    if resolution == "task_id":
        assert archived.task_id == paid.task_id


async def test_sigterm_during_paid_call_still_records_reply(
    sandbox: SandboxServer, minio: ObjectStoreServer, prefect: PrefectClient, start_run: Runs, key: str
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=20), make_archive(minio))
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=3))
    run = await start_run(request={"prompt": "ended politely"}, key=key, api=stored.name, archive=stored.name)
    with anyio.fail_after(RUN_SECONDS):
        while not sandbox.record.charged():
            await asyncio.sleep(0.05)
    claimed = await stored.recorded(key)
    assert claimed is not None
    assert claimed.state is State.CLAIMED
    os.kill(claimed.attempt.claimed_by.pid, signal.SIGTERM)  # as for a canceled run, a stopped worker, an evicted pod
    crashed = await wait_for_end(prefect, run.id)
    assert crashed.state is not None
    assert not crashed.state.is_completed()
    left = await stored.recorded(key)
    assert left is not None
    assert left.state is State.SUBMITTED
    assert left.task_id == sandbox.record.charged()[0].task_id
