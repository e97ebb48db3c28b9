"""A user's changes to schedules survive a new deployment."""

from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from deployments.local.prefect_server import PrefectServer
from deployments.setup.deploy import keep_schedules
from tests.support import unique

MORNING = CronSchedule(cron="0 6 * * *", timezone="UTC")
NOON = CronSchedule(cron="0 12 * * *", timezone="UTC")


def make_schedule(**fields: Any) -> DeploymentSchedule:
    return DeploymentSchedule.model_validate({"id": uuid4(), "schedule": MORNING, "active": False, **fields})


class FakeServer:
    """A fake Prefect client that has a deployment's schedules and records the changes to them."""

    def __init__(self, *schedules: DeploymentSchedule) -> None:
        self.schedules = schedules
        self.changed: list[tuple[Any, ...]] = []

    async def read_deployment_schedules(self, _: UUID) -> list[DeploymentSchedule]:
        return list(self.schedules)

    async def update_deployment_schedule(self, _: UUID, schedule_id: UUID, *, active: bool) -> None:
        self.changed.append((schedule_id, active))

    async def create_deployment_schedules(self, _: UUID, made: list[DeploymentScheduleCreate]) -> None:
        self.changed += [(item.schedule, item.active, item.parameters, item.max_scheduled_runs) for item in made]

    async def keep(self, *before: DeploymentSchedule) -> list[tuple[Any, ...]]:
        await keep_schedules(cast("PrefectClient", self), uuid4(), before, {"daily", "new"})
        return self.changed


@pytest.mark.parametrize("active", [True, False])
async def test_schedule_of_prefect_yaml_stays_on_or_off_when_its_time_changes(active: bool) -> None:
    before = make_schedule(slug="daily", active=active)
    after = make_schedule(slug="daily", schedule=NOON, active=not active)
    assert await FakeServer(after).keep(before) == [(after.id, active)]
    assert await FakeServer(make_schedule(slug="daily", active=active)).keep(before) == []


async def test_removed_schedule_is_not_restored_and_new_one_is_unchanged() -> None:
    assert await FakeServer(make_schedule(slug="new")).keep(make_schedule(slug="old", active=True)) == []


async def test_schedule_created_by_a_user_is_recreated_with_all_its_fields() -> None:
    user_schedule = make_schedule(schedule=NOON, active=True, parameters={"calendar": "mine.csv"}, max_scheduled_runs=2)
    assert await FakeServer(make_schedule(slug="daily")).keep(user_schedule) == [
        (NOON, True, {"calendar": "mine.csv"}, 2)
    ]
    assert await FakeServer(user_schedule).keep(user_schedule) == []


async def test_schedules_are_restored_on_a_real_server(prefect_server: PrefectServer) -> None:
    async with get_client() as client:
        flow_id = await client.create_flow_from_name(unique("flow"))
        deployment_id = await client.create_deployment(
            flow_id=flow_id,
            name=unique("deployment"),
            schedules=[DeploymentScheduleCreate(schedule=MORNING, active=False, slug="daily")],
        )
        (daily_schedule,) = await client.read_deployment_schedules(deployment_id)
        await client.update_deployment_schedule(deployment_id, daily_schedule.id, active=True)
        hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=True)
        await client.create_deployment_schedules(deployment_id, [hourly])
        before = await client.read_deployment_schedules(deployment_id)
        for found in before:
            await client.delete_deployment_schedule(deployment_id, found.id)
        await client.create_deployment_schedules(
            deployment_id,
            [
                DeploymentScheduleCreate(schedule=MORNING, active=False, slug="daily"),
                DeploymentScheduleCreate(schedule=NOON, active=True, slug="no longer in prefect.yaml"),
            ],
        )
        kept = await keep_schedules(client, deployment_id, before, {"daily"})
        now = {found.slug: found for found in await client.read_deployment_schedules(deployment_id)}
    assert sorted(kept) == [
        ("created by a user", "kept"), ("daily", "stays on"), ("no longer in prefect.yaml", "removed"),
    ]  # fmt: skip
    assert {slug: found.active for slug, found in now.items()} == {"daily": True, None: True}
    hourly_schedule = now[None].schedule
    assert isinstance(hourly_schedule, IntervalSchedule)
    assert hourly_schedule.interval == timedelta(hours=1)
