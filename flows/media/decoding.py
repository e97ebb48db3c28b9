"""Where videos are decoded: beside the event loop, at most one for each processor at once, and last in line."""

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

NICENESS: Final = 10
"""Of 0 to 19. A callback, a paid call and all else that waits for a processor come before a decoder that has one."""


async def decode(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Runs what decodes in one of this process's decoding threads."""
    call = functools.partial(work, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(_threads(), call)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(processors(), thread_name_prefix="decoding", initializer=_come_last)


def _come_last() -> None:
    # Linux has a niceness for each thread; elsewhere there is no such process.
    with contextlib.suppress(AttributeError, OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


__all__ = ["decode", "processors"]
