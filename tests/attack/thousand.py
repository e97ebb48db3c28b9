"""Runs one batch, and prints the measurements as JSON: `python -m tests.attack.thousand BLOCKS CALENDAR PER_SECOND`.

It runs in its own process, so that the sandbox and the test are not measured with it.
"""

import asyncio
import functools
import sys
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx
from pydantic import BaseModel

from blocks.object_store import ObjectStore
from flows.batch.summary import BatchFailedError, BatchSummary
from flows.generate_batch import generate_batch
from tests.attack.labels import label_of_store_call
from tests.support.memory import forget_peak, peak_kib

CALLERS: Final = ("apixo", "blocks", "flows", "prefect")
"""The client that a request comes from: the first of these packages up the stack."""


class BatchResult(BaseModel):
    """The outcome and the measurements of a batch.

    Attributes:
        states: how many rows ended in each state.
        problems: the errors of the first rows that failed.
        seconds, processor_seconds: from the start of the flow to its end, without the imports.
        before_kib, peak_kib: memory of the process before the batch, and at its peak.
        pool_timeouts: how often one of our requests found no free connection in time. This also happens to Prefect's
            own client if its server is slow, and the client retries.
        store_calls: the number of store calls by label.
    """

    states: dict[str, int]
    problems: list[str]
    seconds: float
    processor_seconds: float
    before_kib: int
    peak_kib: int
    pool_timeouts: int
    store_calls: dict[str, int]


def count_calls() -> tuple[Counter[str], list[int]]:
    """From now on, counts the store calls, and how often no connection was free in time."""
    calls, timeouts = Counter[str](), [0]
    call, initialize = ObjectStore._call, httpx.PoolTimeout.__init__

    @functools.wraps(call)
    async def counted(store: ObjectStore, method: str, name: str, send: Callable[[], Awaitable[Any]]) -> Any:
        calls[label_of_store_call(method, name)] += 1
        return await call(store, method, name, send)

    def noticed(error: httpx.PoolTimeout, *arguments: Any, **options: Any) -> None:
        modules = (frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in traceback.walk_stack(None))
        timeouts[0] += next((name for name in modules if name in CALLERS), "") != "prefect"
        initialize(error, *arguments, **options)

    setattr(ObjectStore, call.__name__, counted)
    setattr(httpx.PoolTimeout, "__init__", noticed)  # noqa: B010 - an assignment is an error of its type
    return calls, timeouts


async def run(blocks: str, calendar: str, submissions_per_second: float) -> BatchResult:
    """Runs the batch, with defaults for everything else."""
    calls, timeouts = count_calls()
    before_kib, began, processor = forget_peak(), time.monotonic(), time.process_time()
    try:
        summary = await generate_batch(
            calendar=calendar, submissions_per_second=submissions_per_second, api=blocks, archive=blocks
        )
    except BatchFailedError as error:
        summary = error.summary
    assert isinstance(summary, BatchSummary)
    return BatchResult(
        states=Counter(row.state for row in summary.rows),
        problems=[row.problem for row in summary.rows if row.problem][:5],
        seconds=time.monotonic() - began,
        processor_seconds=time.process_time() - processor,
        before_kib=before_kib,
        peak_kib=peak_kib(),
        pool_timeouts=timeouts[0],
        store_calls=calls,
    )


if __name__ == "__main__":
    print(asyncio.run(run(sys.argv[1], sys.argv[2], float(sys.argv[3]))).model_dump_json())
