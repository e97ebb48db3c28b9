"""Several calls at once, but not all."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


async def at_most(number: int, call: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
    """Makes a call for each item, at most this many at once. Returns the results in the order of the items."""
    gate = asyncio.Semaphore(number)

    async def one(item: T) -> R:
        async with gate:
            return await call(item)

    return await asyncio.gather(*map(one, items))
