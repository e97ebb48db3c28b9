"""Holds a batch's submissions back while the provider's answers are unclear.

Each unclear answer sends a person to the provider's account. So an outage must cost a few of them, not one for each row
of a calendar.
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
"""Paid calls that are without an answer at the same time. An answer takes a second or two; what hangs is unclear."""
IN_A_ROW: Final = 3
"""Unclear answers after which a run submits no more. Those that were under way together count as one."""
ASK_SECONDS: Final = 5.0
"""Between two free calls while submissions are held. Longer each time, up to `MOST_ASK_SECONDS`."""
MOST_ASK_SECONDS: Final = 30.0
ANSWER_SECONDS: Final = 10.0
"""The longest that a free call may take to count as answered well."""

Report = Callable[[Outcome], None]
Answers = Callable[[str | None], Awaitable[bool]]
"""Whether the provider answers a call that costs nothing, about this task if one is known."""


class OutageBrake:
    """Lets paid calls through, a few at once, and none while the provider's answers are unclear.

    An unclear answer holds all further ones until a free call is answered well. Then one goes first; the others follow
    once that is accepted. After three unclear answers in a row, or a hold that is too long, none follows any more.

    Args:
        answers: asks the provider something that costs nothing.
        outage_seconds: the longest hold.
        at_once: how many paid calls may be without an answer.
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
        """Around one paid call. What is yielded is to be told its outcome.

        Raises:
            BudgetError: the run submits no more. Nothing was claimed or sent.
        """
        async with self._turns:
            await self._pass(key)
            if self._in_a_row == 0:
                yield self._reporter()
                return
            async with self._first:  # one call shows whether it is over
                await self._pass(key)
                yield self._reporter()

    async def aclose(self) -> None:
        """Ends the asking."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

    async def _pass(self, key: str) -> None:
        await self._open.wait()
        if self.closed is not None:
            raise BudgetError(f"{key} was not submitted: {self.closed}.", key=key)

    def _reporter(self) -> Report:
        episode = self._episode

        def report(outcome: Outcome) -> None:
            if isinstance(outcome, Accepted):
                self._last_task = outcome.task_id
            if episode != self._episode:
                return  # it was under way when the hold began, and says nothing of what is now
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
                f"APIXO's answers were unclear {IN_A_ROW} times in a row, and each further video might be paid for "
                "without anyone knowing. Run the batch again once APIXO is well"
            )
            return
        run_logger().warning(
            "APIXO's answer was unclear. Further submissions are held until it answers a call that costs nothing."
        )
        self._watch = asyncio.get_running_loop().create_task(self._until_it_answers())

    async def _until_it_answers(self) -> None:
        until, pause = self._clock.monotonic() + self._outage_seconds, ASK_SECONDS
        while not await self._answers(self._last_task):
            left = until - self._clock.monotonic()
            if left <= 0:
                self._close(f"APIXO has not answered for {self._outage_seconds:.0f} s. Run the batch again later")
                return
            await self._clock.sleep(min(pause, left))
            pause = min(pause * 2, MOST_ASK_SECONDS)
        run_logger().info("APIXO answers again. Submissions go on, one first.")
        self._open.set()

    def _close(self, why: str) -> None:
        run_logger().error("No further video of this run is submitted: %s.", why)
        self.closed = why
        self._open.set()


def free_call(client: StatusClient) -> Answers:
    """Asks for the state of the last task that was accepted; without one, of a task that does not exist.

    An answer counts where it came in the API's own envelope. After a page with a 4xx, which may be that of a gateway in
    its place, the balance decides.
    """

    async def answer_to(call: Awaitable[object]) -> bool | None:
        """Whether it is answered well; None: by a page with a 4xx, which may be a gateway's or the API's own."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await call
        except TimeoutError:
            return False
        except ApixoError as error:  # such as: it does not know the task
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
