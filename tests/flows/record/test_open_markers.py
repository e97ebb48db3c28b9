"""The markers of open generations: written before the claim, removed after the end, and never too early."""

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

from .changes import LATER, allow, fail, reject, store, submit, succeed
from .ledgers import claim_of, current_generation, must_claim, open_ledger


def close_before_write(ledger: Ledger, over: Entry) -> Hook:
    """Another process closes the generation as it was read, right before a record is written."""

    async def before(request: Call) -> None:
        if request.writes_a_record:
            await ledger.close(over.generation)

    return before


async def test_close_removes_only_the_marker(ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    await ledger.change(key, reject)
    await ledger.close(await current_generation(ledger, key))
    assert await ledger.is_published(key) is None
    assert (await current_generation(ledger, key)).state is State.REJECTED
    await ledger.close(await current_generation(ledger, key))
    assert await ledger.open_keys() == []


@pytest.mark.parametrize("transition", [None, submit, lambda now: succeed(submit(now))])
async def test_generation_with_work_left_cannot_be_closed(
    transition: Callable[[Generation], Generation] | None, ledger: Ledger, key: str
) -> None:
    await must_claim(ledger, key)
    if transition is not None:
        await ledger.change(key, transition)
    await ledger.close(await current_generation(ledger, key))
    assert await ledger.open_keys() == [key]


@pytest.mark.parametrize("moment", ["before the marker is removed", "after the marker is removed"])
async def test_claim_made_during_a_concurrent_close_stays_open(
    moment: str, archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    await must_claim(ledger, key)
    over = await ledger.change(key, reject)

    async def claim_again(request: Call) -> None:
        if request.method == "DELETE":
            assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None

    line = Line()
    async with open_ledger(archive, line) as closing:
        if moment.startswith("before"):
            line.before = claim_again
        else:
            line.after = claim_again
        await closing.close(over.generation)
    assert await ledger.open_keys() == [key]


async def test_claim_made_during_a_concurrent_close_is_not_marked_published(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The close writes `published` into the marker because of another paid task, but only after the new claim."""
    await must_claim(ledger, key)
    await ledger.change(key, submit)
    await ledger.change(key, second_task)
    over = await ledger.change(key, lambda now: allow(fail(now)))

    async def claim_again(request: Call) -> None:
        if request == ("PUT", marker_name(key)):
            line.before = nothing
            assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None

    line = Line()
    async with open_ledger(archive, line) as closing:
        line.before = claim_again
        await closing.close(over.generation)
    assert await ledger.is_published(key) is False


async def test_unpublished_end_stays_open(ledger: Ledger, key: str) -> None:
    """Publishing an end may be slow, and a user's rerun may have led to another end meanwhile."""
    await must_claim(ledger, key)
    published = await ledger.change(key, reject)
    await ledger.claim(claim_of(key, over=published.generation), over=published)
    await ledger.change(key, reject)
    await ledger.close(published.generation)
    assert await ledger.open_keys() == [key]
    await ledger.close(await current_generation(ledger, key))
    assert await ledger.open_keys() == []


async def test_claim_stays_open_when_closed_just_before_its_write(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The marker is written, another process removes it because the record is unchanged, and then the claim arrives."""
    await must_claim(ledger, key)
    over = await ledger.change(key, reject)

    line = Line()
    async with open_ledger(archive, line) as claiming:
        line.before = close_before_write(ledger, over)
        assert await claiming.claim(claim_of(key, over=over.generation), over=over) is not None
    assert await ledger.open_keys() == [key]


async def test_claim_whose_reply_never_arrives_stays_open(archive: VideoArchive, ledger: Ledger, key: str) -> None:
    """The claim may exist, so the collector must find it, even if another process has just removed its marker."""
    await must_claim(ledger, key)
    over = await ledger.change(key, reject)

    async def lose_replies(request: Call) -> None:
        if request.name == record_name(key):
            line.before = nothing
            raise cut()

    async def give_up(_: float) -> None:
        passed[0] += 3600

    line, passed = Line(), [0.0]
    async with open_ledger(archive, line, Clock(sleep=give_up, monotonic=lambda: passed[0])) as claiming:
        line.before, line.after = close_before_write(ledger, over), lose_replies
        with pytest.raises(StoreUnavailableError):
            await claiming.claim(claim_of(key, over=over.generation), over=over)
    assert (await current_generation(ledger, key)).state is State.CLAIMED
    assert await ledger.open_keys() == [key]


@pytest.mark.parametrize("closes", ["long before", "just before the write"])
async def test_late_acceptance_reopens_a_closed_generation(
    closes: str, archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """An attempt was given up, and the collector closed the generation. Then its answer arrives: it was paid."""
    await must_claim(ledger, key)
    over = await ledger.change(key, reject)
    if closes == "long before":
        await ledger.close(over.generation)

    line = Line()
    async with open_ledger(archive, line) as answering:
        if closes == "just before the write":
            line.before = close_before_write(ledger, over)
        assert (await answering.change(key, submit)).generation.state is State.SUBMITTED
        markers = [number for number, seen in enumerate(line.seen) if seen == f"PUT {marker_name(key)}"]
        (write,) = [number for number, seen in enumerate(line.seen) if seen == f"PUT {record_name(key)}"]
        assert markers[0] < write < markers[1]
    assert await ledger.open_keys() == [key]


def second_task(now: Generation) -> Generation:
    """A callback named another task, which was paid for as well."""
    return superseded_tasks.also_taken(now, attempt_number=1, task_id="other", now=LATER)


async def archived(ledger: Ledger, key: str, *changes: Callable[[Generation], Generation]) -> Generation:
    await must_claim(ledger, key)
    for change in (submit, *changes, succeed, store):
        await ledger.change(key, change)
    return await current_generation(ledger, key)


async def test_closed_generation_that_gains_a_paid_task_reopens_without_republishing(ledger: Ledger, key: str) -> None:
    await ledger.close(await archived(ledger, key))
    assert await ledger.open_keys() == []
    await ledger.change(key, second_task)
    assert await ledger.is_published(key) is True


async def test_unpublished_end_stays_unpublished_when_another_task_is_named(ledger: Ledger, key: str) -> None:
    await archived(ledger, key)
    await ledger.change(key, second_task)
    assert await ledger.is_published(key) is False


async def test_archived_generation_stays_open_for_its_other_paid_task(ledger: Ledger, key: str) -> None:
    found = await archived(ledger, key, second_task)
    assert not found.may_gain_a_task, "nothing would check it again"
    await ledger.close(found)
    assert await ledger.is_published(key) is True


async def test_paid_task_named_during_a_concurrent_close_keeps_it_open(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """Only a callback has named its task, so the reply to the paid call may still name another one."""
    await must_claim(ledger, key)
    by_callback = partial(transitions.submitted, attempt_number=1, task_id="t1", named_by="callback", now=LATER)
    for change in (by_callback, succeed, store):
        await ledger.change(key, change)

    async def name_second_task(request: Call) -> None:
        if request.method == "DELETE":
            await ledger.change(key, second_task)

    line = Line()
    async with open_ledger(archive, line) as closing:
        line.before = name_second_task
        await closing.close(await current_generation(ledger, key))
    assert await ledger.is_published(key) is True


async def test_claim_succeeds_even_if_its_marker_cannot_be_rewritten(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    await must_claim(ledger, key)
    over = await ledger.change(key, reject)

    async def cut_off(_: Call) -> None:
        raise cut()

    async def cut_off_after_the_record(request: Call) -> None:
        if request.writes_a_record:
            line.before = cut_off

    line = Line()
    async with open_ledger(archive, line) as claiming:
        line.before = cut_off_after_the_record
        assert await claiming.claim(claim_of(key, over=over.generation), over=over) is not None
    assert line.seen[-1] == f"PUT {marker_name(key)}"
    assert await ledger.open_keys() == [key]


async def test_marker_is_written_before_the_claim(archive: VideoArchive, key: str) -> None:
    line = Line()
    async with open_ledger(archive, line) as ledger:
        line.seen.clear()
        await must_claim(ledger, key)
        assert line.seen.index(f"PUT {marker_name(key)}") < line.seen.index(f"PUT {record_name(key)}")


async def test_all_keys_and_open_keys_are_listed_sorted(ledger: Ledger) -> None:
    keys = ["a", "a-b", "a.b", "a.json", "a..b", "a.", "0", "z" * 128]
    for key in keys:
        await must_claim(ledger, key)
    for key in ("a", "a.json", "z" * 128):
        await ledger.change(key, reject)
        await ledger.close(await current_generation(ledger, key))
    assert await ledger.keys() == sorted(keys)
    assert await ledger.open_keys() == ["0", "a-b", "a.", "a..b", "a.b"]
    for key in keys:
        assert (await current_generation(ledger, key)).key == key


async def test_empty_ledger_has_no_keys(ledger: Ledger) -> None:
    assert await ledger.keys() == []
    assert await ledger.open_keys() == []
