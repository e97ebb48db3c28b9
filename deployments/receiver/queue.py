"""Queues calls: handles one at a time for each attempt, and a limited number in all."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flows.callbacks import CallbackOutcome

AT_ONCE: Final = 32
"""Calls handled at the same time: as many as the object store client keeps connections open."""
MOST_CALLS: Final = 256
"""The maximum number of calls in progress or waiting. Further ones are rejected; the provider may call again."""
MOST_WAITING_FOR_ONE: Final = 4
"""The maximum number of calls with different task ids that wait for one attempt, which normally has one task."""
STOP_SECONDS: Final = 10.0
"""How long calls in progress may take when the receiver stops. Polling covers those that are cut off."""


class CallbackFailure(StrEnum):
    """Why a call could not be handled."""

    UNAVAILABLE = "unavailable"
    """The provider or the store did not answer. Another call may succeed."""
    BROKEN = "error"
    """An unexpected error, or an unreadable record. The log has the details."""


Result = CallbackOutcome | CallbackFailure

FINAL: Final = frozenset({CallbackOutcome.FINISHED, CallbackOutcome.ALREADY_HANDLED})
"""After these results, no call about the same attempt brings anything new, so waiting calls share the result."""


class QueueFullError(Exception):
    """Too many calls are waiting."""


@dataclass
class _Attempt:
    """The calls about one attempt."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: dict[str | None, asyncio.Task[Result]] = field(default_factory=dict)
    """The calls that are not handled yet, by claimed task id."""
    end: Result | None = None
    """The result of the call that was handled last."""


class CallbackQueue:
    """Takes calls and hands each to `work`.

    While a call about an attempt is handled, further calls with the same claimed task id are merged into one that waits
    for its result. If the result is final, they share it. Otherwise the waiting call is handled too, since it may bring
    more: the first call may have polled just before the task ended, or may not have had the task id. So a call that is
    repeated hundreds of times at once is handled at most twice.

    Args:
        work: handles one call, given key, attempt number and claimed task id. It does not raise.
    """

    def __init__(
        self,
        work: Callable[[str, int, str | None], Awaitable[Result]],
        *,
        at_once: int = AT_ONCE,
        most_calls: int = MOST_CALLS,
    ) -> None:
        self._work = work
        self._gate = asyncio.Semaphore(at_once)
        self._most_calls = most_calls
        self._calls: set[asyncio.Task[Result]] = set()
        """All calls in progress or waiting. The event loop itself keeps only weak references to tasks."""
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        """The attempts that have a call in progress or waiting."""

    def take(self, key: str, attempt_number: int, claimed_task_id: str | None) -> asyncio.Task[Result]:
        """Takes a call. It is handled even if the caller stops waiting for the result.

        Raises:
            QueueFullError: too many calls are waiting.
        """
        about = (key, attempt_number)
        attempt = self._attempts.get(about) or _Attempt()
        if claimed_task_id in attempt.waiting:
            return attempt.waiting[claimed_task_id]
        if len(self._calls) >= self._most_calls or len(attempt.waiting) >= MOST_WAITING_FOR_ONE:
            raise QueueFullError
        call = asyncio.create_task(self._handle(about, claimed_task_id, attempt), name="callback")
        self._attempts[about] = attempt
        attempt.waiting[claimed_task_id] = call
        self._calls.add(call)
        call.add_done_callback(lambda _: self._forget(about, claimed_task_id, attempt, call))
        return call

    async def aclose(self) -> None:
        """Waits for calls in progress, for a limited time, and cancels the rest."""
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=STOP_SECONDS)
            for call in late:
                call.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _handle(self, about: tuple[str, int], claimed_task_id: str | None, attempt: _Attempt) -> Result:
        async with attempt.turn:
            if attempt.end in FINAL:
                return attempt.end
            async with self._gate:
                del attempt.waiting[claimed_task_id]  # later calls may bring more, so they are handled separately
                attempt.end = await self._work(*about, claimed_task_id)
                return attempt.end

    def _forget(
        self, about: tuple[str, int], claimed_task_id: str | None, attempt: _Attempt, call: asyncio.Task[Result]
    ) -> None:
        self._calls.discard(call)
        if attempt.waiting.get(claimed_task_id) is call:
            del attempt.waiting[claimed_task_id]
        if not attempt.waiting and not attempt.turn.locked() and self._attempts.get(about) is attempt:
            del self._attempts[about]
