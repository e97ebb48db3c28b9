"""The ledger against a real MinIO, with replies that get lost, outages and others who write at the same time."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from apixo import Succeeded
from blocks import VideoArchive
from blocks.errors import StoreRefusedError, StoreUnavailableError
from blocks.object_store import ObjectStore
from deployments.sandbox import SandboxServer
from flows import generation as transitions
from flows.errors import LedgerError
from flows.generation import Generation, Owner, Problem, State
from flows.ledger import LONGEST_PAUSE_SECONDS, PATIENCE_SECONDS, Entry, Ledger, marker_name, record_name
from flows.resources import open_resources
from flows.steps.submit import Submission
from tests.support import KITE, make_api

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


Hook = Callable[[httpx.Request], Awaitable[None]]


async def _nothing(_: httpx.Request) -> None: ...


class Line(httpx.AsyncBaseTransport):
    """The way to MinIO. `before` runs before a request is passed on, `after` before its reply is handed back."""

    def __init__(self) -> None:
        self._inner = httpx.AsyncHTTPTransport()
        self.before: Hook = _nothing
        self.after: Hook = _nothing
        self.seen: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(f"{request.method} {request.url.path.split('/', 2)[2]}")
        await self.before(request)
        response = await self._inner.handle_async_request(request)
        await response.aread()
        await self.after(request)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


def is_record_write(request: httpx.Request) -> bool:
    return request.method == "PUT" and "/ledger/" in request.url.path


def lose_replies(times: int, then: Callable[[], Awaitable[object]] | None = None) -> Hook:
    """MinIO writes the record, and the writer never hears of it."""
    left = times

    async def lose(request: httpx.Request) -> None:
        nonlocal left
        if is_record_write(request) and left:
            left -= 1
            if then is not None:
                await then()
            raise httpx.ReadError("cut", request=request)

    return lose


@asynccontextmanager
async def opened(archive: VideoArchive, line: Line | None = None, clock: Clock | None = None) -> AsyncIterator[Ledger]:
    store = archive.store(transport=line)
    try:
        await store.ensure_ready()
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
        cut = False

        async def cut_once(request: httpx.Request) -> None:
            nonlocal cut
            if is_record_write(request) and not cut:
                cut = True
                await must_claim(ledger, key)
                raise httpx.WriteError("cut", request=request)

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


async def test_a_change_that_changes_nothing_writes_nothing(archive: VideoArchive, key: str) -> None:
    line = Line()
    async with opened(archive, line) as ledger:
        before = await must_claim(ledger, key)
        line.seen.clear()
        assert await ledger.change(key, lambda now: now) == before
        assert line.seen == [f"GET {record_name(key)}"]


async def test_a_change_that_is_not_allowed_writes_nothing(ledger: Ledger, key: str) -> None:
    before = await must_claim(ledger, key)
    with pytest.raises(transitions.TransitionError):
        await ledger.change(key, lambda now: transitions.archived(now, objects=(), warnings=(), now=NOW))
    assert await ledger.read(key) == before


def outage(clock: Clock, until: float, *, of: Callable[[httpx.Request], bool] = lambda _: True) -> Hook:
    """No connection until the clock says so."""

    async def refuse(request: httpx.Request) -> None:
        if of(request) and clock.seconds < until:
            raise httpx.ConnectError("refused", request=request)

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
        writes = outage(clock, until=float("inf"), of=is_record_write)

        async def both(request: httpx.Request) -> None:
            await reads(request)
            await writes(request)

        line.before = both
        with pytest.raises(StoreUnavailableError):
            await ledger.change(key, submitted, patience_seconds=100)
        assert 95 <= sum(clock.pauses) <= 100
        line.before = _nothing
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
    "newer": lambda key: altered(key, schema_version=2),
    "newer and of another shape": lambda _: b'{"schema_version": 2, "phase": "paid"}',
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
    async with open_resources(make_api(sandbox), archive) as resources:
        with pytest.raises(LedgerError):
            await Submission(key, KITE, resources, _never).run()
    assert sandbox.record.submits() == []
    found = await store.get(record_name(key))
    assert found is not None
    assert found.data == data


async def _never(_: object) -> None:
    return None


async def test_a_newer_record_is_called_newer(ledger: Ledger, store: ObjectStore, key: str) -> None:
    for kind in ("newer", "newer and of another shape"):
        await store.put(record_name(key), UNREADABLE[kind](key))
        with pytest.raises(LedgerError, match="newer version of this program"):
            await ledger.read(key)


async def test_a_task_is_found_and_a_broken_record_bothers_only_whose_task_it_mentions(
    ledger: Ledger, store: ObjectStore, key: str
) -> None:
    for name in (key, f"{key}-2"):
        await ledger.claim(claim_of(name), over=None)
        await ledger.change(name, lambda now: now if now.key != key else submitted(now))
    await store.put(record_name(f"{key}-broken"), b'{"attempts": [{"task_id": "t7"')
    assert await ledger.key_of_task("t1", but="another") == key
    assert await ledger.key_of_task("t1", but=key) is None
    assert await ledger.key_of_task("t7", but=key) == f"{key}-broken"
    assert await ledger.key_of_task("t8", but=key) is None


async def test_closing_removes_the_marker_and_nothing_else(ledger: Ledger, key: str) -> None:
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

    async def claim_again(request: httpx.Request) -> None:
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

    async def close_first(request: httpx.Request) -> None:
        if is_record_write(request):
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

    async def close_first(request: httpx.Request) -> None:
        if closes == "just before the write" and is_record_write(request):
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
    store = archive.store(transport=line)
    line.before = outage(clock, until=clock.seconds + 10)
    try:
        await Ledger(store, sleep=clock.sleep, monotonic=clock.monotonic).ensure_ready()
    finally:
        await store.aclose()
    assert 10 <= sum(clock.pauses) <= 10 + LONGEST_PAUSE_SECONDS
