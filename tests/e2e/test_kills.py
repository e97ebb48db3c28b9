"""kill -9 at the worst moment: the provider has accepted the request, and its reply was never stored."""

import asyncio
import os
import signal

import pytest
from prefect.client.orchestration import PrefectClient

from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import State
from tests.e2e.conftest import ROOT, RUN_SECONDS, Runs, retry, wait_for_end
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.flows.generations import charged
from tests.support import make_api, make_archive
from tests.support.fork_server import ForkServer


async def kill_during_paid_call(
    with_signal: signal.Signals, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> int:
    """Kills the run's process once APIXO has accepted its request. Returns the id of the process."""
    await charged(sandbox, seconds=RUN_SECONDS)
    claimed = await stored.existing(key)
    assert claimed.state is State.CLAIMED
    pid = claimed.attempt.claimed_by.pid
    os.kill(pid, with_signal)
    return pid


@pytest.mark.parametrize("resolution", ["task_id", pytest.param("resubmit", marks=pytest.mark.attack)])
async def test_rerun_after_kill_during_paid_call_does_not_pay_and_resolve_archives_video(
    resolution: str,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
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
    pid = await kill_during_paid_call(signal.SIGKILL, stored, sandbox, key)
    (paid,) = sandbox.record.charged()

    crashed = await wait_for_end(prefect, run.id)
    await asyncio.sleep(1)
    rerun = await retry(prefect, run.id, crashed)
    if rerun.is_crashed():  # Prefect reports a killed process a second time, over the retry
        rerun = await retry(prefect, run.id, rerun)
    assert rerun.is_failed(), rerun
    reported = rerun.message or ""
    assert key in reported
    assert str(pid) in reported
    assert f"sora resolve {key} --task-id" in reported
    assert f"sora resolve {key} --resubmit" in reported
    assert len(sandbox.record.submits()) == 1

    options = ["--task-id", paid.task_id or ""] if resolution == "task_id" else ["--resubmit", "--yes"]
    command = ["resolve", key, *options, "--api", stored.name, "--archive", stored.name]
    resolving = forks.start(command, client_environment, ROOT)
    output = await asyncio.to_thread(resolving.communicate, RUN_SECONDS)
    assert resolving.returncode == 0, output
    archived = await stored.existing(key)
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
    # As for a canceled run, a stopped worker, an evicted pod.
    await kill_during_paid_call(signal.SIGTERM, stored, sandbox, key)
    assert not (await wait_for_end(prefect, run.id)).is_completed()
    left = await stored.existing(key)
    assert left.state is State.SUBMITTED
    assert left.task_id == sandbox.record.charged()[0].task_id
