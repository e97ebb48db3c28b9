"""The checks of `sora doctor` that concern the Prefect server."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow_async
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Failed, Pending, Scheduled

from deployments.local.prefect_server import PrefectServer
from deployments.setup import server_checks
from flows.check_setup import check_setup
from flows.checks import Finding, this_code
from tests.flows.conftest import StoredBlocks
from tests.support import unique
from tests.support.store_gate import StoreGate


async def _check_worker() -> Finding:
    (found,) = [finding for finding in await server_checks.check_server() if finding.name == "worker"]
    return found


async def test_missing_pool_and_missing_worker_are_warnings_until_a_worker_runs(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = unique("doctor")
    monkeypatch.setattr(server_checks, "POOL", pool)
    missing = await _check_worker()
    assert missing.outcome == "warning"
    assert f"There is no work pool '{pool}'" in missing.detail
    async with get_client() as client:
        await client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        idle = await _check_worker()
        assert idle.outcome == "warning"
        assert f"prefect worker start --pool {pool}" in idle.detail
        await client.send_worker_heartbeat(pool, "one", heartbeat_interval_seconds=30)
    assert (await _check_worker()).outcome == "ok"


async def test_proxy_that_blocks_websockets_is_detected(prefect_server: PrefectServer) -> None:
    async def check_events() -> Finding:
        (found,) = [finding for finding in await server_checks.check_server() if finding.name == "events"]
        return found

    proxy = StoreGate(prefect_server.url.removeprefix("http://"))
    with proxy, temporary_settings({PREFECT_API_URL: f"http://{proxy.endpoint}/api"}):
        assert (await check_events()).outcome == "ok"
        proxy.shut = lambda data: b"upgrade: websocket" in data.lower()
        blocked = await check_events()
    assert blocked.outcome == "error"
    assert "pass WebSockets on" in blocked.detail


async def test_collector_blocked_by_a_dead_run_is_detected(
    prefect: PrefectClient, prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restarted server has forgotten the run's lease, so it never frees the concurrency slot by itself."""
    monkeypatch.setattr(server_checks, "COLLECTOR", name := unique("collect"))

    async def check_collector() -> Finding:
        (found,) = [finding for finding in await server_checks.check_server() if finding.name == "collector"]
        return found

    deployment_id = await prefect.create_deployment(
        await prefect.create_flow_from_name(name), name, concurrency_limit=1
    )
    yesterday = datetime.now(UTC) - timedelta(days=1)
    runs = [
        await prefect.create_flow_run_from_deployment(deployment_id, state=Scheduled(scheduled_time=yesterday))
        for _ in range(2)
    ]
    assert (await check_collector()).outcome == "ok"
    assert [await state_after(prefect, run.id, Pending()) for run in runs] == ["Pending", "AwaitingConcurrencySlot"]
    monkeypatch.setattr(server_checks, "WAITS_AT_MOST", timedelta())
    stuck = await check_collector()
    assert stuck.outcome == "error"
    assert f"the turn of {runs[0].name!r}" in stuck.detail
    assert await state_after(prefect, runs[0].id, Crashed()) == "Crashed"  # as the finding recommends
    assert await state_after(prefect, runs[1].id, Pending()) == "Pending"
    assert (await check_collector()).outcome == "ok"


async def state_after(prefect: PrefectClient, run_id: UUID, proposed: State) -> str:
    result = await prefect.set_flow_run_state(run_id, proposed)
    return (result.state.name if result.state else None) or ""


async def test_deployments_are_not_compared_outside_a_checkout(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(server_checks, "ROOT", tmp_path)
    found = (await server_checks.check_server())[-1]
    assert (found.name, found.outcome) == ("deployments", "ok")
    assert "no checkout" in found.detail


async def test_code_of_worker_is_read_from_its_last_check_setup_run(
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
        assert await server_checks.code_of_worker(client) == unknown
        for code, outcome in ((this_code(), "ok"), ("0.0.1+0ddba11", "warning")):
            monkeypatch.setattr("flows.checks.this_code", lambda code=code: code)
            run = await client.create_flow_run_from_deployment(deployment_id)
            blocks = {"api": stored.name, "archive": stored.name}
            await run_flow_async(check_setup, flow_run=run, parameters=blocks)  # as a worker process does
            found = await server_checks.code_of_worker(client)
            assert found.outcome == outcome
            assert code in found.detail
        broken = await client.create_flow_run_from_deployment(deployment_id, state=Scheduled())
        assert await state_after(client, broken.id, Failed()) == "Failed"  # it could not start, so it has no table
        assert await server_checks.code_of_worker(client) == found
    assert "restart the worker" in found.detail


@pytest.mark.parametrize("table", [None, "{", "[1]", "[]", '{"name": "code"}', '[{"name": "code"}]', [{"name": "api"}]])
def test_table_without_code_version_is_ignored(table: object) -> None:
    assert server_checks.code_in(table) is None
    assert server_checks.code_in('[{"name": "code", "detail": "1.0\\\\+a"}]') == "1.0+a"
