"""Pauses a batch's submissions while the provider's answers are unclear.

A user must check the provider's account after each unclear answer. So an outage must cause a few of them, not one for
each row of a calendar.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final

from apixo import ApixoError, StatusClient
from flows.batch.budget import BudgetError
from flows.clock import Clock
from flows.paid_call import Accepted, Outcome, Unclear
from flows.signals.progress import run_logger

AT_ONCE: Final = 5
"""Paid calls that may be unanswered at the same time. An answer takes a second or two; a hanging one is unclear."""
IN_A_ROW: Final = 3
"""Unclear answers in a row after which a run stops submitting. Those of concurrent calls count as one."""
FREE_CALL_PAUSE_SECONDS: Final = 5.0
"""Between two free calls while submissions are held. It doubles each time, up to `MOST_FREE_CALL_PAUSE_SECONDS`."""
MOST_FREE_CALL_PAUSE_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 10.0
"""The longest that a free call may take and still count as answered."""

Report = Callable[[Outcome], None]
Answers = Callable[[str | None], Awaitable[bool]]
"""Whether the provider answers a call that costs nothing. The call is about this task, if one is given."""


class OutageBrake:
    """Lets paid calls through, a few at once, and none while the provider's answers are unclear.

    An unclear answer holds all further calls until a free call succeeds. Then a single paid call is let through, and
    the others once it is accepted. After three unclear answers in a row, or too long a hold, no more calls are let
    through.

    Args:
        answers: makes a free call to the provider.
        outage_seconds: the longest hold.
        at_once: how many paid calls may wait for their answer at the same time.
    """

    def __init__(
        self,
        answers: Answers,
        *,
        outage_seconds: float,
        at_once: int = AT_ONCE,
        clock: Clock,
    ) -> None:
        self._answers, self._outage_seconds, self._clock = answers, outage_seconds, clock
        self._turns = asyncio.Semaphore(at_once)
        self._open = asyncio.Event()
        self._open.set()
        self._episode = 0
        self._in_a_row = 0
        self._last_task: str | None = None
        self._watch: asyncio.Task[None] | None = None
        self._first = asyncio.Lock()
        self.closed: str | None = None

    @asynccontextmanager
    async def call(self, key: str) -> AsyncIterator[Report]:
        """Wraps one paid call. The caller reports its outcome by calling the yielded function.

        Raises:
            BudgetError: the run has stopped submitting. Nothing was claimed or sent.
        """
        async with self._turns:
            await self._wait_until_open(key)
            if self._in_a_row == 0:
                yield self._reporter()
                return
            async with self._first:  # one call at a time, until one is accepted
                await self._wait_until_open(key)
                yield self._reporter()

    async def aclose(self) -> None:
        """Stops the free calls."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _wait_until_open(self, key: str) -> None:
        await self._open.wait()
        if self.closed is not None:
            raise BudgetError(f"{key} was not submitted: {self.closed}.", key=key)

    def _reporter(self) -> Report:
        episode = self._episode

        def report(outcome: Outcome) -> None:
            if isinstance(outcome, Accepted):
                self._last_task = outcome.task_id
            if episode != self._episode:
                return  # it was sent before the hold began, so it is outdated
            if isinstance(outcome, Accepted):
                self._in_a_row = 0
            elif isinstance(outcome, Unclear):
                self._hold()

        return report

    def _hold(self) -> None:
        self._episode += 1
        self._in_a_row += 1
        self._open.clear()
        if self._in_a_row >= IN_A_ROW:
            self._close(
                f"APIXO's answers were unclear {IN_A_ROW} times in a row, and further videos might be paid for "
                "unnoticed. Run the batch again once APIXO has recovered"
            )
            return
        run_logger().warning(
            "APIXO's answer was unclear. Further submissions are on hold until it answers a free call."
        )
        self._watch = asyncio.get_running_loop().create_task(self._release())

    async def _release(self) -> None:
        """Ends the hold, also if the free calls fail in an unexpected way: otherwise all rows would wait forever."""
        try:
            await self._wait_for_answer()
        except Exception:  # noqa: BLE001 - whatever it is, no more is paid for
            run_logger().exception("Free calls to APIXO failed with an unexpected error.")
            self._close("APIXO's answer was unclear, and free calls failed with an unexpected error, see the log")

    async def _wait_for_answer(self) -> None:
        until, pause = self._clock.monotonic() + self._outage_seconds, FREE_CALL_PAUSE_SECONDS
        while not await self._answers(self._last_task):
            left = until - self._clock.monotonic()
            if left <= 0:
                self._close(f"APIXO has not answered for {self._outage_seconds:.0f} s. Run the batch again later")
                return
            await self._clock.sleep(min(pause, left))
            pause = min(pause * 2, MOST_FREE_CALL_PAUSE_SECONDS)
        run_logger().info("APIXO answers again. Resuming with a single submission.")
        self._open.set()

    def _close(self, why: str) -> None:
        run_logger().error("This run submits no more videos: %s.", why)
        self.closed = why
        self._open.set()


def free_call(client: StatusClient) -> Answers:
    """Polls the last task that was accepted or, if there is none, a task that does not exist.

    An answer counts if it came in the API's own envelope. A 4xx without the envelope may come from a gateway in front
    of the API; then a request for the balance decides.
    """

    async def answer_to(call: Awaitable[object]) -> bool | None:
        """Whether the API answered; None: a 4xx without the envelope, from the API itself or from a gateway."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await call
        except TimeoutError:
            return False
        except ApixoError as error:  # such as an unknown task
            code = error.code or HTTPStatus.INTERNAL_SERVER_ERROR
            if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
                return False
            if not error.enveloped:
                return None if code >= HTTPStatus.BAD_REQUEST else False
        return True

    async def answers(task_id: str | None) -> bool:
        answered = await answer_to(client.status_once(task_id or "outage-check"))
        if answered is None:
            answered = await answer_to(client.balance_once())
        return answered is True

    return answers
