"""Waiting for the end of a task, with a simulated clock: every second below is counted, none is slept."""

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
    InProgress,
    NoReplyError,
    RateLimitError,
    ServerError,
    Status,
    Succeeded,
    UnexpectedReplyError,
    UnknownState,
    wait_for_end,
)

PENDING = InProgress(task_id="task_1", state="pending")
PROCESSING = InProgress(task_id="task_1", state="processing")
UNKNOWN = UnknownState(task_id="task_1", state="on_hold")
DONE = Succeeded(task_id="task_1", state="success", result_urls=("https://example.com/v.mp4",))
LOST = Failed(task_id="task_1", state="failed", fail_code="X", fail_message="")


@dataclass
class Simulation:
    """A clock, and a provider that gives its answers in order, then repeats the last one forever."""

    answers: Sequence[Status | Exception]
    answer_seconds: float = 0.0
    now: float = 1000.0
    sleeps: list[float] = field(default_factory=list)
    polled_at: list[float] = field(default_factory=list)
    reports: list[tuple[str, float]] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += max(seconds, 1e-6)  # a real clock advances, however short the pause

    async def poll(self) -> Status:
        self.polled_at.append(self.now - 1000)
        answer = self.answers[min(len(self.polled_at), len(self.answers)) - 1]
        self.now += self.answer_seconds
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def wait(self, *, draw: float = 0.5, **options: Any) -> Succeeded | Failed:
        return await wait_for_end(
            self.poll,
            task_id="task_1",
            sleep=self.sleep,
            monotonic=lambda: self.now,
            rng=lambda: draw,
            report=lambda last, waited, _: self.reports.append((last, waited)),
            **options,
        )


async def test_initial_wait_and_interval_follow_provider_advice() -> None:
    simulation = Simulation([PENDING, PROCESSING, PROCESSING, DONE])
    assert await simulation.wait() is DONE
    assert simulation.polled_at == [180, 190, 200, 210]
    assert simulation.reports == [("state 'pending'", 180), ("state 'processing'", 190), ("state 'processing'", 200)]


@pytest.mark.parametrize(("draw", "pause"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
async def test_polls_are_jittered_by_a_fifth(draw: float, pause: float) -> None:
    simulation = Simulation([PENDING, PENDING, DONE])
    await simulation.wait(draw=draw)
    assert simulation.sleeps == pytest.approx([180, pause, pause])


@pytest.mark.parametrize("end", [DONE, LOST])
async def test_final_state_ends_the_wait_without_another_sleep(end: Status) -> None:
    simulation = Simulation([end])
    assert await simulation.wait() is end
    assert simulation.sleeps == [180]


async def test_zero_initial_wait_polls_at_once() -> None:
    simulation = Simulation([DONE])
    await simulation.wait(initial_wait_seconds=0)
    assert (simulation.sleeps, simulation.polled_at) == ([], [0])


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
async def test_errors_and_unknown_states_do_not_end_the_wait(answer: Status | Exception) -> None:
    simulation = Simulation([answer] * 5 + [DONE])
    assert await simulation.wait() is DONE
    assert len(simulation.polled_at) == 6
    assert {last for last, _ in simulation.reports} == {
        "state 'on_hold', which APIXO does not document" if answer is UNKNOWN else str(answer)
    }


async def test_authentication_error_ends_the_wait_at_once() -> None:
    simulation = Simulation([PENDING, AuthenticationError("no"), DONE])
    with pytest.raises(AuthenticationError):
        await simulation.wait()
    assert simulation.polled_at == [180, 190]


async def test_unexpected_exception_while_polling_propagates() -> None:
    simulation = Simulation([PENDING, KeyError("a mistake of ours"), DONE])
    with pytest.raises(KeyError):
        await simulation.wait()


@pytest.mark.parametrize(("requested", "pause"), [(3.0, 10.0), (60.0, 60.0), (None, 10.0)])
async def test_longer_retry_after_overrides_the_interval(requested: float | None, pause: float) -> None:
    simulation = Simulation([RateLimitError("later", retry_after_seconds=requested), PENDING, DONE])
    await simulation.wait()
    assert simulation.sleeps == [180, pause, 10]


async def test_retry_after_is_capped_at_the_deadline() -> None:
    simulation = Simulation([RateLimitError("later", retry_after_seconds=300), DONE])
    assert await simulation.wait(deadline_seconds=200) is DONE
    assert simulation.polled_at == [180, 200]


async def test_deadline_error_has_last_state_and_advice() -> None:
    simulation = Simulation([PENDING, UNKNOWN])
    with pytest.raises(DeadlineError, match=r"task_1.*200 s.*'on_hold'.*poll again later") as raised:
        await simulation.wait(deadline_seconds=200)
    assert raised.value.task_id == "task_1"
    assert simulation.polled_at == [180, 190, 200]
    assert simulation.sleeps == [180, 10, 10]


async def test_final_state_that_arrives_after_the_deadline_counts() -> None:
    simulation = Simulation([PENDING, DONE], answer_seconds=50)
    assert await simulation.wait(deadline_seconds=240) is DONE
    assert simulation.now - 1000 > 240


async def test_no_sleep_after_the_deadline() -> None:
    simulation = Simulation([PENDING], answer_seconds=50)
    with pytest.raises(DeadlineError):
        await simulation.wait(deadline_seconds=200)
    assert (simulation.sleeps, simulation.polled_at) == ([180], [180])


@pytest.mark.parametrize("deadline", [0, -5])
async def test_zero_or_negative_deadline_polls_once(deadline: float) -> None:
    simulation = Simulation([DONE])
    assert await simulation.wait(deadline_seconds=deadline) is DONE
    simulation = Simulation([PENDING])
    with pytest.raises(DeadlineError):
        await simulation.wait(deadline_seconds=deadline)
    assert (simulation.sleeps, simulation.polled_at) == ([], [0])


async def test_initial_wait_is_capped_at_the_deadline() -> None:
    simulation = Simulation([DONE])
    await simulation.wait(initial_wait_seconds=180, deadline_seconds=5)
    assert simulation.polled_at == [5]


@given(
    initial=st.floats(0, 1000),
    interval=st.floats(1, 100),
    deadline=st.floats(0, 1000),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_wait_polls_at_least_once_and_never_sleeps_past_the_deadline(
    initial: float, interval: float, deadline: float, draw: float
) -> None:
    simulation = Simulation([PENDING])
    with pytest.raises(DeadlineError):
        asyncio.run(
            simulation.wait(
                draw=draw,
                initial_wait_seconds=initial,
                poll_interval_seconds=interval,
                deadline_seconds=deadline,
            )
        )
    assert simulation.polled_at
    assert simulation.now - 1000 <= deadline + 1e-4
    assert all(seconds > 0 for seconds in simulation.sleeps)


async def test_wall_clock_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_clock() -> float:
        raise AssertionError("the wall clock jumps: it must not decide a deadline")

    monkeypatch.setattr(time, "time", no_clock)
    assert await Simulation([PENDING, DONE]).wait() is DONE


async def test_cancellation_interrupts_the_sleep() -> None:
    async def poll() -> Status:
        return PENDING

    waiting = asyncio.create_task(wait_for_end(poll, task_id="task_1", initial_wait_seconds=1000))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
