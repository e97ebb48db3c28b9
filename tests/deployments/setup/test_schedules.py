"""What a person did to a schedule survives a new deployment."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from deployments.local.prefect_server import PrefectServer
from deployments.setup.schedules import changes_to_keep, keep_schedules
from tests.support import unique

MORNING = CronSchedule(cron="0 6 * * *", timezone="UTC")
NOON = CronSchedule(cron="0 12 * * *", timezone="UTC")


def schedule(**fields: Any) -> DeploymentSchedule:
    return DeploymentSchedule.model_validate({"id": uuid4(), "schedule": MORNING, "active": False, **fields})


@pytest.mark.parametrize("active", [True, False])
def test_one_of_prefect_yaml_stays_on_or_off_even_when_its_time_changed(active: bool) -> None:
    before = [schedule(slug="daily", active=active)]
    after = [schedule(slug="daily", schedule=NOON, active=not active)]
    assert changes_to_keep(before, after) == [(after[0].id, active)]
    assert changes_to_keep(before, [schedule(slug="daily", active=active)]) == []


def test_one_that_prefect_yaml_no_longer_has_is_gone_and_a_new_one_is_as_written() -> None:
    assert changes_to_keep([schedule(slug="old", active=True)], [schedule(slug="new")]) == []


def test_one_that_a_person_made_is_made_again_with_all_that_it_had() -> None:
    theirs = schedule(schedule=NOON, active=True, parameters={"calendar": "mine.csv"}, max_scheduled_runs=2)
    (made,) = changes_to_keep([theirs], [schedule(slug="daily")])
    assert isinstance(made, DeploymentScheduleCreate)
    assert (made.schedule, made.active, made.parameters, made.max_scheduled_runs) == (
        NOON, True, {"calendar": "mine.csv"}, 2,
    )  # fmt: skip
    assert changes_to_keep([theirs], [theirs]) == []


async def test_a_server_has_them_as_before(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        flow_id = await client.create_flow_from_name(unique("flow"))
        made = await client.create_deployment(
            flow_id=flow_id,
            name=unique("deployment"),
            schedules=[DeploymentScheduleCreate(schedule=MORNING, active=False, slug="daily")],
        )
        (ours,) = await client.read_deployment_schedules(made)
        await client.update_deployment_schedule(made, ours.id, active=True)
        hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=True)
        await client.create_deployment_schedules(made, [hourly])
        before = await client.read_deployment_schedules(made)
        for found in before:
            await client.delete_deployment_schedule(made, found.id)
        await client.create_deployment_schedules(
            made,
            [
                DeploymentScheduleCreate(schedule=MORNING, active=False, slug="daily"),
                DeploymentScheduleCreate(schedule=NOON, active=True, slug="no longer in prefect.yaml"),
            ],
        )
        kept = await keep_schedules(client, made, before, {"daily"})
        now = {found.slug: found for found in await client.read_deployment_schedules(made)}
    assert sorted(kept) == [
        ("daily", "stays on"), ("made by a person", "kept"), ("no longer in prefect.yaml", "removed"),
    ]  # fmt: skip
    assert {slug: found.active for slug, found in now.items()} == {"daily": True, None: True}
    theirs = now[None].schedule
    assert isinstance(theirs, IntervalSchedule)
    assert theirs.interval == timedelta(hours=1)
