"""Time and randomness in one object, so that tests can replace them."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime


class Clock:
    """The time, sleeping, and random numbers.

    Deliberately not a dataclass: Prefect walks through those, field by field, if they are part of a task parameter.

    Attributes:
        sleep: waits for this many seconds.
        monotonic: seconds that only increase, for durations.
        now: the current time in UTC.
        rng: a number from 0 to below 1, for pauses that must differ.
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
