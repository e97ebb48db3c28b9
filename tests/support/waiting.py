"""Waits until another process has done something, however slow the machine is."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

T = TypeVar("T")

SECONDS: Final = 120.0
"""A limit against hanging. It says nothing about speed."""


async def until(
    check: Callable[[], Awaitable[T | None]], *, what: str, seconds: float = SECONDS, pause: float = 0.2
) -> T:
    """Repeats the check until its result is true, and returns that result."""
    deadline = time.monotonic() + seconds
    while True:
        result = await check()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        await asyncio.sleep(pause)
