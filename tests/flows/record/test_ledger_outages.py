"""The ledger while the store is unavailable or rejects calls: what is retried, and for how long."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from blocks import VideoArchive
from blocks.store_errors import StoreRefusedError, StoreUnavailableError
from flows.record.generation import State
from flows.record.ledger import LONGEST_PAUSE_SECONDS, RETRY_TIMEOUT_SECONDS, Ledger
from tests.support.store_line import Call, Hook, Line, cut, nothing

from .changes import submit
from .ledgers import SleepingClock, claim_of, current_generation, must_claim, open_ledger, warn


def outage(clock: SleepingClock, until: float, *, of: Callable[[Call], bool] = lambda _: True) -> Hook:
    """Every connection fails until the clock reaches `until`."""

    async def fail(request: Call) -> None:
        if of(request) and clock.seconds < until:
            raise cut()

    return fail


async def test_outage_is_retried_with_growing_pauses(archive: VideoArchive, key: str) -> None:
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock) as ledger:
        line.before = outage(clock, until=clock.seconds + 30)
        assert await ledger.claim(claim_of(key), over=None) is not None
    assert 30 <= sum(clock.pauses) <= 30 + LONGEST_PAUSE_SECONDS
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[0] < 1
    assert max(clock.pauses) == LONGEST_PAUSE_SECONDS


CALLS: dict[str, Callable[[Ledger, str], Awaitable[Any]]] = {
    "read": lambda ledger, key: ledger.read(key),
    "claim": lambda ledger, key: ledger.claim(claim_of(key), over=None),
    "change": lambda ledger, key: ledger.change(key, submit),
    "mark_open": lambda ledger, key: ledger.mark_open(key),
    "close": lambda ledger, key: ledger.close(claim_of(key)),
    "is_published": lambda ledger, key: ledger.is_published(key),
    "ensure_ready": lambda ledger, _: ledger.ensure_ready(),
}


@pytest.mark.parametrize("call", [name for name in CALLS if name != "ensure_ready"])
async def test_retries_end_at_the_retry_timeout(archive: VideoArchive, key: str, call: str) -> None:
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock) as ledger:
        line.before = outage(clock, until=float("inf"))
        with pytest.raises(StoreUnavailableError):
            await CALLS[call](ledger, key)
    assert RETRY_TIMEOUT_SECONDS - LONGEST_PAUSE_SECONDS <= sum(clock.pauses) <= RETRY_TIMEOUT_SECONDS


async def test_change_that_loses_every_race_ends_at_the_retry_timeout(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The error is one of the store, so that a paid call goes on recording its task, as in an outage."""
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock) as slow:
        known = await must_claim(slow, key)

        async def another_writes_first(request: Call) -> None:
            if request.writes_a_record:
                await ledger.change(key, warn(f"at {clock.seconds}"))
                clock.seconds += RETRY_TIMEOUT_SECONDS / 2

        line.before = another_writes_first
        with pytest.raises(StoreUnavailableError, match=f"record of {key} was changed by other processes"):
            await slow.change(key, submit, known=known)
        line.before = nothing
        found = await current_generation(slow, key)
        assert (found.state, len(found.warnings)) == (State.CLAIMED, 3)
        assert (await slow.change(key, submit, known=known)).generation.task_id == "t1"


async def test_long_retry_timeout_outlasts_an_outage(archive: VideoArchive, key: str) -> None:
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock, retry_timeout_seconds=1800) as ledger:
        await must_claim(ledger, key)
        line.before = outage(clock, until=clock.seconds + 1000)
        entry = await ledger.change(key, submit)
    assert entry.generation.state is State.SUBMITTED


async def test_zero_retry_timeout_means_one_attempt(archive: VideoArchive, key: str) -> None:
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock, retry_timeout_seconds=0) as ledger:
        await must_claim(ledger, key)
        line.before = outage(clock, until=float("inf"))
        with pytest.raises(StoreUnavailableError):
            await ledger.change(key, submit)
    assert clock.pauses == []


async def test_store_rejection_is_not_retried(archive: VideoArchive, key: str) -> None:
    clock = SleepingClock()
    gone = archive.model_copy(update={"bucket": f"{archive.bucket}-gone"}).store()
    ledger = Ledger(gone, clock=clock)
    try:
        with pytest.raises(StoreRefusedError, match="NoSuchBucket"):
            await ledger.read(key)
    finally:
        await gone.aclose()
    assert clock.pauses == []


async def test_ensure_ready_retries_during_an_outage(archive: VideoArchive) -> None:
    line, clock = Line(), SleepingClock()
    store = line.store(archive)
    line.before = outage(clock, until=clock.seconds + 10)
    try:
        await Ledger(store, clock=clock).ensure_ready()
    finally:
        await store.aclose()
    assert 10 <= sum(clock.pauses) <= 10 + LONGEST_PAUSE_SECONDS
