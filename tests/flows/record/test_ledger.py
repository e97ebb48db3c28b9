"""The ledger against a real MinIO: claims, changes, records that cannot be read, and whose a task is."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from deployments.sandbox import SandboxServer
from flows.record import transitions
from flows.record.generation import SCHEMA, Generation
from flows.record.indexes import task_name
from flows.record.ledger import Entry, Ledger, record_name
from flows.record.pipeline_errors import LedgerError, TransitionError
from flows.resources import PayingResources
from flows.submission import Submission
from tests.support import KITE, make_api
from tests.support.store_line import Line

from .ledgers import NO, NOW, claim_of, must_claim, now_in, opened, rejected, same, submitted, warn


async def test_nobody_knows_a_key_that_was_never_claimed(ledger: Ledger, key: str) -> None:
    assert await ledger.read(key) is None
    assert await ledger.is_published(key) is None
    with pytest.raises(LedgerError, match=f"no longer has a record of {key}"):
        await ledger.change(key, submitted)


async def test_a_claim_is_read_back_as_it_was_written_and_is_open(ledger: Ledger, store: ObjectStore, key: str) -> None:
    entry = await must_claim(ledger, key)
    assert same(await ledger.read(key), entry)
    assert entry.generation.nonce
    assert entry.generation.model_copy(update={"nonce": ""}) == claim_of(key)
    assert await ledger.is_published(key) is not None
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
        assert same(await ledger.read(key), winner)


async def test_of_many_racing_claims_over_a_rejected_one_exactly_one_wins(archive: VideoArchive, key: str) -> None:
    async with opened(archive) as ledger:
        await must_claim(ledger, key)
        over = await ledger.change(key, rejected)

        async def one(pid: int) -> Entry | None:
            async with opened(archive) as own:
                return await own.claim(claim_of(key, over=over.generation, pid=pid), over=over)

        results = await asyncio.gather(*(one(pid) for pid in range(16)))
        (winner,) = [entry for entry in results if entry is not None]
        assert same(await ledger.read(key), winner)
    assert len(winner.generation.attempts) == 2


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
        assert same(await ledger.change(key, lambda now: now), before)
        assert line.seen == [f"GET {record_name(key)}"]


async def test_a_change_that_is_not_allowed_writes_nothing(ledger: Ledger, key: str) -> None:
    before = await must_claim(ledger, key)
    with pytest.raises(TransitionError):
        await ledger.change(key, lambda now: claim_of(key, over=now))
    assert same(await ledger.read(key), before)


def altered(key: str, **changed: Any) -> bytes:
    reported = json.loads(claim_of(key).model_dump_json())
    return json.dumps(reported | changed).encode()


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
    async with PayingResources(make_api(sandbox), archive) as resources:
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


async def test_an_owner_that_cannot_be_read_is_named_and_says_nothing_about_paying(
    store: ObjectStore, ledger: Ledger
) -> None:
    """It is read for a submission that has been accepted, too."""
    await store.put(task_name("t1"), b"")
    for call in (ledger.tasks.owner("t1"), ledger.tasks.bind("t1", "kite", 1)):
        with pytest.raises(LedgerError, match=task_name("t1")) as caught:
            await call
        assert "submit" not in str(caught.value)


async def test_a_task_belongs_to_whoever_bound_it_first(ledger: Ledger, key: str) -> None:
    owners = await asyncio.gather(*(ledger.tasks.bind("t1", f"{key}-{number}", 1) for number in range(32)))
    assert len({owner.key for owner in owners}) == 1
    assert await ledger.tasks.owner("t1") == owners[0]
    assert await ledger.tasks.owner("t2") is None


@pytest.mark.parametrize("task_id", ["task_1", "a/b c?d#e", "..", "%2e%2e", "\N{SNOWMAN}", "a" * 200, "a/" * 100])
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
    with pytest.raises(LedgerError, match="belongs to another"):
        await ledger.change(key, named("foreign"))
    assert "foreign" not in (await now_in(ledger, key)).task_ids, "its owner comes before the record"


async def test_what_a_fast_clock_says_was_changed_later_is_found(ledger: Ledger, key: str) -> None:
    """What a dead run has reserved is counted by these records: one that is missed would be money to spend again."""
    await must_claim(ledger, key)
    by_a_fast_clock = datetime.now(UTC) + timedelta(minutes=14)
    assert [found.key for found in await ledger.changed_since(by_a_fast_clock)] == [key]


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
