"""Waiting for the end of a task, with a clock of its own: every second below is counted, none is slept."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apixo import (
    AuthenticationError,
    BadRequestError,
    DeadlineError,
    Failed,
    NoReplyError,
    Pending,
    Processing,
    RateLimitError,
    ServerError,
    Status,
    Succeeded,
    UnexpectedReplyError,
    UnknownState,
    wait_for_end,
)

PENDING = Pending(task_id="task_1", state="pending")
PROCESSING = Processing(task_id="task_1", state="processing")
UNKNOWN = UnknownState(task_id="task_1", state="queued_v2")
DONE = Succeeded(task_id="task_1", state="success", result_urls=("https://example.com/v.mp4",))
LOST = Failed(task_id="task_1", state="failed", fail_code="X", fail_message="")


@dataclass
class World:
    """A clock, and a provider that gives its answers in turn, the last one for ever."""

    answers: Sequence[Status | Exception]
    answer_seconds: float = 0.0
    now: float = 1000.0
    naps: list[float] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    reports: list[tuple[str, float]] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += max(seconds, 1e-6)  # a real clock advances, however short the pause

    async def ask(self) -> Status:
        self.asked_at.append(self.now - 1000)
        answer = self.answers[min(len(self.asked_at), len(self.answers)) - 1]
        self.now += self.answer_seconds
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait(self, *, draw: float = 0.5, **options: Any) -> Succeeded | Failed:
        return await wait_for_end(
            self.ask,
            task_id="task_1",
            sleep=self.sleep,
            monotonic=lambda: self.now,
            rng=lambda: draw,
            report=lambda last, waited, _: self.reports.append((last, waited)),
            **options,
        )


async def test_it_waits_as_the_provider_advises() -> None:
    world = World([PENDING, PROCESSING, PROCESSING, DONE])
    assert await world.wait() is DONE
    assert world.asked_at == [180, 190, 200, 210]
    assert world.reports == [("state 'pending'", 180), ("state 'processing'", 190), ("state 'processing'", 200)]


@pytest.mark.parametrize(("draw", "pause"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
async def test_polls_are_jittered_by_a_fifth(draw: float, pause: float) -> None:
    world = World([PENDING, PENDING, DONE])
    await world.wait(draw=draw)
    assert world.naps == pytest.approx([180, pause, pause])


@pytest.mark.parametrize("end", [DONE, LOST])
async def test_a_final_state_ends_it_without_another_pause(end: Status) -> None:
    world = World([end])
    assert await world.wait() is end
    assert world.naps == [180]


async def test_no_initial_wait_asks_at_once() -> None:
    world = World([DONE])
    await world.wait(initial_wait_seconds=0)
    assert (world.naps, world.asked_at) == ([], [0])


@pytest.mark.parametrize(
    "answer",
    [
        BadRequestError("task not found"),
        RateLimitError("later"),
        ServerError("?"),
        NoReplyError("?"),
        UnexpectedReplyError("?"),
        UNKNOWN,
    ],
)
async def test_whatever_is_no_end_is_waited_out(answer: Status | Exception) -> None:
    world = World([answer] * 5 + [DONE])
    assert await world.wait() is DONE
    assert len(world.asked_at) == 6
    assert {last for last, _ in world.reports} == {
        "state 'queued_v2', which APIXO does not document" if answer is UNKNOWN else str(answer)
    }


async def test_a_wrong_key_ends_it_at_once() -> None:
    world = World([PENDING, AuthenticationError("no"), DONE])
    with pytest.raises(AuthenticationError):
        await world.wait()
    assert world.asked_at == [180, 190]


async def test_what_the_question_raises_otherwise_is_no_answer_of_the_provider_and_comes_out() -> None:
    world = World([PENDING, KeyError("a mistake of ours"), DONE])
    with pytest.raises(KeyError):
        await world.wait()


@pytest.mark.parametrize(("requested", "pause"), [(3.0, 10.0), (60.0, 60.0), (None, 10.0)])
async def test_a_longer_retry_after_wins(requested: float | None, pause: float) -> None:
    world = World([RateLimitError("later", retry_after_seconds=requested), PENDING, DONE])
    await world.wait()
    assert world.naps == [180, pause, 10]


async def test_a_retry_after_beyond_the_deadline_is_cut_to_it() -> None:
    world = World([RateLimitError("later", retry_after_seconds=300), DONE])
    assert await world.wait(deadline_seconds=200) is DONE
    assert world.asked_at == [180, 200]


async def test_the_deadline_says_what_came_last_and_what_to_do() -> None:
    world = World([PENDING, UNKNOWN])
    with pytest.raises(DeadlineError, match=r"task_1.*200 s.*'queued_v2'.*poll again later") as raised:
        await world.wait(deadline_seconds=200)
    assert raised.value.task_id == "task_1"
    assert world.asked_at == [180, 190, 200]
    assert world.naps == [180, 10, 10]


async def test_a_final_state_that_comes_with_the_deadline_still_counts() -> None:
    world = World([PENDING, DONE], answer_seconds=50)
    assert await world.wait(deadline_seconds=240) is DONE
    assert world.now - 1000 > 240


async def test_no_pause_follows_the_deadline() -> None:
    world = World([PENDING], answer_seconds=50)
    with pytest.raises(DeadlineError):
        await world.wait(deadline_seconds=200)
    assert (world.naps, world.asked_at) == ([180], [180])


@pytest.mark.parametrize("deadline", [0, -5])
async def test_a_deadline_of_nothing_asks_once(deadline: float) -> None:
    world = World([DONE])
    assert await world.wait(deadline_seconds=deadline) is DONE
    world = World([PENDING])
    with pytest.raises(DeadlineError):
        await world.wait(deadline_seconds=deadline)
    assert (world.naps, world.asked_at) == ([], [0])


async def test_an_initial_wait_beyond_the_deadline_is_cut_to_it() -> None:
    world = World([DONE])
    await world.wait(initial_wait_seconds=180, deadline_seconds=5)
    assert world.asked_at == [5]


@given(
    initial=st.floats(0, 1000),
    interval=st.floats(1, 100),
    deadline=st.floats(0, 1000),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_it_asks_at_least_once_never_sleeps_past_the_deadline_and_ends(
    initial: float, interval: float, deadline: float, draw: float
) -> None:
    world = World([PENDING])
    with pytest.raises(DeadlineError):
        asyncio.run(
            world.wait(
                draw=draw,
                initial_wait_seconds=initial,
                poll_interval_seconds=interval,
                deadline_seconds=deadline,
            )
        )
    assert world.asked_at
    assert world.now - 1000 <= deadline + 1e-4
    assert all(nap > 0 for nap in world.naps)


async def test_the_wall_clock_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_clock() -> float:
        raise AssertionError("the wall clock jumps: it must not decide a deadline")

    monkeypatch.setattr(time, "time", no_clock)
    assert await World([PENDING, DONE]).wait() is DONE


async def test_a_cancellation_comes_out_of_the_pause() -> None:
    async def ask() -> Status:
        return PENDING

    waiting = asyncio.create_task(wait_for_end(ask, task_id="task_1", initial_wait_seconds=1000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
