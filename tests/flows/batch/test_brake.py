"""The outage brake: during a provider outage a batch gets a few unclear answers, never one for each row."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from flows.batch.brake import AT_ONCE, OutageBrake
from flows.batch.budget import BudgetError
from flows.clock import Clock
from flows.paid_call import Accepted, LostRace, Outcome, Unclear
from flows.record.generation import Owner
from flows.record.ledger import Entry
from flows.record.pipeline_errors import UnconfirmedError
from flows.record.transitions import claim
from tests.support import KITE

RECORD = claim(
    None, key="a", request=KITE, owner=Owner(host="a", pid=1), lease_seconds=1, now=datetime(2026, 3, 1, tzinfo=UTC)
)
ACCEPTED = Accepted(Entry(RECORD, '"1"'), "task_1")
UNCLEAR = Unclear(None, UnconfirmedError("unclear", key="a"), TimeoutError())


class Provider:
    """A fake provider: paid calls get these outcomes in order, and are accepted after that. Free calls return `up`."""

    def __init__(
        self, *outcomes: Outcome, up: bool = True, on_call: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.outcomes, self.up, self.on_call = list(outcomes), up, on_call
        self.paid_calls, self.in_flight, self.max_in_flight = 0, 0, 0
        self.requested: list[str | None] = []
        self.slept = 0.0

    async def answers(self, task_id: str | None) -> bool:
        self.requested.append(task_id)
        return self.up

    async def sleep(self, seconds: float) -> None:
        self.slept += seconds
        await asyncio.sleep(0)

    def brake(self, outage_seconds: float = 600) -> OutageBrake:
        clock = Clock(sleep=self.sleep, monotonic=lambda: self.slept)
        return OutageBrake(self.answers, outage_seconds=outage_seconds, clock=clock)

    async def pay(self, brake: OutageBrake, key: str) -> None:
        async with brake.call(key) as report:
            self.paid_calls += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            await (self.on_call() if self.on_call else asyncio.sleep(0))
            self.in_flight -= 1
            report(self.outcomes.pop(0) if self.outcomes else ACCEPTED)

    async def pay_all(self, brake: OutageBrake, rows: int) -> int:
        """Submits this many rows at once, and returns how many the brake did not let through."""
        ended = await asyncio.gather(*(self.pay(brake, f"row-{row}") for row in range(rows)), return_exceptions=True)
        assert [error for error in ended if not isinstance(error, BudgetError | None)] == []
        return sum(isinstance(error, BudgetError) for error in ended)


async def test_healthy_provider_allows_five_unanswered_calls_at_once() -> None:
    provider = Provider()
    assert await provider.pay_all(provider.brake(), 40) == 0
    assert (provider.paid_calls, provider.max_in_flight, provider.requested) == (40, AT_ONCE, [])


async def test_submissions_resume_after_unclear_answer_once_free_call_succeeds() -> None:
    provider = Provider(ACCEPTED, UNCLEAR)  # the three calls in flight at the same time are accepted
    brake = provider.brake()
    assert await provider.pay_all(brake, 40) == 0
    assert (provider.paid_calls, provider.requested, brake.closed) == (40, ["task_1"], None)


async def test_paid_calls_stop_during_outage_and_resume_automatically() -> None:
    provider = Provider(*[UNCLEAR] * 5, up=False)
    brake = provider.brake()
    all_paid = asyncio.create_task(provider.pay_all(brake, 200))
    while len(provider.requested) < 8:
        await asyncio.sleep(0)
    assert provider.paid_calls == AT_ONCE
    provider.up = True
    assert await all_paid == 0
    assert provider.paid_calls == 200
    assert brake.closed is None


async def test_batch_stops_after_three_unclear_rounds_if_only_free_calls_succeed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Calls in flight together count as one round. After the first hold, only one call is sent at a time."""
    provider = Provider(*[UNCLEAR] * 200)
    brake = provider.brake()
    assert await provider.pay_all(brake, 200) == 200 - (AT_ONCE + 2)
    assert provider.paid_calls == AT_ONCE + 2
    assert brake.closed is not None
    assert "3 times in a row" in brake.closed


async def test_acceptance_resets_count_of_unclear_answers() -> None:
    provider = Provider(UNCLEAR, *[ACCEPTED] * 9, UNCLEAR, *[ACCEPTED] * 9, UNCLEAR, *[ACCEPTED] * 9, UNCLEAR)
    brake = provider.brake()
    assert await provider.pay_all(brake, 60) == 0
    assert brake.closed is None
    assert len(provider.requested) == 4


async def test_nothing_is_sent_after_hold_exceeds_outage_limit() -> None:
    provider = Provider(*[UNCLEAR] * 5, up=False)
    brake = provider.brake(outage_seconds=600)
    assert await provider.pay_all(brake, 200) == 195
    assert provider.slept == 600
    assert 20 < len(provider.requested) < 40
    with pytest.raises(BudgetError, match=r"late was not submitted: APIXO has not answered for 600 s\. Run"):
        await provider.pay(brake, "late")


async def test_at_most_five_calls_hang_at_once() -> None:
    gate = asyncio.Event()

    async def hang() -> None:
        await gate.wait()

    provider = Provider(*[UNCLEAR] * 200, on_call=hang)
    all_paid = asyncio.create_task(provider.pay_all(provider.brake(), 200))
    for _ in range(100):
        await asyncio.sleep(0)
    assert provider.paid_calls == AT_ONCE
    gate.set()
    await all_paid
    assert provider.paid_calls == AT_ONCE + 2


async def test_lost_race_does_not_reset_count_of_unclear_answers() -> None:
    provider = Provider(UNCLEAR, LostRace(), LostRace(), UNCLEAR, LostRace(), UNCLEAR, *[UNCLEAR] * 50)
    brake = provider.brake()
    await provider.pay_all(brake, 60)
    assert brake.closed is not None


async def test_call_that_raises_error_frees_its_slot() -> None:
    provider = Provider()
    brake = provider.brake()

    async def broken(number: int) -> None:
        with pytest.raises(RuntimeError):
            async with brake.call(f"broken-{number}"):
                raise RuntimeError

    await asyncio.gather(*(broken(number) for number in range(20)))
    assert await provider.pay_all(brake, 20) == 0


async def test_unexpected_error_of_a_free_call_ends_the_hold_and_stops_submitting() -> None:
    provider = Provider(UNCLEAR)
    brake = provider.brake()

    async def broken(_: str | None) -> bool:
        raise KeyError("a bug")

    brake._answers = broken
    await provider.pay(brake, "first")
    async with asyncio.timeout(5):
        assert await provider.pay_all(brake, 20) == 20
    assert provider.paid_calls == 1
    assert "unexpected error" in (brake.closed or "")


async def test_closing_brake_during_hold_leaves_no_task_running() -> None:
    provider = Provider(UNCLEAR, up=False)
    brake, before = provider.brake(), asyncio.all_tasks()
    await provider.pay(brake, "first")
    waiting = asyncio.create_task(provider.pay(brake, "second"))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await brake.aclose()
    assert asyncio.all_tasks() == before
