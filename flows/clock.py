"""Time and chance, as one thing that a test can replace."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime


class Clock:
    """What time it is, how it passes, and what chance says.

    Not a dataclass on purpose: Prefect walks through those, field by field, where they are part of a task parameter.

    Attributes:
        sleep: waits for so many seconds.
        monotonic: seconds that only grow, for what lasts.
        now: the time of day, in UTC.
        rng: a number from 0 to below 1, for pauses that must not be equal.
    """

    __slots__ = ("monotonic", "now", "rng", "sleep")

    def __init__(
        self,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.sleep, self.monotonic, self.now, self.rng = sleep, monotonic, now, rng
