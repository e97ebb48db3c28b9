"""The ledger when the store writes but its reply is lost: every claim and change is applied once."""

from collections.abc import Awaitable, Callable

import pytest

from blocks import VideoArchive
from flows.record.generation import State
from flows.record.ledger import Ledger
from tests.support.store_line import Call, Hook, Line, cut

from .changes import lose, reject, submit, succeed
from .ledgers import SleepingClock, claim_of, current_generation, must_claim, open_ledger, same, warn


def lose_replies(times: int, then: Callable[[], Awaitable[object]] | None = None) -> Hook:
    """MinIO writes the record, but the writer gets no reply."""
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
async def test_claim_with_lost_reply_is_recognized_as_won(archive: VideoArchive, key: str, times: int) -> None:
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock) as ledger:
        line.after = lose_replies(times)
        entry = await ledger.claim(claim_of(key), over=None)
        assert entry is not None
        assert same(await ledger.read(key), entry)
        # The etag is right too: the next write is conditional on it.
        over = await ledger.change(key, reject)
        assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None
    assert len(clock.pauses) == times


@pytest.mark.parametrize("times", [1, 3])
async def test_change_with_lost_reply_is_applied_once(archive: VideoArchive, key: str, times: int) -> None:
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock) as ledger:
        await must_claim(ledger, key)
        line.after = lose_replies(times)
        entry = await ledger.change(key, warn("once"))
        assert same(await ledger.read(key), entry)
    assert entry.generation.warnings == ("once",)


async def test_retry_of_claim_that_never_arrived_does_not_replace_another_claim(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The request never arrives, and another process claims meanwhile. The retry must not overwrite that claim."""
    line, clock = Line(), SleepingClock()
    async with open_ledger(archive, line, clock) as slow:
        was_cut = False

        async def cut_once(request: Call) -> None:
            nonlocal was_cut
            if request.writes_a_record and not was_cut:
                was_cut = True
                await must_claim(ledger, key)
                raise cut()

        line.before = cut_once
        assert await slow.claim(claim_of(key, pid=2), over=None) is None
    assert (await current_generation(ledger, key)).attempt.claimed_by.pid == 1


async def test_claim_given_up_by_others_while_its_reply_was_lost_is_not_won(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    line = Line()
    async with open_ledger(archive, line, SleepingClock()) as slow:
        line.after = lose_replies(1, then=lambda: ledger.change(key, lose))
        assert await slow.claim(claim_of(key), over=None) is None
    assert (await current_generation(ledger, key)).state is State.UNCONFIRMED


async def test_change_with_lost_reply_does_not_undo_later_changes(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    line = Line()
    async with open_ledger(archive, line, SleepingClock()) as slow:
        await must_claim(slow, key)
        line.after = lose_replies(1, then=lambda: ledger.change(key, succeed))
        entry = await slow.change(key, submit)
    assert entry.generation.state is State.SUCCEEDED
    assert same(await ledger.read(key), entry)
