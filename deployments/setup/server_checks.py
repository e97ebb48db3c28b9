"""The checks of `sora doctor` that a run itself does not need: the Prefect server, the workers, the deployments."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from prefect import __version__ as prefect_version
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events import Event
from prefect.exceptions import ObjectNotFound

from deployments.setup.deploy import MAIN, POOL, ROOT, code_version, deployed, wanted_deployments
from flows.check_setup import ARTIFACT_KEY
from flows.checks import Finding, this_code
from flows.signals.events import DELIVERY_TIMEOUT_SECONDS, EventConnection

CHECK: Final = "check-setup/check-setup"
COLLECTOR: Final = "collect-videos"
WAITS_AT_MOST: Final = timedelta(minutes=15)
"""Longer than any run of the collector, except for a first one with thousands of videos."""


async def check_server() -> list[Finding]:
    """The Prefect server that this process talks to, its work pool with its workers, and what is deployed."""
    async with get_client() as client:
        if (error := await client.api_healthcheck()) is not None:
            detail = f"{client.api_url} does not answer ({type(error).__name__}). Is it up? Is PREFECT_API_URL right?"
            return [Finding.error("prefect server", detail)]
        version = await client.api_version()
        detail = f"{client.api_url} answers, version {version}; this is {prefect_version}"
        server = Finding.ok("prefect server", detail)
        if version.split(".")[:2] != prefect_version.split(".")[:2]:
            server = Finding.warning("prefect server", f"{detail}. Use the same version of both")
        worker = await _worker(client)
        seen = [await code_of_worker(client)] if worker.outcome == "ok" else []
        return [server, await _events(), worker, *seen, await _collector(client), await _deployments(client)]


async def _events() -> Finding:
    """Whether the server confirms an event. Events use a WebSocket, which proxies and firewalls often block."""
    connection = EventConnection()
    event = Event(event="sora.check", resource={"prefect.resource.id": "sora.check"})
    try:
        async with asyncio.timeout(DELIVERY_TIMEOUT_SECONDS):
            await connection.send(event)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises anything
        return Finding.error(
            "events",
            f"the server does not confirm them ({type(error).__name__}): no flow or automation learns that a video is "
            "archived or failed, and callbacks wake no run. Does a proxy in front of it pass WebSockets on?",
        )
    finally:
        await connection.aclose()
    return Finding.ok("events", "the server confirms them")


async def _worker(client: PrefectClient) -> Finding:
    start = f"prefect worker start --pool {POOL}"
    try:
        await client.read_work_pool(POOL)
    except ObjectNotFound:
        detail = f"There is no work pool {POOL!r}, so nothing deployed can run. Run `sora setup`, then: {start}"
        return Finding.warning("worker", detail)
    online = [
        worker for worker in await client.read_workers_for_work_pool(POOL) if worker.status is WorkerStatus.ONLINE
    ]
    if not online:
        detail = f"No worker is online in the pool {POOL!r}, so deployed runs wait. Start one with: {start}"
        return Finding.warning("worker", detail)
    return Finding.ok("worker", f"{len(online)} online in the pool {POOL!r}")


async def code_of_worker(client: PrefectClient) -> Finding:
    """The code version that the last `check-setup` found on its worker. Prefect does not know a worker's code."""
    name, here = "worker's code", this_code()
    run = f"prefect deployment run {CHECK}"
    unknown = Finding.warning(name, f"unknown: no check has run on a worker yet. Run: {run}")
    try:
        deployment = await client.read_deployment_by_name(CHECK)
    except ObjectNotFound:
        return unknown
    tables = await client.read_artifacts(
        artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[ARTIFACT_KEY])),
        flow_run_filter=FlowRunFilter(
            deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.COMPLETED, StateType.FAILED])),
        ),
        sort=ArtifactSort.CREATED_DESC,
        limit=1,
    )
    seen = code_in(tables[0].data) if tables else None
    if seen is None:
        return unknown
    at = f"as the check of {tables[0].created:%Y-%m-%d %H:%M} UTC found"
    if seen != here:
        remedy = f"Install the same version on both, restart the worker, then: {run}"
        return Finding.warning(name, f"{seen}, {at}, but here it is {here}. {remedy}")
    return Finding.ok(name, f"{seen} as here, {at}")


def code_in(table: object) -> str | None:
    """The code version in the table of a `check-setup`; None: there is none. Pure."""
    try:
        rows: Any = json.loads(table) if isinstance(table, str) else table
        shown = next((str(row["detail"]) for row in rows if row["name"] == "code"), None)
    except (ValueError, TypeError, KeyError):
        return None
    return None if shown is None else shown.replace("\\", "")  # removes Markdown escapes


async def _collector(client: PrefectClient) -> Finding:
    """Whether the collector can run. A run that died with its machine may hold the only concurrency slot forever."""
    now = datetime.now(UTC)
    flow = FlowFilter(name=FlowFilterName(any_=[COLLECTOR]))
    waiting = await client.read_flow_runs(
        flow_filter=flow,
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingConcurrencySlot"])),
            expected_start_time=FlowRunFilterExpectedStartTime(before_=now - WAITS_AT_MOST),
        ),
        limit=1,
    )
    if not waiting:
        return Finding.ok("collector", "no run of it waits")
    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    begun = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))
    holding = await client.read_flow_runs(flow_filter=flow, flow_run_filter=begun)
    dead = [repr(run.name) for run in holding if run.state and now - run.state.timestamp > WAITS_AT_MOST]
    who = f"of {', '.join(dead)}, which may have died with its machine" if dead else "that no run gives back"
    return Finding.error(
        "collector",
        f"its runs wait for the turn {who}: no detached video is archived. Set the state of such a run to Crashed in "
        "the Prefect UI, and keep the server's leases on disk (see docs/guide.md, Go to production)",
    )


async def _deployments(client: PrefectClient) -> Finding:
    if not (ROOT / MAIN).is_file():
        return Finding.ok("deployments", f"not checked: {ROOT} is no checkout, with a prefect.yaml of its own")
    this, missing, other = code_version(ROOT), [], []
    for wanted in wanted_deployments((ROOT / MAIN).read_text()):
        found = await deployed(client, wanted)
        if found is None:
            missing.append(wanted.name)
        elif found.version != this:
            other.append(wanted.name)
    if missing or other:
        problems = [f"{', '.join(missing)} not deployed"] if missing else []
        problems += [f"{', '.join(other)} deployed from other code"] if other else []
        return Finding.warning("deployments", f"{'; '.join(problems)}. Deploy with: sora deploy")
    return Finding.ok("deployments", f"deployed from this code, {this}")
