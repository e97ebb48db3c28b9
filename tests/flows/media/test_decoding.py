"""Videos are decoded in threads, not on the event loop, and only a few at once."""

import asyncio
import threading
import time

import pytest

from flows.media.videos import decode, processors


async def test_at_most_one_video_per_processor_is_decoded_at_once() -> None:
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


async def test_decoding_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await decode(divmod, 1, 0)
