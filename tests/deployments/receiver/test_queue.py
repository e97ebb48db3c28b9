"""How calls take turns: who shares whose end, and how many there may be."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deployments.receiver import queue as callback_queue
from deployments.receiver.queue import MOST_WAITING_FOR_ONE, CallbackFailure, CallbackQueue, QueueFullError, Result
from flows.callbacks import CallbackOutcome


class Work:
    """What calls are handed to. Each is held until the test lets it end."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, int, str | None]] = []
        self.running = self.most = 0
        self.results: list[Result] = []
        self._go = asyncio.Event()

    async def __call__(self, key: str, attempt_number: int, claimed_task_id: str | None) -> Result:
        self.begun.append((key, attempt_number, claimed_task_id))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self._go.wait()
            await asyncio.sleep(0)
            return self.results.pop(0) if self.results else CallbackOutcome.PENDING
        finally:
            self.running -= 1

    def go(self) -> None:
        self._go.set()


@pytest.fixture
async def work() -> AsyncIterator[Work]:
    made = Work()
    yield made
    made.go()


async def turn() -> None:
    """Lets whatever can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("end", [CallbackOutcome.FINISHED, CallbackOutcome.ALREADY_HANDLED])
async def test_calls_that_wait_share_a_final_end(end: CallbackOutcome, work: Work) -> None:
    queue = CallbackQueue(work)
    first = queue.take("k", 1, "t")
    await turn()
    others = [queue.take("k", 1, claimed_task_id) for claimed_task_id in ("t", "t", None)]
    work.results = [end]
    work.go()
    assert [await call for call in (first, *others)] == [end] * 4
    assert work.begun == [("k", 1, "t")]


@pytest.mark.parametrize(
    "end", [CallbackOutcome.PENDING, CallbackOutcome.UNIDENTIFIED, CallbackFailure.UNAVAILABLE, CallbackFailure.BROKEN]
)
async def test_a_call_that_came_later_may_know_more_and_hundreds_of_it_are_handled_once(
    end: Result, work: Work
) -> None:
    queue = CallbackQueue(work)
    first = queue.take("k", 1, "t")
    await turn()
    others = [queue.take("k", 1, "t") for _ in range(300)]
    work.results = [end, CallbackOutcome.FINISHED]
    work.go()
    assert await first is end
    assert {await call for call in others} == {CallbackOutcome.FINISHED}
    assert len(work.begun) == 2
    assert work.most == 1


async def test_a_hint_is_not_lost_behind_a_call_without_one(work: Work) -> None:
    queue = CallbackQueue(work)
    junk, true = queue.take("k", 1, None), queue.take("k", 1, "t")
    work.results = [CallbackOutcome.UNIDENTIFIED, CallbackOutcome.FINISHED]
    work.go()
    assert (await junk, await true) == (CallbackOutcome.UNIDENTIFIED, CallbackOutcome.FINISHED)
    assert work.begun == [("k", 1, None), ("k", 1, "t")]


async def test_attempts_and_keys_do_not_wait_for_each_other(work: Work) -> None:
    queue = CallbackQueue(work)
    calls = [queue.take(key, number, None) for key in ("a", "b") for number in (1, 2)]
    await turn()
    assert work.running == 4
    work.go()
    await asyncio.gather(*calls)


async def test_no_more_are_handled_at_once_than_allowed_and_no_more_wait(work: Work) -> None:
    queue = CallbackQueue(work, at_once=2, most_calls=5)
    calls = [queue.take(f"k{number}", 1, None) for number in range(5)]
    await turn()
    assert work.running == 2
    with pytest.raises(QueueFullError):
        queue.take("one-more", 1, None)
    assert queue.take("k4", 1, None) is calls[4]
    work.go()
    await asyncio.gather(*calls)
    assert (len(work.begun), work.most) == (5, 2)
    await queue.take("one-more", 1, None)


async def test_one_attempt_cannot_fill_the_desk_with_made_up_hints(work: Work) -> None:
    queue = CallbackQueue(work)
    calls = [queue.take("k", 1, "first")]
    await turn()
    calls += [queue.take("k", 1, f"t{number}") for number in range(MOST_WAITING_FOR_ONE)]
    with pytest.raises(QueueFullError):
        queue.take("k", 1, "one-too-many")
    calls.append(queue.take("other", 1, "t"))
    work.go()
    await asyncio.gather(*calls)


async def test_nothing_is_kept_of_calls_that_ended(work: Work) -> None:
    queue = CallbackQueue(work)
    work.go()
    for claimed_task_id in (None, "t", None):
        await asyncio.gather(*(queue.take("k", 1, claimed_task_id) for _ in range(3)))
    await turn()
    assert (queue._calls, queue._attempts) == (set(), {})


async def test_calls_that_end_at_once_are_forgotten_too() -> None:
    async def work(*_: object) -> Result:
        return CallbackOutcome.PENDING

    queue = CallbackQueue(work)
    calls = [queue.take("k", 1, claimed_task_id) for claimed_task_id in (None, "t", "u")]
    assert await asyncio.gather(*calls) == [CallbackOutcome.PENDING] * 3
    await turn()
    assert (queue._calls, queue._attempts) == (set(), {})


async def test_closing_waits_for_what_is_under_way_and_cuts_off_what_takes_too_long(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = CallbackQueue(work)
    quick = queue.take("k", 1, None)
    closing = asyncio.create_task(queue.aclose())
    await turn()
    assert not closing.done()
    work.go()
    await closing
    assert quick.result() is CallbackOutcome.PENDING

    monkeypatch.setattr(callback_queue, "STOP_SECONDS", 0.05)
    stuck = CallbackQueue(Work())
    calls = [stuck.take("k", 1, claimed_task_id) for claimed_task_id in (None, "t")]
    await turn()
    await stuck.aclose()
    assert all(call.cancelled() for call in calls)
