"""Tells of ended tasks: every one to the runs that wait, and now and then one to the collector.

An event for each of a hundred callbacks would have Prefect create a hundred collector runs, and cancel most of them. On
SQLite that was measured to stall the server for a minute. One collector run hears of all that end while it runs and of
those of the minute before, so one event in a while calls it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from flows.signals.events import emit_task_finished

CALL_EVERY_SECONDS: Final = 10.0
"""How often the collector is called at most. Starting its process takes half of it."""

Emit = Callable[..., None]


class Notifier:
    """Emits `apixo.task.finished` for each task, and marks the one that calls the collector.

    The first is marked at once. Of those that follow within `call_every_seconds` the last is emitted once more, marked,
    when that time is over: whatever became of the run that the first one started, one comes after it.

    Args:
        api, archive: names of the blocks, for the collector.
        call_every_seconds: see `CALL_EVERY_SECONDS`.
        emit: for tests.
    """

    def __init__(
        self,
        *,
        api: str,
        archive: str,
        call_every_seconds: float = CALL_EVERY_SECONDS,
        emit: Emit = emit_task_finished,
    ) -> None:
        self._api, self._archive = api, archive
        self._call_every_seconds = call_every_seconds
        self._emit = emit
        self._quiet: asyncio.TimerHandle | None = None
        """Runs while the collector is not to be called again."""
        self._left: tuple[str, str] | None = None

    def finished(self, key: str, task_id: str) -> None:
        """Tells that the task of a generation has ended."""
        if self._quiet is None:
            self._call(key, task_id)
        else:
            self._left = key, task_id
            self._tell(key, task_id, calls_collector=False)

    def close(self) -> None:
        """Tells what is left, at once."""
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        if self._left is not None:
            self._tell(*self._left, calls_collector=True)
            self._left = None

    def _call(self, key: str, task_id: str) -> None:
        self._left = None
        self._tell(key, task_id, calls_collector=True)
        self._quiet = asyncio.get_running_loop().call_later(self._call_every_seconds, self._over)

    def _over(self) -> None:
        self._quiet = None
        if self._left is not None:
            self._call(*self._left)

    def _tell(self, key: str, task_id: str, *, calls_collector: bool) -> None:
        self._emit(key, task_id=task_id, api=self._api, archive=self._archive, calls_collector=calls_collector)
