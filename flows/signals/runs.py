"""Reads and changes Prefect's flow runs: ids, tags, names, and waiting runs of the collector."""

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
"""How long tagging, or removing waiting runs, may take. Nothing depends on it: a run that stays is harmless."""
MOST_TAGS: Final = 50
"""A calendar may have thousands of tags, which are useless for finding a run."""


def root_run_id() -> str | None:
    """The id of the outermost flow run around this code; None outside a run.

    It is the same in each retry. A subflow's own id is not: if any flow above it is retried, a new subflow run
    starts.
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
    all_tags = sorted({*flow_run.tags, *wanted}) if wanted else None  # the update replaces all tags
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), get_client() as client:
            await client.update_flow_run(UUID(str(run_id)), tags=all_tags, name=name)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises anything
        run_logger().warning("The run was not tagged or named (%s).", type(error).__name__)


async def remove_waiting_runs(parameters: Mapping[str, Any]) -> None:
    """Deletes this deployment's waiting runs whose work is also done by a run with these parameters. Never raises.

    If its schedule or a callback starts a run while another is in progress, Prefect makes the new one wait; after a
    night without a worker, a hundred runs wait. One is enough, and each would be a separate process.

    Call it before the work is listed, so that the list includes what was due by then. Runs started by users stay.
    """
    if deployment.id is None:
        return
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), get_client() as client:
            waiting = await client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[UUID(str(deployment.id))])),
                flow_run_filter=FlowRunFilter(
                    state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
                    # The time when it was first due: the start of a waiting run is rescheduled every 30 s.
                    expected_start_time=FlowRunFilterExpectedStartTime(before_=datetime.now(UTC)),
                ),
            )
            covered = [run for run in waiting if _is_automatic(run) and covers(parameters, run.parameters)]
            for run in covered:
                await client.delete_flow_run(run.id)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises anything
        run_logger().warning("Runs that wait for this one may stay in the queue (%s).", type(error).__name__)
        return
    if covered:
        run_logger().info("This run also does the work of %d that waited for their turn.", len(covered))


def covers(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether a collector run with parameters `ours` also does the work of one with `theirs`. Pure."""
    if ours.get("keys") or any(ours.get(name, "default") != theirs.get(name, "default") for name in ("api", "archive")):
        return False
    return not ours.get("detached_only") or bool(theirs.get("detached_only"))


def _is_automatic(run: FlowRun) -> bool:
    return run.auto_scheduled or (run.created_by is not None and run.created_by.type == "AUTOMATION")
