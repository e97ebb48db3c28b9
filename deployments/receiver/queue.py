"""Queues calls: one at a time for each attempt, and a limited number in all."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from flows.callbacks import CallbackOutcome

AT_ONCE: Final = 32
"""Calls handled at the same time: as many as the object store keeps connections open."""
MOST_CALLS: Final = 256
"""Calls that are handled or wait. Further calls are rejected, and the provider may call again."""
MOST_WAITING_FOR_ONE: Final = 4
"""Calls with different task ids that wait for one attempt. A provider has one task for it; more is noise."""
STOP_SECONDS: Final = 10.0
"""How long calls in progress may take when the receiver stops. What is cut off is found by polling."""


class CallbackFailure(StrEnum):
    """Why a call could not be handled."""

    UNAVAILABLE = "unavailable"
    """The provider or the store did not answer. Another call may succeed."""
    BROKEN = "error"
    """An unexpected error, or a record that cannot be read; the log says what."""


Result = CallbackOutcome | CallbackFailure

FINAL: Final = frozenset({CallbackOutcome.FINISHED, CallbackOutcome.ALREADY_HANDLED})
"""After these no call about the same attempt brings anything new, so those that wait share them."""


class QueueFullError(Exception):
    """Too many calls are waiting."""


@dataclass
class _Attempt:
    """The calls about one attempt."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: dict[str | None, asyncio.Task[Result]] = field(default_factory=dict)
    """Those that are not handled yet, by claimed task id."""
    end: Result | None = None
    """Of the call that was handled last."""


class CallbackQueue:
    """Takes calls and hands each to `work`.

    While one call about an attempt is handled, further ones with the same claimed task id become one that waits for its
    end. They share that end where it is final. Else the waiting one is handled too, for it came later and may know
    more: the first may have asked just before the task ended, or without the task id that the second one brings. So a
    call that is repeated hundreds of times at once is handled twice at most.

    Args:
        work: handles one call, of key, attempt number and claimed task id. It does not raise.
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
        """All that are handled or wait. The event loop itself holds tasks only weakly."""
        self._attempts: dict[tuple[str, int], _Attempt] = {}
        """Those that a call is handled of, or waits for."""

    def take(self, key: str, attempt_number: int, claimed_task_id: str | None) -> asyncio.Task[Result]:
        """Takes a call, which is then handled to its end, whoever waits for the result.

        Raises:
            QueueFullError: there are too many.
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
        """Waits for what is in progress, for a limited time, and cuts off the rest."""
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
                del attempt.waiting[claimed_task_id]  # who comes from now on may know more
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
