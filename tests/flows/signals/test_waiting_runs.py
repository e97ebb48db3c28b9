"""Collector runs that wait only to do the same work again are removed. Others are not."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.runtime import flow_run
from prefect.states import Scheduled

from deployments.local.prefect_server import PrefectServer
from flows.signals.runs import covers, remove_waiting_runs, tag_run
from tests.support import unique

FULL: dict[str, Any] = {"keys": None, "detached_only": False, "api": "default", "archive": "default"}


@flow(name="waits-for-its-turn")
async def waits_for_its_turn(parameters: dict[str, Any]) -> None:
    await remove_waiting_runs(parameters)


async def deployed(client: PrefectClient, **parameters: Any) -> UUID:
    flow_id = await client.create_flow_from_name("waits-for-its-turn")
    return await client.create_deployment(
        flow_id=flow_id, name=unique("collector"), parameters=parameters, enforce_parameter_schema=False
    )


async def schedule(client: PrefectClient, deployment_id: UUID) -> None:
    """Creates the runs of a 5-minute schedule: three that are due, and later ones."""
    now = datetime.now(UTC)
    span = {"start_time": str(now - timedelta(minutes=15)), "end_time": str(now + timedelta(minutes=15))}
    path = f"/deployments/{deployment_id}"
    slot = {"active": True, "schedule": {"interval": 300, "anchor_date": str(now - timedelta(days=1, minutes=1))}}
    (await client._client.post(f"{path}/schedules", json=[slot])).raise_for_status()
    (await client._client.post(f"{path}/schedule", json=span)).raise_for_status()


async def due_and_later(client: PrefectClient, deployment_id: UUID) -> tuple[list[UUID], set[UUID]]:
    found = await client.read_flow_runs(
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment_id])), limit=200
    )
    now = datetime.now(UTC)
    due = [run.id for run in found if run.expected_start_time is not None and run.expected_start_time <= now]
    return due, {run.id for run in found} - set(due)


async def test_due_scheduled_runs_are_removed_and_a_manually_started_one_stays(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with get_client() as client:
        ours = await deployed(client)
        await schedule(client, ours)
        manual = await client.create_flow_run_from_deployment(ours, state=Scheduled())
        due, later = await due_and_later(client, ours)
        assert len(due) == 4
        assert later
        monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(ours))
        await waits_for_its_turn(FULL | {"detached_only": True})  # it does less than the scheduled runs do
        assert (await due_and_later(client, ours))[0] == due
        await waits_for_its_turn(FULL)
        left, still_later = await due_and_later(client, ours)
        assert left == [manual.id]
        assert still_later >= later  # the server adds more meanwhile


async def test_naming_a_run_keeps_tags_added_meanwhile(prefect_server: PrefectServer) -> None:
    @flow
    async def named() -> UUID:
        run_id = UUID(str(flow_run.id))
        async with get_client() as client:
            await client.update_flow_run(run_id, tags=["by a person"])
        await tag_run((), name="named")
        return run_id

    run_id = await named()
    async with get_client() as client:
        run = await client.read_flow_run(run_id)
    assert (run.name, run.tags) == ("named", ["by a person"])


async def test_error_while_removing_waiting_runs_does_not_fail_the_run(
    prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "no id at all")
    await waits_for_its_turn(FULL)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (FULL, {}, True),
        (FULL, {"detached_only": True}, True),
        (FULL, {"keys": ["a"]}, True),
        (FULL, {"api": "other"}, False),
        (FULL | {"archive": "other"}, {"archive": "other"}, True),
        (FULL | {"keys": ["a"]}, {}, False),
        (FULL | {"detached_only": True}, {}, False),
        (FULL | {"detached_only": True}, {"detached_only": True}, True),
    ],
)
def test_run_covers_another_that_does_no_more_work(
    ours: dict[str, Any], theirs: dict[str, Any], expected: bool
) -> None:
    assert covers(ours, theirs) is expected
