"""Keeps what a person did to the schedules of a deployment when it is deployed anew.

`prefect deploy` sets every schedule back to what prefect.yaml says, and drops those that were made in the UI. Where
prefect.yaml has no schedule for a deployment any more, it leaves all of them.
"""

from collections.abc import Collection, Sequence
from typing import Literal
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule

Kept = Literal["kept", "stays on", "stays off", "removed"]


async def keep_schedules(
    client: PrefectClient, deployment_id: UUID, before: Sequence[DeploymentSchedule], slugs: Collection[str]
) -> list[tuple[str, Kept]]:
    """Restores a person's choices after a deployment, and removes what prefect.yaml no longer has.

    A schedule of prefect.yaml has one of the slugs: it keeps being on or off, whatever else of it changed. One without
    a slug was made by a person and is made again.

    Returns:
        Each schedule that is not as prefect.yaml has it, or was removed. To be shown: who has just switched one off in
        prefect.yaml must see that it stays on.
    """
    kept: list[tuple[str, Kept]] = []
    after = []
    for schedule in await client.read_deployment_schedules(deployment_id):
        if schedule.slug and schedule.slug not in slugs:
            await client.delete_deployment_schedule(deployment_id, schedule.id)
            kept.append((schedule.slug, "removed"))
        else:
            after.append(schedule)
    by_slug = {schedule.slug: schedule for schedule in after}
    for schedule in before:
        now = by_slug.get(schedule.slug)
        if schedule.slug and now is not None and now.active != schedule.active:
            await client.update_deployment_schedule(deployment_id, now.id, active=schedule.active)
            kept.append((schedule.slug, "stays on" if schedule.active else "stays off"))
        elif not schedule.slug and all(schedule.schedule != other.schedule for other in after):
            theirs = DeploymentScheduleCreate(
                schedule=schedule.schedule,
                active=schedule.active,
                max_scheduled_runs=schedule.max_scheduled_runs,
                parameters=schedule.parameters,
            )
            await client.create_deployment_schedules(deployment_id, [theirs])
            kept.append(("made by a person", "kept"))
    return kept
