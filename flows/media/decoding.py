"""Where videos are decoded: beside the event loop, at most one for each processor at once."""

import asyncio
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def decode(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Runs what decodes in one of this process's decoding threads."""
    call = functools.partial(work, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(_threads(), call)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _threads() -> ThreadPoolExecutor:
    # Not at a lower priority: a thread that is put off while it holds the interpreter's lock puts off the event loop.
    # On a busy machine that was measured to be two seconds.
    return ThreadPoolExecutor(processors(), thread_name_prefix="decoding")


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads
