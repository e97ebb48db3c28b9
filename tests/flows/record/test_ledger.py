"""The ledger against a real MinIO: claims, changes, unreadable records, and task ownership."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from deployments.sandbox import SandboxServer
from flows.record.generation import SCHEMA, Generation
from flows.record.indexes import task_name
from flows.record.ledger import Entry, Ledger, record_name
from flows.record.pipeline_errors import LedgerError, TransitionError
from flows.resources import PayingResources
from flows.submission import Submission
from tests.support import KITE, make_api
from tests.support.store_line import Line

from .changes import lose, reject, resolve, submit
from .ledgers import claim_of, current_generation, must_claim, open_ledger, same, warn


async def test_unclaimed_key_has_no_record(ledger: Ledger, key: str) -> None:
    assert await ledger.read(key) is None
    assert await ledger.is_published(key) is None
    with pytest.raises(LedgerError, match=f"no longer has a record of {key}"):
        await ledger.change(key, submit)


async def test_claim_is_read_back_as_written_and_is_open(ledger: Ledger, store: ObjectStore, key: str) -> None:
    entry = await must_claim(ledger, key)
    assert same(await ledger.read(key), entry)
    assert entry.generation.nonce
    assert entry.generation.model_copy(update={"nonce": ""}) == claim_of(key)
    assert await ledger.is_published(key) is not None
    found = await store.get(f"ledger/{key}.json")
    assert found is not None
    assert json.loads(found.data)["state"] == "claimed"


async def test_exactly_one_of_many_racing_claims_wins(archive: VideoArchive, key: str) -> None:
    racers = 32
    gate = asyncio.Barrier(racers)

    async def race(pid: int) -> Entry | None:
        async with open_ledger(archive) as own:
            await gate.wait()
            return await own.claim(claim_of(key, pid=pid), over=None)

    results = await asyncio.gather(*(race(pid) for pid in range(racers)))
    (winner,) = [entry for entry in results if entry is not None]
    async with open_ledger(archive) as ledger:
        assert same(await ledger.read(key), winner)


async def test_exactly_one_of_many_racing_claims_over_a_rejected_one_wins(archive: VideoArchive, key: str) -> None:
    async with open_ledger(archive) as ledger:
        await must_claim(ledger, key)
        over = await ledger.change(key, reject)

        async def race(pid: int) -> Entry | None:
            async with open_ledger(archive) as own:
                return await own.claim(claim_of(key, over=over.generation, pid=pid), over=over)

        results = await asyncio.gather(*(race(pid) for pid in range(16)))
        (winner,) = [entry for entry in results if entry is not None]
        assert same(await ledger.read(key), winner)
    assert len(winner.generation.attempts) == 2


async def test_concurrent_changes_are_each_applied_once(archive: VideoArchive, ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    texts = [f"warning {number}" for number in range(12)]

    async def race(text: str) -> None:
        async with open_ledger(archive) as own:
            await own.change(key, warn(text))

    await asyncio.gather(*(race(text) for text in texts))
    assert sorted((await current_generation(ledger, key)).warnings) == sorted(texts)


async def test_no_op_change_writes_nothing(archive: VideoArchive, key: str) -> None:
    line = Line()
    async with open_ledger(archive, line) as ledger:
        before = await must_claim(ledger, key)
        line.seen.clear()
        assert same(await ledger.change(key, lambda now: now), before)
        assert line.seen == [f"GET {record_name(key)}"]


async def test_disallowed_change_writes_nothing(ledger: Ledger, key: str) -> None:
    before = await must_claim(ledger, key)
    with pytest.raises(TransitionError):
        await ledger.change(key, lambda now: claim_of(key, over=now))
    assert same(await ledger.read(key), before)


def altered_record(key: str, **changed: Any) -> bytes:
    fields = json.loads(claim_of(key).model_dump_json())
    return json.dumps(fields | changed).encode()


UNREADABLE: dict[str, Callable[[str], bytes]] = {
    "empty": lambda _: b"",
    "truncated": lambda key: altered_record(key)[:100],
    "null": lambda _: b"null",
    "a list": lambda _: b"[]",
    "not text": lambda _: b"\xff\xfe\x00",
    "html": lambda _: b"<html>502</html>",
    "newer": lambda key: altered_record(key, schema_version=SCHEMA + 1),
    "newer with another structure": lambda _: f'{{"schema_version": {SCHEMA + 1}, "phase": "paid"}}'.encode(),
    "for another key": lambda _: altered_record("another"),
    "unknown state": lambda key: altered_record(key, state="paused"),
    "no attempts": lambda key: altered_record(key, attempts=[]),
    "unknown request": lambda key: altered_record(key, request={"prompt": "x", "seed": 7}),
}


@pytest.mark.parametrize("kind", UNREADABLE)
async def test_unreadable_record_raises_error_and_is_left_unchanged(
    kind: str, archive: VideoArchive, ledger: Ledger, store: ObjectStore, sandbox: SandboxServer, key: str
) -> None:
    data = UNREADABLE[kind](key)
    await store.put(record_name(key), data)
    for call in (ledger.read(key), ledger.change(key, submit)):
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


async def test_error_for_record_of_newer_version_says_so(ledger: Ledger, store: ObjectStore, key: str) -> None:
    for kind in ("newer", "newer with another structure"):
        await store.put(record_name(key), UNREADABLE[kind](key))
        with pytest.raises(LedgerError, match="newer version of this program"):
            await ledger.read(key)


async def test_change_based_on_stale_record_is_applied_to_the_newest(ledger: Ledger, key: str) -> None:
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


async def test_error_for_unreadable_task_owner_names_object_but_not_submission(
    store: ObjectStore, ledger: Ledger
) -> None:
    """The owner is also read after a submission was accepted, so the error must not say that nothing was submitted."""
    await store.put(task_name("t1"), b"")
    for call in (ledger.tasks.owner("t1"), ledger.tasks.bind("t1", "kite", 1)):
        with pytest.raises(LedgerError, match=task_name("t1")) as caught:
            await call
        assert "submit" not in str(caught.value)


async def test_first_key_to_bind_a_task_owns_it(ledger: Ledger, key: str) -> None:
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


async def test_task_named_by_mistake_is_released(ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    await ledger.change(key, lose)
    for task_id in ("wrong", "right"):
        await ledger.tasks.bind(task_id, key, 1)
        await ledger.change(key, partial(resolve, task_id=task_id))
    assert await ledger.tasks.owner("wrong") is None
    assert (await ledger.tasks.bind("right", "another", 1)).key == key


async def test_change_rebinds_task_to_the_record_version_it_overwrites(ledger: Ledger, key: str) -> None:
    await must_claim(ledger, key)
    known = await ledger.change(key, lose)
    await ledger.tasks.bind("late", key, 1, naming=known.generation.next_naming)
    await ledger.change(key, partial(resolve, task_id="first"))
    await ledger.change(key, partial(resolve, task_id="late"), known=known)
    owner = await ledger.tasks.owner("late")
    assert owner is not None
    assert owner.naming == 2
    await ledger.tasks.bind("foreign", "another", 1)
    with pytest.raises(LedgerError, match="belongs to another"):
        await ledger.change(key, partial(resolve, task_id="foreign"))
    assert "foreign" not in (await current_generation(ledger, key)).task_ids, "its owner comes before the record"


async def test_changed_since_tolerates_a_fast_clock(ledger: Ledger, key: str) -> None:
    """These records show what a dead run spent of its reservation. Money in a missed one could be spent again."""
    await must_claim(ledger, key)
    by_a_fast_clock = datetime.now(UTC) + timedelta(minutes=14)
    assert [found.key for found in await ledger.changed_since(by_a_fast_clock)] == [key]


async def test_duplicate_request_under_another_key_is_found(ledger: Ledger, key: str) -> None:
    first, second, third = (f"{key}-{number}" for number in range(3))
    assert await ledger.duplicate_of(KITE, first, note=True) is None
    assert await ledger.duplicate_of(KITE, first, note=True) is None, "its own"
    assert await ledger.duplicate_of(KITE, second, note=True) == first, "it may be about to be claimed"
    await must_claim(ledger, first)
    assert await ledger.duplicate_of(KITE, second, note=True) == first
    assert await ledger.duplicate_of(KITE, second, note=False) == first
    await ledger.change(first, reject)
    assert await ledger.duplicate_of(KITE, second, note=False) is None, "nothing was paid for the first one"
    assert await ledger.duplicate_of(KITE, second, note=True) is None
    await must_claim(ledger, second)
    assert await ledger.duplicate_of(KITE, third, note=True) == second
