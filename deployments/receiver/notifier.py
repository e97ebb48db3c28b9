"""Reports ended tasks: every one to the waiting runs, and now and then one to the collector.

An event for each of a hundred callbacks would make Prefect create a hundred collector runs, although one is enough. On
SQLite, that stalled the server for a minute when measured. One collector run processes all tasks that end while it runs
and those of the minute before, so one event calls it, and none while it runs.
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
"""The collector is called at most this often. Starting its process takes half of this time."""
MOST_POSTPONED: Final = 30
"""How often a call is postponed because a collector runs: the run of a killed worker stays Running."""
COLLECTOR: Final = "collect-videos"
PREFECT_SECONDS: Final = 5.0


async def collector_runs() -> bool:
    """Whether a collector runs, or is about to. False if Prefect does not say."""
    wanted = FlowRunFilter(state=FlowRunFilterState(type=StateTypes(any_=[StateType.PENDING, StateType.RUNNING])))
    flow = FlowFilter(name=FlowFilterName(any_=[COLLECTOR]))
    with contextlib.suppress(Exception):
        async with asyncio.timeout(PREFECT_SECONDS), get_client() as client:
            return bool(await client.read_flow_runs(flow_filter=flow, flow_run_filter=wanted, limit=1))
    return False


class Notifier:
    """Emits `apixo.task.finished` for each task, and marks the one that calls the collector.

    The first is marked at once. Of those that follow the last is emitted once more, marked, when `call_every_seconds`
    are over and no collector runs any more: whatever became of the run that the first one started, one comes after it.

    Args:
        emit: takes key, task id, how the task ended, and `calls_collector`.
        collector_runs: asked before it is called again.
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
        """Runs while the collector is not to be called again."""
        self._left: tuple[str, str, str | None] | None = None

    def finished(self, key: str, task_id: str, end: str | None = None) -> None:
        """Reports that the task of a generation has ended, and how: see `flows.signals.handed_over`."""
        self._emit(key, task_id=task_id, end=end, calls_collector=self._quiet is None)
        if self._quiet is None:
            self._quiet = asyncio.create_task(self._keep_quiet())
        else:
            self._left = key, task_id, end

    async def _keep_quiet(self) -> None:
        for _ in range(MOST_POSTPONED):
            await asyncio.sleep(self._call_every_seconds)
            if not await self._collector_runs():
                break
        self._call()

    def flush(self) -> None:
        """Calls the collector for what came since its last call. Also called when the receiver stops."""
        if self._quiet is not None:
            self._quiet.cancel()
        self._call()

    def _call(self) -> None:
        left, self._left, self._quiet = self._left, None, None
        if left is not None:
            self.finished(*left)
