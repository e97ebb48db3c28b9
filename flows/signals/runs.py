"""Prefect's data about flow runs: their ids, tags and names, and waiting runs of the collector."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import deployment, flow_run

from flows.signals.progress import run_logger

TIMEOUT_SECONDS: Final = 10.0
"""How long either may take. Nothing depends on it: a run that stays polls once more, which is harmless."""
MOST_TAGS: Final = 50
"""A calendar may have thousands; so many tags are useless for finding a run."""


def root_run_id() -> str | None:
    """The id of the outermost flow run around this code; None outside a run.

    It is the same in each retry. A subflow's own id is not: a parent that is retried starts a new subflow run, and so
    does one between the two.
    """
    found: str | None = flow_run.root_flow_run_id
    return found


async def tag_run(tags: Iterable[str], *, name: str | None = None) -> None:
    """Adds these tags to the current flow run, and names it. Never raises: a tag must not cost a video.

    Not Prefect's `tags` context: that would tag every task run, and each of those then queries the concurrency service.
    """
    wanted = sorted(set(tags))[:MOST_TAGS]
    run_id = flow_run.id
    if name == flow_run.name:
        name = None
    if not (wanted or name) or run_id is None:
        return
    all_tags = sorted({*flow_run.tags, *wanted}) if wanted else None  # they replace what a person has added since
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), get_client() as client:
            await client.update_flow_run(UUID(str(run_id)), tags=all_tags, name=name)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises any
        run_logger().warning("The run was not tagged or named (%s).", type(error).__name__)


async def remove_waiting_runs(parameters: Mapping[str, Any]) -> None:
    """Deletes the waiting runs of this deployment whose work a run with these parameters does. Never raises.

    If its schedule or a callback starts a run while another is in progress, Prefect makes the new one wait; after a
    night without a worker, a hundred wait. One of them is enough, and each would be a process of its own.

    Call it before the work is listed, so that the list includes what was due by then. Runs started by people stay.
    """
    if deployment.id is None:
        return
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), get_client() as client:
            waiting = await client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[UUID(str(deployment.id))])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                    # When it was first due: a run that waits for its turn is rescheduled every 30 s.
                    expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
                ),
            )
            covered = [run for run in waiting if _is_automatic(run) and covers(parameters, run.parameters)]
            for run in covered:
                await client.delete_flow_run(run.id)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises any
        run_logger().warning("Runs that wait for this one may stay in the queue (%s).", type(error).__name__)
        return
    if covered:
        run_logger().info("This run also does the work of %d that waited for their turn.", len(covered))


def covers(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a run of the collector does the work of another, by their parameters. Pure."""
    if ours.get("keys") or any(ours.get(name, "default") != theirs.get(name, "default") for name in ("api", "archive")):
        return False
    return not ours.get("detached_only") or bool(theirs.get("detached_only"))


def _is_automatic(run: FlowRun) -> bool:
    return run.auto_scheduled or (run.created_by is not None and run.created_by.type == "AUTOMATION")
