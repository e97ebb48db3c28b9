"""The gallery's index: only changed records are read again, and an outage loses nothing."""

import asyncio
from datetime import timedelta

import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import StoreUnavailableError
from deployments.gallery.index import FRESH_SECONDS, ArchiveIndex
from flows.record.generation import State
from flows.record.ledger import Entry, Ledger
from tests.deployments.gallery.sample_records import NOW, make_generation, put_generations


async def test_only_new_or_changed_records_are_read_again(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(store)
    read: list[str] = []
    read_one = ledger.read

    async def read_and_note(key: str) -> Entry | None:
        read.append(key)
        return await read_one(key)

    monkeypatch.setattr(ledger, "read", read_and_note)
    index = ArchiveIndex(store, ledger)
    await put_generations(store, *(make_generation(f"kite-{number}") for number in range(20)))
    await index.refresh()
    assert (len(index.items), len(set(read)), index.loaded) == (20, 20, True)
    read.clear()
    await index.refresh()
    assert read == []
    await put_generations(store, make_generation("kite-3", state=State.FAILED), make_generation("kite-new"))
    await store.remove("ledger/kite-5.json")
    await index.refresh()
    assert sorted(read) == ["kite-3", "kite-new"]
    assert index.items["kite-3"].generation.state is State.FAILED
    assert "kite-new" in index.items
    assert "kite-5" not in index.items


async def test_same_size_change_within_one_second_is_seen(store: ObjectStore) -> None:
    index = ArchiveIndex(store, Ledger(store))
    for prompt in ("aaaa", "bbbb", "cccc"):
        await put_generations(store, make_generation("kite", prompt))
        await index.refresh()
        assert index.items["kite"].generation.request.prompt == prompt


async def test_non_records_are_ignored_and_unreadable_records_are_reported(store: ObjectStore) -> None:
    await put_generations(store, make_generation("kite"))
    for name in ("ledger/Not A Key.json", "ledger/kite.txt", "ledger/a/b.json"):
        await store.put(name, b"{}")
    await store.put("ledger/broken.json", b"{")
    index = ArchiveIndex(store, Ledger(store))
    await index.refresh()
    assert (set(index.items), index.unreadable) == ({"kite"}, {"broken"})
    await put_generations(store, make_generation("broken"))
    await index.refresh()
    assert (set(index.items), index.unreadable) == ({"kite", "broken"}, set())


async def test_outage_keeps_known_records(store: ObjectStore, archive: VideoArchive) -> None:
    await put_generations(store, make_generation("kite"))
    index = ArchiveIndex(store, Ledger(store, retry_timeout_seconds=0))
    await index.refresh()
    listed = store.listed

    async def unavailable(_: str) -> None:
        raise StoreUnavailableError("away")

    store.listed = unavailable  # type: ignore[method-assign,assignment] # the store is unavailable to this index only
    await index.refresh()
    assert (set(index.items), index.problem) == ({"kite"}, "away")
    store.listed = listed  # type: ignore[method-assign]
    await index.refresh()
    assert index.problem is None


async def test_concurrent_visitors_cause_one_listing(store: ObjectStore) -> None:
    clock, listings, listed = [0.0], [0], store.listed

    async def counted(prefix: str) -> object:
        listings[0] += prefix == "ledger/"
        return await listed(prefix)

    store.listed = counted  # type: ignore[method-assign,assignment]
    index = ArchiveIndex(store, Ledger(store), monotonic=lambda: clock[0])
    await asyncio.gather(*(index.current() for _ in range(50)))
    await index.current()
    assert listings == [1]
    clock[0] += FRESH_SECONDS + 1
    await index.current()
    assert listings == [2]
    await index.aclose()


async def test_key_missing_from_the_last_listing_is_found(store: ObjectStore) -> None:
    index = ArchiveIndex(store, Ledger(store))
    await index.refresh()
    assert await index.find("kite", fresh=False) is None
    await put_generations(store, make_generation("kite", at=NOW + timedelta(1)))
    found = await index.find("kite", fresh=False)
    assert found is not None
    assert found.key == "kite"


async def test_known_record_with_a_video_is_read_again_only_on_request(store: ObjectStore) -> None:
    await put_generations(store, make_generation("kite", "Dunes"))
    index = ArchiveIndex(store, Ledger(store))
    await index.refresh()
    await put_generations(store, make_generation("kite", "Other dunes"))
    for fresh, prompt in ((False, "Dunes"), (True, "Other dunes")):
        found = await index.find("kite", fresh=fresh)
        assert found is not None
        assert found.request.prompt == prompt
