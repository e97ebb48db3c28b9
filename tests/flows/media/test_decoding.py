"""Where videos are decoded: not on the event loop, few at once, and after all else."""

import asyncio
import os
import sys
import threading
import time

import pytest

from flows.media.decoding import NICENESS, decode, processors


async def test_at_most_one_for_each_processor_decodes_at_once() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        with lock:
            under_way -= 1

    await asyncio.gather(*(decode(work) for _ in range(4 * processors())))
    assert most == processors()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness for each thread")
async def test_a_decoder_comes_after_all_else() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert await decode(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == min(NICENESS, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


async def test_an_error_reaches_who_waits() -> None:
    with pytest.raises(ZeroDivisionError):
        await decode(divmod, 1, 0)
