"""Puts the tags of what a flow run generates on the run, so that it is found by them in the Prefect UI."""

import asyncio
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from prefect import get_client
from prefect.runtime import flow_run

from flows.signals.progress import run_logger

TIMEOUT_SECONDS: Final = 10.0
"""How long it may take. Nothing depends on it."""
MOST_TAGS: Final = 50
"""A calendar may have thousands; a run with as many is found by none."""


async def tag_run(tags: Iterable[str], *, name: str | None = None) -> None:
    """Adds these tags to the current flow run, and names it. Never raises: a label must not cost a video.

    Not Prefect's `tags` context: that would tag every task run, and each of those then asks the concurrency service.
    """
    wanted = sorted(set(tags))[:MOST_TAGS]
    run_id = flow_run.id
    if name == flow_run.name:
        name = None
    if not (wanted or name) or run_id is None:
        return
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), get_client() as client:
            await client.update_flow_run(UUID(str(run_id)), tags=sorted({*flow_run.tags, *wanted}), name=name)
    except Exception as error:  # noqa: BLE001 - Prefect's client raises any
        run_logger().warning("The run was not tagged or named (%s).", type(error).__name__)
