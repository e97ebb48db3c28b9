"""What the doctor says of the Prefect server's side."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Pending, Scheduled

from deployments.local.prefect_server import PrefectServer
from deployments.setup import server_checks
from flows.check_setup import check_setup
from flows.checks import Finding, this_code
from tests.flows.conftest import StoredBlocks
from tests.support import unique
from tests.support.store_gate import StoreGate


async def _worker() -> Finding:
    (found,) = [finding for finding in await server_checks.check_server() if finding.name == "worker"]
    return found


async def test_a_pool_is_missing_then_has_no_worker_then_has_one(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = unique("doctor")
    monkeypatch.setattr(server_checks, "POOL", pool)
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


async def test_a_proxy_that_passes_no_events_on_is_found(prefect_server: PrefectServer) -> None:
    async def found() -> Finding:
        (one,) = [finding for finding in await server_checks.check_server() if finding.name == "events"]
        return one

    proxy = StoreGate(prefect_server.url.removeprefix("http://"))
    with proxy, temporary_settings({PREFECT_API_URL: f"http://{proxy.endpoint}/api"}):
        assert (await found()).outcome == "ok"
        proxy.shut = lambda data: b"upgrade: websocket" in data.lower()
        blocked = await found()
    assert blocked.outcome == "error"
    assert "pass WebSockets on" in blocked.detail


async def test_a_collector_whose_turn_died_with_its_machine_is_found(
    prefect: PrefectClient, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted server has forgotten the lease, so the turn does not come back by itself."""
    monkeypatch.setattr(server_checks, "COLLECTOR", name := unique("collect"))

    async def found() -> Finding:
        (one,) = [finding for finding in await server_checks.check_server() if finding.name == "collector"]
        return one

    deployment_id = await prefect.create_deployment(
        await prefect.create_flow_from_name(name), name, concurrency_limit=1
    )
    yesterday = datetime.now(UTC) - timedelta(days=1)
    runs = [
        await prefect.create_flow_run_from_deployment(deployment_id, state=Scheduled(scheduled_time=yesterday))
        for _ in range(2)
    ]
    assert (await found()).outcome == "ok"
    assert [await state_after(prefect, run.id, Pending()) for run in runs] == ["Pending", "AwaitingConcurrencySlot"]
    monkeypatch.setattr(server_checks, "WAITS_AT_MOST", timedelta())
    stuck = await found()
    assert stuck.outcome == "error"
    assert f"the turn of {runs[0].name!r}" in stuck.detail
    assert await state_after(prefect, runs[0].id, Crashed()) == "Crashed"  # as it says
    assert await state_after(prefect, runs[1].id, Pending()) == "Pending"
    assert (await found()).outcome == "ok"


async def state_after(prefect: PrefectClient, run_id: UUID, proposed: State) -> str:
    result = await prefect.set_flow_run_state(run_id, proposed)
    return (result.state.name if result.state else None) or ""


async def test_a_package_that_is_no_checkout_has_no_prefect_yaml_to_compare(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server_checks, "ROOT", tmp_path)
    found = (await server_checks.check_server())[-1]
    assert (found.name, found.outcome) == ("deployments", "ok")
    assert "no checkout" in found.detail


async def test_the_code_of_a_worker_is_what_the_last_check_there_found(
    stored: StoredBlocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("check-setup")
    monkeypatch.setattr(server_checks, "CHECK", f"check-setup/{name}")
    async with get_client() as client:
        unknown = await server_checks.code_of_worker(client)
        assert unknown.outcome == "warning"
        assert f"prefect deployment run check-setup/{name}" in unknown.detail
        flow_id = await client.create_flow(check_setup)
        deployment_id = await client.create_deployment(flow_id, name)
        for code, outcome in ((this_code(), "ok"), ("0.0.1+0ddba11", "warning")):
            monkeypatch.setattr("flows.checks.this_code", lambda code=code: code)
            run = await client.create_flow_run_from_deployment(deployment_id)
            blocks = {"api": stored.name, "archive": stored.name}
            await run_flow_async(check_setup, flow_run=run, parameters=blocks)  # as a worker's process does
            found = await server_checks.code_of_worker(client)
            assert found.outcome == outcome
            assert code in found.detail
    assert "restart the worker" in found.detail


@pytest.mark.parametrize("table", [None, "{", "[1]", "[]", '{"name": "code"}', '[{"name": "code"}]', [{"name": "api"}]])
def test_a_table_that_names_no_code_says_nothing(table: object) -> None:
    assert server_checks.code_in(table) is None
    assert server_checks.code_in('[{"name": "code", "detail": "1.0\\\\+a"}]') == "1.0+a"
