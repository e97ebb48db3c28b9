"""What the doctor says of the Prefect server's side."""

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from deployments.local.prefect_server import PrefectServer
from deployments.setup import doctor
from flows.checks import Finding
from tests.support import unique


async def _worker() -> Finding:
    (found,) = [finding for finding in await doctor.check_server() if finding.name == "worker"]
    return found


async def test_a_pool_is_missing_then_has_no_worker_then_has_one(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = unique("doctor")
    monkeypatch.setattr(doctor, "POOL", pool)
    missing = await _worker()
    assert missing.outcome == "warning"
    assert f"There is no work pool '{pool}'" in missing.detail
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        idle = await _worker()
        assert idle.outcome == "warning"
        assert f"prefect worker start --pool {pool}" in idle.detail
        await client.send_worker_heartbeat(pool, "one", heartbeat_interval_seconds=30)
    assert (await _worker()).outcome == "ok"
