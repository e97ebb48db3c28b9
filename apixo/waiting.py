"""Waits for the end of a task. Clock, sleep and randomness are passed in as arguments."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from apixo.constants import INITIAL_WAIT_SECONDS, POLL_INTERVAL_SECONDS
from apixo.errors import ApixoError, AuthenticationError, DeadlineError
from apixo.replies import Failed, Status, Succeeded, UnknownState

JITTER: Final = 0.2
"""Polls come up to this fraction earlier or later than configured, so that many waiters do not poll in step."""

Report = Callable[[str, float, float], None]
"""Called after each poll without a final state, with the answer, the seconds waited so far, and the seconds until the
next poll."""


async def wait_for_end(
    poll: Callable[[], Awaitable[Status]],
    *,
    task_id: str,
    initial_wait_seconds: float = INITIAL_WAIT_SECONDS,
    poll_interval_seconds: float = POLL_INTERVAL_SECONDS,
    deadline_seconds: float = 1800.0,
    report: Report | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
    rng: Callable[[], float] = random.random,
) -> Succeeded | Failed:
    """Sleeps, then polls until the task ends or the deadline passes.

    Only a final state or a 401 ends the wait early. Polling continues even after a 400: APIXO does not document whether
    a task is known right after its submission. A final state that arrives at the deadline still counts.

    Args:
        initial_wait_seconds: before the first poll. 0 polls at once.
        poll_interval_seconds: between two polls, jittered; a longer Retry-After takes precedence.
        deadline_seconds: from now. There is always at least one poll.

    Raises:
        DeadlineError: the task did not end before the deadline.
        AuthenticationError: no poll will succeed with this key.
    """
    started = monotonic()
    pause = min(initial_wait_seconds, deadline_seconds)
    while True:
        if pause > 0:
            await sleep(pause)
        requested_seconds = 0.0
        try:
            status = await poll()
        except AuthenticationError:
            raise
        except ApixoError as error:
            last, requested_seconds = str(error), error.retry_after_seconds or 0.0
        else:
            if isinstance(status, Succeeded | Failed):
                return status
            last = f"state {status.state!r}"
            if isinstance(status, UnknownState):
                last += ", which APIXO does not document"
        waited = monotonic() - started
        left = deadline_seconds - waited
        if left <= 0:
            raise DeadlineError(
                f"Task {task_id} was not finished after {waited:.0f} s ({last}). It may still succeed: poll again "
                "later. APIXO keeps results for a limited time.",
                task_id=task_id,
            )
        jittered = poll_interval_seconds * (1 - JITTER + 2 * JITTER * rng())
        pause = min(max(jittered, requested_seconds), left)
        if report is not None:
            report(last, waited, pause)
