"""A run that failed in any step is rerun with the UI's Retry button. The provider receives one paid call."""

from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient

from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import State
from tests.e2e.conftest import Runs, retry, wait_for_end
from tests.flows.conftest import store_blocks
from tests.support import make_api, make_archive
from tests.support.store_gate import StoreGate, nothing


@pytest.mark.parametrize(
    "step",
    [
        "archive",
        *(pytest.param(step, marks=pytest.mark.attack) for step in ("validate_image", "submit", "wait", "fetch")),
    ],
)
async def test_rerun_after_failed_step_archives_and_pays_once(
    step: str,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect: PrefectClient,
    start_quick_run: Runs,
    key: str,
) -> None:
    with StoreGate(minio.endpoint) as gate:
        stored = await store_blocks(make_api(sandbox), make_archive(minio, endpoint=gate.endpoint))
        request: dict[str, Any] = {"prompt": f"fails in {step}"}
        match step:
            case "validate_image":
                request["image_urls"] = [f"{sandbox.base_url}/samples/harbor.jpg"]
                sandbox.faults.add(Fault(call="image", kind="http_404"))
            case "submit":  # never connected: nothing is sent
                stored.api.base_url = "http://127.0.0.1:9"
                await stored.api.save(stored.name, overwrite=True)
            case "wait":
                sandbox.faults.add(Fault(call="status", kind="http_401"))
            case "fetch":
                sandbox.faults.add(Fault(call="result", kind="http_404", times=2))  # polled again once
            case "archive":
                gate.shut = lambda data: data.startswith(b"PUT ") and b"/videos/" in data.split(b"\r\n", 1)[0]
        run = await start_quick_run(request=request, key=key, api=stored.name, archive=stored.name)
        failed = await wait_for_end(prefect, run.id)
        assert failed.is_failed(), failed
        left = await stored.recorded(key)
        assert left is None or left.state is not State.ARCHIVED

        gate.shut = nothing
        stored.api.base_url = sandbox.base_url
        await stored.api.save(stored.name, overwrite=True)
        rerun = await retry(prefect, run.id, failed)
        assert rerun.is_completed(), rerun
        archived = await stored.existing(key)
    assert archived.state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("force", [False, pytest.param(True, marks=pytest.mark.attack)], ids=["classic UI", "new UI"])
async def test_user_rerun_of_failed_video_pays_for_new_attempt(
    force: bool,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect: PrefectClient,
    start_quick_run: Runs,
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox), make_archive(minio))
    sandbox.faults.add(Fault(call="status", kind="failed"))
    parameters = {"request": {"prompt": "unlucky"}, "key": key, "api": stored.name, "archive": stored.name}
    run = await start_quick_run(**parameters)
    failed = await wait_for_end(prefect, run.id)
    assert "SOMETHING_NEW" in (failed.message or "")

    duplicate = await wait_for_end(prefect, (await start_quick_run(**parameters)).id)  # the same event delivered twice
    assert duplicate.is_failed()
    assert len(sandbox.record.submits()) == 1

    rerun = await retry(prefect, run.id, failed, force=force)
    assert rerun.is_completed(), rerun
    assert len(sandbox.record.submits()) == 2
    archived = await stored.existing(key)
    assert [attempt.state for attempt in archived.attempts] == [State.FAILED, State.ARCHIVED]
