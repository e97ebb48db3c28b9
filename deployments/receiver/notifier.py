"""Reports ended tasks: all of them to the waiting runs, and only some to the collector.

An event for each of a hundred callbacks would make Prefect create a hundred collector runs, although one is enough. On
SQLite, that stalled the server for a minute when measured. One collector run processes all tasks that end while it runs
and in the minute before. So a single event calls it, and none while it runs.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypes
from prefect.client.schemas.objects import StateType

CALL_EVERY_SECONDS: Final = 10.0
"""The minimum interval between calls of the collector. Starting its process takes half of this time."""
MOST_POSTPONED: Final = 30
"""How often a call is postponed because a collector is running. A killed worker's run stays Running forever."""
COLLECTOR: Final = "collect-videos"
PREFECT_SECONDS: Final = 5.0


async def collector_runs() -> bool:
    """Whether a collector is running, or about to start. False if Prefect does not answer."""
    wanted = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=[StateType.PENDING, StateType.RUNNING])))
    flow = FlowFilter(name=FlowFilterName(any_=[COLLECTOR]))
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PREFECT_SECONDS), get_client() as client:
            return bool(await client.read_flow_runs(flow_filter=flow, flow_run_filter=wanted, limit=1))
    return False


class Notifier:
    """Emits `apixo.task.finished` for each task, and marks the one that calls the collector.

    The first event is marked at once. After `call_every_seconds`, once no collector is running, the last event since
    then is emitted again, marked. So another run follows, whatever became of the one that the first event started.

    Args:
        emit: called with key, task id, how the task ended, and `calls_collector`.
        collector_runs: checked before the collector is called again.
    """

    def __init__(
        self,
        emit: Callable[..., None],
        *,
        call_every_seconds: float = CALL_EVERY_SECONDS,
        collector_runs: Callable[[], Awaitable[bool]] = collector_runs,
    ) -> None:
        self._emit = emit
        self._call_every_seconds = call_every_seconds
        self._collector_runs = collector_runs
        self._quiet: asyncio.Task[None] | None = None
        """Runs as long as the collector must not be called again."""
        self._pending: tuple[str, str, str | None] | None = None

    def finished(self, key: str, task_id: str, end: str | None = None) -> None:
        """Reports that the task of a generation has ended, and how: see `flows.signals.handed_over`."""
        self._emit(key, task_id=task_id, end=end, calls_collector=self._quiet is None)
        if self._quiet is None:
            self._quiet = asyncio.create_task(self._wait_quietly())
        else:
            self._pending = key, task_id, end

    async def _wait_quietly(self) -> None:
        for _ in range(MOST_POSTPONED):
            await asyncio.sleep(self._call_every_seconds)
            if not await self._collector_runs():
                break
        self._call()

    def flush(self) -> None:
        """Calls the collector for tasks that ended since its last call. For when the receiver stops."""
        if self._quiet is not None:
            self._quiet.cancel()
        self._call()

    def _call(self) -> None:
        pending, self._pending, self._quiet = self._pending, None, None
        if pending is not None:
            self.finished(*pending)
