"""Waits for what somebody else does: until it is done, however slow the machine is."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

SECONDS: Final = 120.0
"""Bounds a hang, not a speed."""


async def until(
    check: Callable[[], Awaitable[T | None]], *, what: str, seconds: float = SECONDS, pause: float = 0.2
) -> T:
    """The first answer of the check that is one: neither None nor false."""
    deadline = time.monotonic() + seconds
    while True:
        answer = await check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        await asyncio.sleep(pause)
