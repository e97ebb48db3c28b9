"""Reports ended tasks: every one to the runs that wait, and now and then one to the collector.

An event for each of a hundred callbacks would have Prefect create a hundred collector runs, and cancel most of them. On
SQLite that was measured to stall the server for a minute. One collector run hears of all that end while it runs and of
those of the minute before, so one event in a while calls it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

CALL_EVERY_SECONDS: Final = 10.0
"""How often the collector is called at most. Starting its process takes half of it."""


class Notifier:
    """Emits `apixo.task.finished` for each task, and marks the one that calls the collector.

    The first is marked at once. Of those that follow within `call_every_seconds` the last is emitted once more, marked,
    when that time is over: whatever became of the run that the first one started, one comes after it.

    Args:
        emit: takes key, task id and `calls_collector`.
        call_every_seconds: see `CALL_EVERY_SECONDS`.
    """

    def __init__(self, emit: Callable[..., None], *, call_every_seconds: float = CALL_EVERY_SECONDS) -> None:
        self._emit = emit
        self._call_every_seconds = call_every_seconds
        self._quiet: asyncio.TimerHandle | None = None
        """Runs while the collector is not to be called again."""
        self._left: tuple[str, str] | None = None

    def finished(self, key: str, task_id: str) -> None:
        """Reports that the task of a generation has ended."""
        self._emit(key, task_id=task_id, calls_collector=self._quiet is None)
        if self._quiet is None:
            self._quiet = asyncio.get_running_loop().call_later(self._call_every_seconds, self.flush)
        else:
            self._left = key, task_id

    def flush(self) -> None:
        """Calls the collector for what came since it was called last. To be done when the receiver stops, too."""
        if self._quiet is not None:
            self._quiet.cancel()
        left, self._left, self._quiet = self._left, None, None
        if left is not None:
            self.finished(*left)
