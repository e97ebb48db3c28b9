"""The markers of open generations: there before the claim, gone after the end, and never gone too early."""

from collections.abc import Callable
from functools import partial

import pytest

from blocks import VideoArchive
from blocks.store_errors import StoreUnavailableError
from flows.clock import Clock
from flows.record import superseded_tasks, transitions
from flows.record.generation import Generation, State
from flows.record.ledger import Entry, Ledger, marker_name, record_name
from tests.support.store_line import Call, Hook, Line, cut, nothing

from .changes import LATER, allow, fail, store
from .ledgers import claim_of, must_claim, now_in, opened, rejected, submitted, succeeded


def closes_first(ledger: Ledger, over: Entry) -> Hook:
    """Another closes what was read, right before a record is written."""

    async def before(request: Call) -> None:
        if request.writes_a_record:
            await ledger.close(over.generation)

    return before


async def test_closing_removes_the_marker_and_nothing_else(ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    await ledger.change(key, rejected)
    await ledger.close(await now_in(ledger, key))
    assert await ledger.is_published(key) is None
    assert (await now_in(ledger, key)).state is State.REJECTED
    await ledger.close(await now_in(ledger, key))
    assert await ledger.open_keys() == []


@pytest.mark.parametrize("how", [None, submitted, lambda now: succeeded(submitted(now))])
async def test_a_generation_with_work_left_cannot_be_closed(
    how: Callable[[Generation], Generation] | None, ledger: Ledger, key: str
) -> None:
    await must_claim(ledger, key)
    if how is not None:
        await ledger.change(key, how)
    await ledger.close(await now_in(ledger, key))
    assert await ledger.open_keys() == [key]


@pytest.mark.parametrize("moment", ["before the marker goes", "after the marker went"])
async def test_a_claim_made_while_another_closes_stays_open(
    moment: str, archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    await must_claim(ledger, key)
    over = await ledger.change(key, rejected)

    async def claim_again(request: Call) -> None:
        if request.method == "DELETE":
            assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None

    line = Line()
    async with opened(archive, line) as closing:
        if moment.startswith("before"):
            line.before = claim_again
        else:
            line.after = claim_again
        await closing.close(over.generation)
    assert await ledger.open_keys() == [key]


async def test_a_claim_made_while_another_leaves_it_to_the_collector_has_its_end_published(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The failed one has another paid task. Its marker, which says `published`, comes after that of the claim."""
    await must_claim(ledger, key)
    await ledger.change(key, submitted)
    await ledger.change(key, partial(superseded_tasks.also_taken, attempt_number=1, task_id="other", now=LATER))
    over = await ledger.change(key, lambda now: allow(fail(now)))

    async def claim_again(request: Call) -> None:
        if request == ("PUT", marker_name(key)):
            line.before = nothing
            assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None

    line = Line()
    async with opened(archive, line) as closing:
        line.before = claim_again
        await closing.close(over.generation)
    assert await ledger.is_published(key) is False


async def test_an_end_that_nobody_was_notified_of_stays_open(ledger: Ledger, key: str) -> None:
    """Who tells of an end may be slow, and a person's rerun have brought the generation to another end meanwhile."""
    await must_claim(ledger, key)
    reported = await ledger.change(key, rejected)
    await ledger.claim(claim_of(key, over=reported.generation), over=reported)
    await ledger.change(key, rejected)
    await ledger.close(reported.generation)
    assert await ledger.open_keys() == [key]
    await ledger.close(await now_in(ledger, key))
    assert await ledger.open_keys() == []


async def test_a_claim_stays_open_when_another_closes_just_before_it_is_written(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The marker is written, another removes it and sees nothing new in the record, and only then the claim arrives."""
    await must_claim(ledger, key)
    over = await ledger.change(key, rejected)

    line = Line()
    async with opened(archive, line) as claiming:
        line.before = closes_first(ledger, over)
        assert await claiming.claim(claim_of(key, over=over.generation), over=over) is not None
    assert await ledger.open_keys() == [key]


async def test_a_claim_whose_reply_is_lost_for_good_stays_open_all_the_same(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """It may stand, so the collector has to find it, also where another has just removed its marker."""
    await must_claim(ledger, key)
    over = await ledger.change(key, rejected)

    async def lose_replies(request: Call) -> None:
        if request.name == record_name(key):
            line.before = nothing
            raise cut()

    async def give_up(_: float) -> None:
        passed[0] += 3600

    line, passed = Line(), [0.0]
    async with opened(archive, line, Clock(sleep=give_up, monotonic=lambda: passed[0])) as claiming:
        line.before, line.after = closes_first(ledger, over), lose_replies
        with pytest.raises(StoreUnavailableError):
            await claiming.claim(claim_of(key, over=over.generation), over=over)
    assert (await now_in(ledger, key)).state is State.CLAIMED
    assert await ledger.open_keys() == [key]


@pytest.mark.parametrize("closes", ["long before", "just before the write"])
async def test_a_late_answer_to_what_was_closed_stays_open(
    closes: str, archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """An attempt was given up, a person allowed another, the collector closed it. Then its answer comes: it is paid."""
    await must_claim(ledger, key)
    over = await ledger.change(key, rejected)
    if closes == "long before":
        await ledger.close(over.generation)

    async def close_first(request: Call) -> None:
        if closes == "just before the write" and request.writes_a_record:
            await ledger.close(over.generation)

    line = Line()
    async with opened(archive, line) as answering:
        line.before = close_first
        assert (await answering.change(key, submitted)).generation.state is State.SUBMITTED
        markers = [number for number, seen in enumerate(line.seen) if seen == f"PUT {marker_name(key)}"]
        (write,) = [number for number, seen in enumerate(line.seen) if seen == f"PUT {record_name(key)}"]
        assert markers[0] < write < markers[1]
    assert await ledger.open_keys() == [key]


def one_more_task(now: Generation) -> Generation:
    """Its callback has named another task, which was paid for as well."""
    return superseded_tasks.also_taken(now, attempt_number=1, task_id="other", now=LATER)


async def archived(ledger: Ledger, key: str, *changes: Callable[[Generation], Generation]) -> Generation:
    await must_claim(ledger, key)
    for change in (submitted, *changes, succeeded, store):
        await ledger.change(key, change)
    return await now_in(ledger, key)


async def test_what_is_closed_and_gains_a_paid_task_is_open_again_and_not_published_anew(
    ledger: Ledger, key: str
) -> None:
    await ledger.close(await archived(ledger, key))
    assert await ledger.open_keys() == []
    await ledger.change(key, one_more_task)
    assert await ledger.is_published(key) is True


async def test_an_end_that_is_not_published_yet_stays_so_when_one_more_task_is_named(ledger: Ledger, key: str) -> None:
    await archived(ledger, key)
    await ledger.change(key, one_more_task)
    assert await ledger.is_published(key) is False


async def test_what_is_archived_stays_open_for_its_other_paid_task(ledger: Ledger, key: str) -> None:
    found = await archived(ledger, key, one_more_task)
    assert not found.may_gain_a_task, "nobody would look again"
    await ledger.close(found)
    assert await ledger.is_published(key) is True


async def test_a_paid_task_that_is_named_while_another_closes_keeps_it_open(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """Only its callback has named its task, so the reply to the paid call may name another one at any time."""
    await must_claim(ledger, key)
    by_callback = partial(transitions.submitted, attempt_number=1, task_id="t1", named_by="callback", now=LATER)
    for change in (by_callback, succeeded, store):
        await ledger.change(key, change)

    async def name_one_more(request: Call) -> None:
        if request.method == "DELETE":
            await ledger.change(key, one_more_task)

    line = Line()
    async with opened(archive, line) as closing:
        line.before = name_one_more
        await closing.close(await now_in(ledger, key))
    assert await ledger.is_published(key) is True


async def test_a_claim_stands_though_its_marker_cannot_be_written_once_more(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    await must_claim(ledger, key)
    over = await ledger.change(key, rejected)

    async def refuse(_: Call) -> None:
        raise cut()

    async def refuse_what_follows(request: Call) -> None:
        if request.writes_a_record:
            line.before = refuse

    line = Line()
    async with opened(archive, line) as claiming:
        line.before = refuse_what_follows
        assert await claiming.claim(claim_of(key, over=over.generation), over=over) is not None
    assert line.seen[-1] == f"PUT {marker_name(key)}"
    assert await ledger.open_keys() == [key]


async def test_the_marker_is_there_before_the_claim(archive: VideoArchive, key: str) -> None:
    line = Line()
    async with opened(archive, line) as ledger:
        line.seen.clear()
        await must_claim(ledger, key)
        assert line.seen.index(f"PUT {marker_name(key)}") < line.seen.index(f"PUT {record_name(key)}")


async def test_all_keys_and_the_open_ones_are_listed_sorted(ledger: Ledger) -> None:
    keys = ["a", "a-b", "a.b", "a.json", "a..b", "a.", "0", "z" * 128]
    for key in keys:
        await must_claim(ledger, key)
    for key in ("a", "a.json", "z" * 128):
        await ledger.change(key, rejected)
        await ledger.close(await now_in(ledger, key))
    assert await ledger.keys() == sorted(keys)
    assert await ledger.open_keys() == ["0", "a-b", "a.", "a..b", "a.b"]
    for key in keys:
        assert (await now_in(ledger, key)).key == key


async def test_the_keys_of_an_empty_ledger(ledger: Ledger) -> None:
    assert await ledger.keys() == []
    assert await ledger.open_keys() == []
