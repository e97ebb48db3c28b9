"""The ledger when the store writes and its reply is lost: every claim and change is made once."""

from collections.abc import Awaitable, Callable

import pytest

from blocks import VideoArchive
from flows.record import transitions
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from tests.support.store_line import Call, Hook, Line, cut

from .ledgers import (
    NO,
    NOW,
    SleepingClock,
    claim_of,
    must_claim,
    now_in,
    opened,
    rejected,
    same,
    submitted,
    succeeded,
    warn,
)


def lose_replies(times: int, then: Callable[[], Awaitable[object]] | None = None) -> Hook:
    """MinIO writes the record, and the writer never hears of it."""
    left = times

    async def lose(request: Call) -> None:
        nonlocal left
        if request.writes_a_record and left:
            left -= 1
            if then is not None:
                await then()
            raise cut()

    return lose


@pytest.mark.parametrize("times", [1, 3])
async def test_a_claim_whose_reply_is_lost_is_known_to_be_won(archive: VideoArchive, key: str, times: int) -> None:
    line, clock = Line(), SleepingClock()
    async with opened(archive, line, clock) as ledger:
        line.after = lose_replies(times)
        entry = await ledger.claim(claim_of(key), over=None)
        assert entry is not None
        assert same(await ledger.read(key), entry)
        # The etag is the right one too: the next write stands on it.
        over = await ledger.change(key, rejected)
        assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None
    assert len(clock.pauses) == times


@pytest.mark.parametrize("times", [1, 3])
async def test_a_change_whose_reply_is_lost_is_made_once(archive: VideoArchive, key: str, times: int) -> None:
    line, clock = Line(), SleepingClock()
    async with opened(archive, line, clock) as ledger:
        await must_claim(ledger, key)
        line.after = lose_replies(times)
        entry = await ledger.change(key, warn("once"))
        assert same(await ledger.read(key), entry)
    assert entry.generation.warnings == ("once",)


async def test_a_claim_is_not_won_by_a_reply_that_was_lost_before_it_was_written(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The request never arrives, another claims meanwhile, and the repeated request must not take the other's place."""
    line, clock = Line(), SleepingClock()
    async with opened(archive, line, clock) as slow:
        was_cut = False

        async def cut_once(request: Call) -> None:
            nonlocal was_cut
            if request.writes_a_record and not was_cut:
                was_cut = True
                await must_claim(ledger, key)
                raise cut()

        line.before = cut_once
        assert await slow.claim(claim_of(key, pid=2), over=None) is None
    assert (await now_in(ledger, key)).attempt.claimed_by.pid == 1


async def test_a_claim_that_others_gave_up_while_its_reply_was_lost_is_not_ours_any_more(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    def give_up(now: Generation) -> Generation:
        return transitions.unconfirmed(now, attempt_number=1, problem=NO, now=NOW)

    line = Line()
    async with opened(archive, line, SleepingClock()) as slow:
        line.after = lose_replies(1, then=lambda: ledger.change(key, give_up))
        assert await slow.claim(claim_of(key), over=None) is None
    assert (await now_in(ledger, key)).state is State.UNCONFIRMED


async def test_a_change_whose_reply_is_lost_does_not_undo_what_others_built_on_it(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    line = Line()
    async with opened(archive, line, SleepingClock()) as slow:
        await must_claim(slow, key)
        line.after = lose_replies(1, then=lambda: ledger.change(key, succeeded))
        entry = await slow.change(key, submitted)
    assert entry.generation.state is State.SUCCEEDED
    assert same(await ledger.read(key), entry)
