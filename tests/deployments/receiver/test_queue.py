"""The callback queue: which callbacks share a result, and how many it accepts."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.receiver import queue as callback_queue
from deployments.receiver.queue import MOST_WAITING_FOR_ONE, CallbackFailure, CallbackQueue, QueueFullError, Result
from flows.callbacks import CallbackOutcome


class Work:
    """A handler for callbacks. Each call waits until the test releases it."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, str | None]] = []
        self.running = self.most = 0
        self.results: list[Result] = []
        self._released = asyncio.Event()

    async def __call__(self, key: str, attempt_number: int, claimed_task_id: str | None) -> Result:
        self.begun.append((key, attempt_number, claimed_task_id))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._released.wait()
            await asyncio.sleep(0)
            return self.results.pop(0) if self.results else CallbackOutcome.PENDING
        finally:
            self.running -= 1

    def release(self) -> None:
        self._released.set()


@pytest.fixture
async def work() -> AsyncIterator[Work]:
    made = Work()
    yield made
    made.release()


async def run_ready_tasks() -> None:
    """Lets all ready tasks run."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("end", [CallbackOutcome.FINISHED, CallbackOutcome.ALREADY_HANDLED])
async def test_waiting_callbacks_share_a_final_result(end: CallbackOutcome, work: Work) -> None:
    queue = CallbackQueue(work)
    first = queue.take("k", 1, "t")
    await run_ready_tasks()
    others = [queue.take("k", 1, claimed_task_id) for claimed_task_id in ("t", "t", None)]
    work.results = [end]
    work.release()
    assert [await call for call in (first, *others)] == [end] * 4
    assert work.begun == [("k", 1, "t")]


@pytest.mark.parametrize(
    "end", [CallbackOutcome.PENDING, CallbackOutcome.UNIDENTIFIED, CallbackFailure.UNAVAILABLE, CallbackFailure.BROKEN]
)
async def test_later_callbacks_are_handled_once_more_if_first_result_is_not_final(end: Result, work: Work) -> None:
    queue = CallbackQueue(work)
    first = queue.take("k", 1, "t")
    await run_ready_tasks()
    others = [queue.take("k", 1, "t") for _ in range(300)]
    work.results = [end, CallbackOutcome.FINISHED]
    work.release()
    assert await first is end
    assert {await call for call in others} == {CallbackOutcome.FINISHED}
    assert len(work.begun) == 2
    assert work.most == 1


async def test_claimed_task_id_is_not_lost_behind_a_callback_without_one(work: Work) -> None:
    queue = CallbackQueue(work)
    unnamed, named = queue.take("k", 1, None), queue.take("k", 1, "t")
    work.results = [CallbackOutcome.UNIDENTIFIED, CallbackOutcome.FINISHED]
    work.release()
    assert (await unnamed, await named) == (CallbackOutcome.UNIDENTIFIED, CallbackOutcome.FINISHED)
    assert work.begun == [("k", 1, None), ("k", 1, "t")]


async def test_attempts_and_keys_are_handled_concurrently(work: Work) -> None:
    queue = CallbackQueue(work)
    calls = [queue.take(key, number, None) for key in ("a", "b") for number in (1, 2)]
    await run_ready_tasks()
    assert work.running == 4
    work.release()
    await asyncio.gather(*calls)


async def test_running_and_waiting_callbacks_are_limited(work: Work) -> None:
    queue = CallbackQueue(work, at_once=2, most_calls=5)
    calls = [queue.take(f"k{number}", 1, None) for number in range(5)]
    await run_ready_tasks()
    assert work.running == 2
    with pytest.raises(QueueFullError):
        queue.take("one-more", 1, None)
    assert queue.take("k4", 1, None) is calls[4]
    work.release()
    await asyncio.gather(*calls)
    assert (len(work.begun), work.most) == (5, 2)
    await queue.take("one-more", 1, None)


async def test_one_attempt_cannot_fill_the_queue_with_invented_task_ids(work: Work) -> None:
    queue = CallbackQueue(work)
    calls = [queue.take("k", 1, "first")]
    await run_ready_tasks()
    calls += [queue.take("k", 1, f"t{number}") for number in range(MOST_WAITING_FOR_ONE)]
    with pytest.raises(QueueFullError):
        queue.take("k", 1, "one-too-many")
    calls.append(queue.take("other", 1, "t"))
    work.release()
    await asyncio.gather(*calls)


async def test_finished_callbacks_are_forgotten(work: Work) -> None:
    queue = CallbackQueue(work)
    work.release()
    for claimed_task_id in (None, "t", None):
        await asyncio.gather(*(queue.take("k", 1, claimed_task_id) for _ in range(3)))
    await run_ready_tasks()
    assert (queue._calls, queue._attempts) == (set(), {})


async def test_callbacks_that_finish_immediately_are_forgotten() -> None:
    async def work(*_: object) -> Result:
        return CallbackOutcome.PENDING

    queue = CallbackQueue(work)
    calls = [queue.take("k", 1, claimed_task_id) for claimed_task_id in (None, "t", "u")]
    assert await asyncio.gather(*calls) == [CallbackOutcome.PENDING] * 3
    await run_ready_tasks()
    assert (queue._calls, queue._attempts) == (set(), {})


async def test_closing_waits_for_running_callbacks_and_cancels_slow_ones(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = CallbackQueue(work)
    quick = queue.take("k", 1, None)
    closing = asyncio.create_task(queue.aclose())
    await run_ready_tasks()
    assert not closing.done()
    work.release()
    await closing
    assert quick.result() is CallbackOutcome.PENDING

    monkeypatch.setattr(callback_queue, "STOP_SECONDS", 0.05)
    stuck = CallbackQueue(Work())
    calls = [stuck.take("k", 1, claimed_task_id) for claimed_task_id in (None, "t")]
    await run_ready_tasks()
    await stuck.aclose()
    assert all(call.cancelled() for call in calls)
