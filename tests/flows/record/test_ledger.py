"""The ledger against a real MinIO, with replies that get lost, outages and others who write at the same time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from apixo import Succeeded
from blocks import VideoArchive
from blocks.errors import StoreRefusedError, StoreUnavailableError
from blocks.object_store import ObjectStore
from blocks.probe import ensure_ready
from deployments.sandbox import SandboxServer
from flows.record import transitions
from flows.record.errors import LedgerError, TransitionError
from flows.record.generation import SCHEMA, Generation, Owner, Problem, State
from flows.record.ledger import LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS, Entry, Ledger, marker_name, record_name
from flows.resources import open_resources
from flows.submission import Submission
from tests.support import KITE, make_api
from tests.support.store_line import Call, Hook, Line, cut, nothing

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NO = Problem(kind="BadRequestError", code="400", message="no credits")


def claim_of(key: str, *, over: Generation | None = None, pid: int = 1) -> Generation:
    return transitions.claim(over, key=key, request=KITE, owner=Owner(host="here", pid=pid), lease_seconds=60, now=NOW)


def submitted(now: Generation) -> Generation:
    return transitions.submitted(now, attempt_number=1, task_id="t1", now=NOW)


def rejected(now: Generation) -> Generation:
    return transitions.rejected(now, attempt_number=now.attempt.number, problem=NO, now=NOW)


def succeeded(now: Generation) -> Generation:
    status = Succeeded(task_id="t1", state="success", result_urls=("https://h.example/v",))
    return transitions.succeeded(now, status, now=NOW)


def warn(text: str) -> Callable[[Generation], Generation]:
    return lambda now: now.model_copy(update={"warnings": (*now.warnings, text)})


class Clock:
    """A clock that moves only while somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.pauses: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds


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


@asynccontextmanager
async def opened(archive: VideoArchive, line: Line | None = None, clock: Clock | None = None) -> AsyncIterator[Ledger]:
    store = (line or Line()).store(archive)
    try:
        await ensure_ready(store)
        if clock is None:
            yield Ledger(store)
        else:
            yield Ledger(store, sleep=clock.sleep, monotonic=clock.monotonic)
    finally:
        await store.aclose()


@pytest.fixture
async def ledger(archive: VideoArchive) -> AsyncIterator[Ledger]:
    """A ledger whose line to MinIO is good."""
    async with opened(archive) as made:
        yield made


@pytest.fixture
async def store(archive: VideoArchive, ledger: Ledger) -> AsyncIterator[ObjectStore]:
    """The bucket itself."""
    made = archive.store()
    yield made
    await made.aclose()


async def must_claim(ledger: Ledger, key: str) -> Entry:
    entry = await ledger.claim(claim_of(key), over=None)
    assert entry is not None
    return entry


async def now_in(ledger: Ledger, key: str) -> Generation:
    entry = await ledger.read(key)
    assert entry is not None
    return entry.generation


async def test_nobody_knows_a_key_that_was_never_claimed(ledger: Ledger, key: str) -> None:
    assert await ledger.read(key) is None
    assert not await ledger.is_open(key)
    with pytest.raises(LedgerError, match=f"no record of {key}"):
        await ledger.change(key, submitted)


async def test_a_claim_is_read_back_as_it_was_written_and_is_open(ledger: Ledger, store: ObjectStore, key: str) -> None:
    entry = await must_claim(ledger, key)
    assert await ledger.read(key) == entry
    assert entry.generation.nonce
    assert entry.generation.model_copy(update={"nonce": ""}) == claim_of(key)
    assert await ledger.is_open(key)
    found = await store.get(f"ledger/{key}.json")
    assert found is not None
    assert json.loads(found.data)["state"] == "claimed"


async def test_of_many_racing_claims_exactly_one_wins(archive: VideoArchive, key: str) -> None:
    racers = 32
    gate = asyncio.Barrier(racers)

    async def one(pid: int) -> Entry | None:
        async with opened(archive) as own:
            await gate.wait()
            return await own.claim(claim_of(key, pid=pid), over=None)

    results = await asyncio.gather(*(one(pid) for pid in range(racers)))
    (winner,) = [entry for entry in results if entry is not None]
    async with opened(archive) as ledger:
        assert await ledger.read(key) == winner


async def test_of_many_racing_claims_over_a_rejected_one_exactly_one_wins(archive: VideoArchive, key: str) -> None:
    async with opened(archive) as ledger:
        await must_claim(ledger, key)
        over = await ledger.change(key, rejected)

        async def one(pid: int) -> Entry | None:
            async with opened(archive) as own:
                return await own.claim(claim_of(key, over=over.generation, pid=pid), over=over)

        results = await asyncio.gather(*(one(pid) for pid in range(16)))
        (winner,) = [entry for entry in results if entry is not None]
        assert await ledger.read(key) == winner
    assert len(winner.generation.attempts) == 2


@pytest.mark.parametrize("times", [1, 3])
async def test_a_claim_whose_reply_is_lost_is_known_to_be_won(archive: VideoArchive, key: str, times: int) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        line.after = lose_replies(times)
        entry = await ledger.claim(claim_of(key), over=None)
        assert entry is not None
        assert await ledger.read(key) == entry
        # The etag is the right one too: the next write stands on it.
        over = await ledger.change(key, rejected)
        assert await ledger.claim(claim_of(key, over=over.generation), over=over) is not None
    assert len(clock.pauses) == times


@pytest.mark.parametrize("times", [1, 3])
async def test_a_change_whose_reply_is_lost_is_made_once(archive: VideoArchive, key: str, times: int) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        await must_claim(ledger, key)
        line.after = lose_replies(times)
        entry = await ledger.change(key, warn("once"))
        assert await ledger.read(key) == entry
    assert entry.generation.warnings == ("once",)


async def test_a_claim_is_not_won_by_a_reply_that_was_lost_before_it_was_written(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The request never arrives, another claims meanwhile, and the repeated request must not take the other's place."""
    line, clock = Line(), Clock()
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
    async with opened(archive, line, Clock()) as slow:
        line.after = lose_replies(1, then=lambda: ledger.change(key, give_up))
        assert await slow.claim(claim_of(key), over=None) is None
    assert (await now_in(ledger, key)).state is State.UNCONFIRMED


async def test_a_change_whose_reply_is_lost_does_not_undo_what_others_built_on_it(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    line = Line()
    async with opened(archive, line, Clock()) as slow:
        await must_claim(slow, key)
        line.after = lose_replies(1, then=lambda: ledger.change(key, succeeded))
        entry = await slow.change(key, submitted)
    assert entry.generation.state is State.SUCCEEDED
    assert await ledger.read(key) == entry


async def test_under_contention_every_change_is_applied_once(archive: VideoArchive, ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    texts = [f"warning {number}" for number in range(12)]

    async def one(text: str) -> None:
        async with opened(archive) as own:
            await own.change(key, warn(text))

    await asyncio.gather(*(one(text) for text in texts))
    assert sorted((await now_in(ledger, key)).warnings) == sorted(texts)


async def test_a_change_that_changesnothing_writesnothing(archive: VideoArchive, key: str) -> None:
    line = Line()
    async with opened(archive, line) as ledger:
        before = await must_claim(ledger, key)
        line.seen.clear()
        assert await ledger.change(key, lambda now: now) == before
        assert line.seen == [f"GET {record_name(key)}"]


async def test_a_change_that_is_not_allowed_writesnothing(ledger: Ledger, key: str) -> None:
    before = await must_claim(ledger, key)
    with pytest.raises(TransitionError):
        await ledger.change(key, lambda now: claim_of(key, over=now))
    assert await ledger.read(key) == before


def outage(clock: Clock, until: float, *, of: Callable[[Call], bool] = lambda _: True) -> Hook:
    """No connection until the clock says so."""

    async def refuse(request: Call) -> None:
        if of(request) and clock.seconds < until:
            raise cut()

    return refuse


async def test_an_outage_is_waited_out_with_growing_pauses(archive: VideoArchive, key: str) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        line.before = outage(clock, until=clock.seconds + 30)
        assert await ledger.claim(claim_of(key), over=None) is not None
    assert 30 <= sum(clock.pauses) <= 30 + LONGEST_PAUSE_SECONDS
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[0] < 1
    assert max(clock.pauses) == LONGEST_PAUSE_SECONDS


CALLS: dict[str, Callable[[Ledger, str], Awaitable[Any]]] = {
    "read": lambda ledger, key: ledger.read(key),
    "claim": lambda ledger, key: ledger.claim(claim_of(key), over=None),
    "change": lambda ledger, key: ledger.change(key, submitted),
    "mark_open": lambda ledger, key: ledger.mark_open(key),
    "close": lambda ledger, key: ledger.close(claim_of(key)),
    "is_open": lambda ledger, key: ledger.is_open(key),
    "ensure_ready": lambda ledger, _: ledger.ensure_ready(),
}


@pytest.mark.parametrize("call", [name for name in CALLS if name != "ensure_ready"])
async def test_patience_ends(archive: VideoArchive, key: str, call: str) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        line.before = outage(clock, until=float("inf"))
        with pytest.raises(StoreUnavailableError):
            await CALLS[call](ledger, key)
    assert PATIENCE_SECONDS - LONGEST_PAUSE_SECONDS <= sum(clock.pauses) <= PATIENCE_SECONDS


async def test_patience_of_a_change_covers_its_reading_and_its_writing_together(
    archive: VideoArchive, key: str
) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        await must_claim(ledger, key)
        reads = outage(clock, until=clock.seconds + 80)
        writes = outage(clock, until=float("inf"), of=lambda request: request.writes_a_record)

        async def both(request: Call) -> None:
            await reads(request)
            await writes(request)

        line.before = both
        with pytest.raises(StoreUnavailableError):
            await ledger.change(key, submitted, patience_seconds=100)
        assert 95 <= sum(clock.pauses) <= 100
        line.before = nothing
        assert (await now_in(ledger, key)).state is State.CLAIMED


async def test_a_long_patience_finds_the_store_again(archive: VideoArchive, key: str) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        await must_claim(ledger, key)
        line.before = outage(clock, until=clock.seconds + 1000)
        entry = await ledger.change(key, submitted, patience_seconds=1800)
    assert entry.generation.state is State.SUBMITTED


async def test_no_patience_is_one_try(archive: VideoArchive, key: str) -> None:
    line, clock = Line(), Clock()
    async with opened(archive, line, clock) as ledger:
        await must_claim(ledger, key)
        line.before = outage(clock, until=float("inf"))
        with pytest.raises(StoreUnavailableError):
            await ledger.change(key, submitted, patience_seconds=0)
    assert clock.pauses == []


async def test_a_refusal_is_not_waited_out(archive: VideoArchive, key: str) -> None:
    clock = Clock()
    gone = archive.model_copy(update={"bucket": f"{archive.bucket}-gone"}).store()
    ledger = Ledger(gone, sleep=clock.sleep, monotonic=clock.monotonic)
    try:
        with pytest.raises(StoreRefusedError, match="NoSuchBucket"):
            await ledger.read(key)
    finally:
        await gone.aclose()
    assert clock.pauses == []


def altered(key: str, **changed: Any) -> bytes:
    told = json.loads(claim_of(key).model_dump_json())
    return json.dumps(told | changed).encode()


UNREADABLE: dict[str, Callable[[str], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda key: altered(key)[:100],
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "no text": lambda _: b"\xff\xfe\x00",
    "html": lambda _: b"<html>502</html>",
    "newer": lambda key: altered(key, schema_version=SCHEMA + 1),
    "newer and of another shape": lambda _: f'{{"schema_version": {SCHEMA + 1}, "phase": "paid"}}'.encode(),
    "of another key": lambda _: altered("another"),
    "unknown state": lambda key: altered(key, state="paused"),
    "no attempts": lambda key: altered(key, attempts=[]),
    "unknown request": lambda key: altered(key, request={"prompt": "x", "seed": 7}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_a_record_that_cannot_be_understood_is_an_error_and_stays_as_it_is(
    kind: str, archive: VideoArchive, ledger: Ledger, store: ObjectStore, sandbox: SandboxServer, key: str
) -> None:
    data = UNREADABLE[kind](key)
    await store.put(record_name(key), data)
    for call in (ledger.read(key), ledger.change(key, submitted)):
        with pytest.raises(LedgerError, match=f"record of {key} .*Nothing is submitted") as caught:
            await call
        assert caught.value.key == key
        assert not caught.value.retryable
    assert await ledger.claim(claim_of(key), over=None) is None
    async with open_resources(make_api(sandbox), archive, pays=True) as resources:
        with pytest.raises(LedgerError):
            await Submission(key, KITE, resources).run()
    assert sandbox.record.submits() == []
    found = await store.get(record_name(key))
    assert found is not None
    assert found.data == data


async def test_a_newer_record_is_called_newer(ledger: Ledger, store: ObjectStore, key: str) -> None:
    for kind in ("newer", "newer and of another shape"):
        await store.put(record_name(key), UNREADABLE[kind](key))
        with pytest.raises(LedgerError, match="newer version of this program"):
            await ledger.read(key)


async def test_a_change_that_an_older_version_needs_not_or_forbids_is_made_to_the_newest(
    ledger: Ledger, key: str
) -> None:
    known = await must_claim(ledger, key)
    newest = await ledger.change(key, warn("by another"))

    def allowed_after_a_warning(now: Generation) -> Generation:
        if not now.warnings:
            raise TransitionError("not yet", key=key)
        return now.model_copy(update={"warnings": (*now.warnings, "allowed")})

    def needed_after_a_warning(now: Generation) -> Generation:
        return warn("needed")(now) if now.warnings else now

    assert known.etag != newest.etag
    assert (await ledger.change(key, allowed_after_a_warning, known=known)).generation.warnings[-1] == "allowed"
    assert (await ledger.change(key, needed_after_a_warning, known=known)).generation.warnings[-1] == "needed"
    assert (await ledger.change(key, lambda now: now, known=known)).generation.warnings[-1] == "needed"


async def test_a_task_belongs_to_whoever_bound_it_first(ledger: Ledger, key: str) -> None:
    owners = await asyncio.gather(*(ledger.tasks.bind("t1", f"{key}-{number}", 1) for number in range(32)))
    assert len({owner.key for owner in owners}) == 1
    assert await ledger.tasks.owner("t1") == owners[0]
    assert await ledger.tasks.owner("t2") is None


@pytest.mark.parametrize("task_id", ["task_1", "a/b c?d#e", "..", "%2e%2e", "\N{SNOWMAN}", "a" * 200])
async def test_any_task_id_can_be_owned(task_id: str, ledger: Ledger, key: str) -> None:
    await ledger.tasks.bind(task_id, key, 1)
    assert (await ledger.tasks.bind(task_id, "another", 2)).key == key
    noted = await ledger.tasks.noted_for(claim_of(key))
    assert noted is not None
    assert (noted[0], noted[1].key) == (task_id, key)
    await ledger.tasks.release(task_id, "another", named=1)
    assert await ledger.tasks.owner(task_id) is not None
    await ledger.tasks.release(task_id, key, named=0)
    assert await ledger.tasks.owner(task_id) is not None
    await ledger.tasks.release(task_id, key, named=1)
    assert await ledger.tasks.owner(task_id) is None


async def test_a_task_that_a_person_named_by_mistake_is_free_again(ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    await ledger.change(key, lambda now: transitions.unconfirmed(now, attempt_number=1, problem=NO, now=NOW))
    for task_id in ("wrong", "right"):
        await ledger.tasks.bind(task_id, key, 1)
        await ledger.change(
            key,
            lambda now: transitions.resolved(now, attempt_number=1, task_id=task_id, now=NOW),  # noqa: B023
        )
    assert await ledger.tasks.owner("wrong") is None
    assert (await ledger.tasks.bind("right", "another", 1)).key == key


async def test_a_task_is_bound_again_to_the_version_that_it_is_written_over(ledger: Ledger, key: str) -> None:
    def named(task_id: str) -> Callable[[Generation], Generation]:
        return lambda now: transitions.resolved(now, attempt_number=1, task_id=task_id, now=NOW)

    await must_claim(ledger, key)
    known = await ledger.change(key, lambda now: transitions.unconfirmed(now, attempt_number=1, problem=NO, now=NOW))
    await ledger.tasks.bind("late", key, 1, naming=known.generation.next_naming)
    await ledger.change(key, named("first"))
    await ledger.change(key, named("late"), known=known)
    owner = await ledger.tasks.owner("late")
    assert owner is not None
    assert owner.naming == 2
    await ledger.tasks.bind("foreign", "another", 1)
    with pytest.raises(LedgerError, match="is that of another"):
        await ledger.change(key, named("foreign"))


async def test_the_same_request_under_another_key_is_found(ledger: Ledger, key: str) -> None:
    first, second, third = (f"{key}-{number}" for number in range(3))
    assert await ledger.duplicate_of(KITE, first, note=True) is None
    assert await ledger.duplicate_of(KITE, first, note=True) is None, "its own"
    assert await ledger.duplicate_of(KITE, second, note=True) == first, "it may be about to be claimed"
    await must_claim(ledger, first)
    assert await ledger.duplicate_of(KITE, second, note=True) == first
    assert await ledger.duplicate_of(KITE, second, note=False) == first
    await ledger.change(first, rejected)
    assert await ledger.duplicate_of(KITE, second, note=False) is None, "nothing was paid for the first one"
    assert await ledger.duplicate_of(KITE, second, note=True) is None
    await must_claim(ledger, second)
    assert await ledger.duplicate_of(KITE, third, note=True) == second


async def test_closing_removes_the_marker_andnothing_else(ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    await ledger.change(key, rejected)
    await ledger.close(await now_in(ledger, key))
    assert not await ledger.is_open(key)
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


async def test_an_end_that_nobody_was_told_of_stays_open(ledger: Ledger, key: str) -> None:
    """Who tells of an end may be slow, and a person's rerun have brought the generation to another end meanwhile."""
    await must_claim(ledger, key)
    told = await ledger.change(key, rejected)
    await ledger.claim(claim_of(key, over=told.generation), over=told)
    await ledger.change(key, rejected)
    await ledger.close(told.generation)
    assert await ledger.open_keys() == [key]
    await ledger.close(await now_in(ledger, key))
    assert await ledger.open_keys() == []


async def test_a_claim_stays_open_when_another_closes_just_before_it_is_written(
    archive: VideoArchive, ledger: Ledger, key: str
) -> None:
    """The marker is written, another removes it and sees nothing new in the record, and only then the claim arrives."""
    await must_claim(ledger, key)
    over = await ledger.change(key, rejected)

    async def close_first(request: Call) -> None:
        if request.writes_a_record:
            await ledger.close(over.generation)

    line = Line()
    async with opened(archive, line) as claiming:
        line.before = close_first
        assert await claiming.claim(claim_of(key, over=over.generation), over=over) is not None
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


async def test_getting_ready_waits_out_an_outage(archive: VideoArchive) -> None:
    line, clock = Line(), Clock()
    store = line.store(archive)
    line.before = outage(clock, until=clock.seconds + 10)
    try:
        await Ledger(store, sleep=clock.sleep, monotonic=clock.monotonic).ensure_ready()
    finally:
        await store.aclose()
    assert 10 <= sum(clock.pauses) <= 10 + LONGEST_PAUSE_SECONDS
