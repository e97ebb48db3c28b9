"""The object store against a real MinIO: conditional writes above all, for the ledger stands on them."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pytest
from obstore.exceptions import GenericError

from blocks import VideoArchive
from blocks.object_store import PROBE, ObjectStore
from blocks.probe import RACED, ensure_ready
from blocks.store_errors import PreconditionFailedError, StoreUnavailableError
from deployments.local.store_server import ObjectStoreServer

from .conftest import SMALL_REQUEST_BYTES, OpenStore, archive
from .wire import FakeStore, LosingProxy, http, listening

WRITERS = 64
T = TypeVar("T")


async def racing(store: ObjectStore, name: str, *, etag: str | None) -> list[bytes]:
    """Lets many write at once; returns what the winners wrote. All contents differ: equal ones have equal etags."""

    async def write(content: bytes) -> bytes | None:
        try:
            await store.put_if(name, content, etag=etag)
        except PreconditionFailedError:
            return None
        return content

    written = await asyncio.gather(*(write(secrets.token_bytes(32)) for _ in range(WRITERS)))
    return [content for content in written if content is not None]


@pytest.fixture(params=["own_minio", "own_seaweedfs"])
async def own_any_store(request: pytest.FixtureRequest, own_open: OpenStore) -> ObjectStore:
    """Each of the two stores that a local stack may have, with a new bucket."""
    server: ObjectStoreServer = request.getfixturevalue(request.param)
    store = own_open(archive(server.endpoint))
    await store.create_bucket()
    await ensure_ready(store)
    return store


async def test_of_many_writers_one_creates_the_object(own_any_store: ObjectStore) -> None:
    winners = await racing(own_any_store, "ledger/a.json", etag=None)
    stored = await own_any_store.get("ledger/a.json")
    assert stored is not None
    assert winners == [stored.data]


async def test_of_many_writers_one_changes_the_object(own_any_store: ObjectStore) -> None:
    first = await own_any_store.put_if("ledger/a.json", b"first", etag=None)
    winners = await racing(own_any_store, "ledger/a.json", etag=first)
    stored = await own_any_store.get("ledger/a.json")
    assert stored is not None
    assert winners == [stored.data]


async def test_a_conditional_write_keeps_its_condition(own_any_store: ObjectStore) -> None:
    store = own_any_store
    first = await store.put_if("ledger/a.json", b"1", etag=None)
    with pytest.raises(PreconditionFailedError, match=r"ledger/a\.json"):
        await store.put_if("ledger/a.json", b"lost", etag=None)
    second = await store.put_if("ledger/a.json", b"2", etag=first)
    assert second != first
    for stale in (first, f'"{"0" * 32}"'):
        with pytest.raises(PreconditionFailedError):
            await store.put_if("ledger/a.json", b"lost", etag=stale)
    stored = await store.get("ledger/a.json")
    assert stored is not None
    assert (stored.data, stored.etag) == (b"2", second)
    await store.remove("ledger/a.json")
    with pytest.raises(PreconditionFailedError):
        await store.put_if("ledger/a.json", b"lost", etag=second)
    assert await store.get("ledger/a.json") is None


async def test_making_ready_twice_or_at_once_is_fine(own_archive: VideoArchive, own_open: OpenStore) -> None:
    stores = [own_open(own_archive) for _ in range(4)]
    created = await asyncio.gather(*(store.create_bucket() for store in stores))
    assert any(created)
    assert not await stores[0].create_bucket()
    await asyncio.gather(*(ensure_ready(store) for store in stores))
    await ensure_ready(stores[0])
    assert await stores[0].names("") == [PROBE, RACED]
    probe = await stores[0].get(PROBE)
    assert probe is not None
    assert b"never" not in probe.data


@pytest.mark.parametrize("name", ["a", "videos/2026/03/01/k/video.mp4", "open/a.b_c-d", "odd name+ü&?#%/x"])
async def test_an_object_comes_back_as_it_was_written(own_store: ObjectStore, name: str) -> None:
    for data in (b"", b"\x00\xff" * 1000):
        await own_store.put(name, data, content_type="application/json")
        stored = await own_store.get(name)
        assert stored is not None
        assert stored.data == data
    assert name in await own_store.names("")
    for _ in range(2):
        await own_store.remove(name)
    assert await own_store.get(name) is None
    assert await own_store.digest(name) is None


async def test_names_are_those_below_the_prefix_sorted(own_store: ObjectStore) -> None:
    for name in ("open/b", "open/a", "open/c/d", "opening", "ledger/a.json"):
        await own_store.put(name, b"")
    assert await own_store.names("open/") == ["open/a", "open/b", "open/c/d"]
    assert await own_store.names("nothing/") == []


@pytest.mark.parametrize("size_bytes", [0, 1, 999, 1_000, 1_001, 3_000_000])
async def test_of_an_object_no_more_than_asked_for_is_read(own_store: ObjectStore, size_bytes: int) -> None:
    content = secrets.token_bytes(size_bytes)
    await own_store.put("plan.csv", content)
    assert await own_store.read("plan.csv", max_bytes=1_000) == content[:1_000]
    assert await own_store.read("plan.csv", max_bytes=2_500_000) == content[:2_500_000]
    assert await own_store.read("nothing.csv", max_bytes=1_000) is None


async def test_an_object_that_is_cut_on_its_way_is_no_answer(own_open: OpenStore) -> None:
    cut = http(200, b"prompt\nA ki", **{"content-length": "20"})

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(cut)
        await writer.drain()
        writer.close()

    async with listening(FakeStore(answer).handle) as endpoint:
        with pytest.raises(StoreUnavailableError):
            await own_open(archive(endpoint)).read("plan.csv", max_bytes=1_000)


async def test_a_reply_that_is_lost_is_no_answer_and_the_object_is_written(
    own_store: ObjectStore, own_minio: ObjectStoreServer, own_open: OpenStore
) -> None:
    proxy = LosingProxy(own_minio.endpoint, loses="if-none-match")
    async with listening(proxy.handle) as endpoint:
        losing = own_open(archive(endpoint, bucket=own_store.bucket))
        with pytest.raises(StoreUnavailableError) as raised:
            await losing.put_if("ledger/a.json", b"mine", etag=None)
        assert raised.value.retryable
        assert "Signature" not in f"{raised.value} {raised.value.__cause__}"
        assert proxy.lost == 1
        stored = await losing.get("ledger/a.json")
        assert stored is not None
        assert stored.data == b"mine"
        # What the ledger does then: the same write is refused, and the record says that it was our own.
        with pytest.raises(PreconditionFailedError):
            await losing.put_if("ledger/a.json", b"mine", etag=None)


async def test_a_thousand_reads_at_once_all_succeed(own_store: ObjectStore) -> None:
    await own_store.put("ledger/a.json", b"{}")
    found = await asyncio.gather(*(own_store.get("ledger/a.json") for _ in range(1_000)))
    assert [item.data for item in found if item] == [b"{}"] * 1_000


async def test_a_listing_has_names_times_and_sizes(own_store: ObjectStore) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    for index in range(1_001):  # more than one page
        await own_store.put(f"open/{index:04}", bytes(index % 3))
    listed = await own_store.listed("open/")
    assert [item.name for item in listed] == [f"open/{index:04}" for index in range(1_001)]
    assert [item.size_bytes for item in listed[:4]] == [0, 1, 2, 0]
    assert all(began <= item.modified <= datetime.now(UTC) for item in listed)
    with pytest.raises(ValueError, match="ends with a slash"):
        await own_store.names("open")


class Watched(ObjectStore):
    """Keeps what is requested, and loses the replies to some."""

    requests: list[str]
    loses: str = "nothing"

    async def _call(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.requests.append(f"{method} {name}")
        result = await super()._call(method, name, call)
        if self.loses in self.requests[-1]:
            raise GenericError("lost on its way")
        return result


@pytest.mark.usefixtures("small_requests")
async def test_every_request_can_be_watched_and_lost(own_store: ObjectStore, tmp_path: Path) -> None:
    store = Watched(own_store._connection, own_store.bucket)
    store.requests = []
    (tmp_path / "small").write_bytes(b"video")
    (tmp_path / "large").write_bytes(bytes(SMALL_REQUEST_BYTES + 1))
    etag = await store.put_if("a", b"", etag=None)
    await store.replace_file("a", tmp_path / "small", etag=etag, content_type="video/mp4")
    await store.get("a")
    await store.create_file("b", tmp_path / "small", content_type="video/mp4")
    await store.create_file("c", tmp_path / "large", content_type="video/mp4")
    await store.get_file("a", tmp_path / "f")
    await store.digest("a")
    await store.names("open/")
    await store.remove("a")
    own = next(request for request in store.requests if "incoming/" in request).removeprefix("PUT ")
    assert store.requests == [
        *("PUT a", "PUT a", "GET a", "PUT b"),
        *("GET c", f"PUT {own}", "PUT c", f"DELETE {own}"),
        *("GET a", "GET a", "GET a"),
        *("LIST open/", "LIST open/"),
        "DELETE a",
    ]
    store.loses = "PUT lost"
    with pytest.raises(StoreUnavailableError, match="may have been written"):
        await store.put_if("lost", b"mine", etag=None)
    with pytest.raises(StoreUnavailableError):
        await store.create_file("lost.mp4", tmp_path / "large", content_type="video/mp4")
    assert [item.name for item in await store.listed("")] == ["b", "c", "lost", "lost.mp4", PROBE, RACED]
    await store.aclose()


async def test_whether_any_name_begins_so(own_any_store: ObjectStore) -> None:
    for number in range(3):
        await own_any_store.put_if(f"ledger/spring-{number}.json", b"{}", etag=None)
    assert await own_any_store.any_begins("ledger/spring-")
    assert await own_any_store.any_begins("ledger/spr")
    assert not await own_any_store.any_begins("ledger/spring-3")
    assert not await own_any_store.any_begins("ledger/autumn-")
