"""Several calls at once: never more than the limit, and the results in order."""

import asyncio

from flows.concurrency import at_most


async def test_at_most_this_many_calls_run_at_once_and_results_keep_their_order() -> None:
    under_way, most = 0, 0

    async def call(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (10 - number))  # the first ones end last
        under_way -= 1
        return number * number

    assert await at_most(3, call, range(10)) == [number * number for number in range(10)]
    assert most == 3
