"""The object store against a real MinIO: above all conditional writes, because the ledger relies on them."""

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


async def race_writers(store: ObjectStore, name: str, *, etag: str | None) -> list[bytes]:
    """Starts many writers at once; returns what the winners wrote. Contents differ, as equal ones have equal etags."""

    async def write(content: bytes) -> bytes | None:
        try:
            await store.put_if(name, content, etag=etag)
        except PreconditionFailedError:
            return None
        return content

    written = await asyncio.gather(*(write(secrets.token_bytes(32)) for _ in range(WRITERS)))
    return [content for content in written if content is not None]


@pytest.fixture(params=["minio_server", "seaweedfs_server"])
async def any_store(request: pytest.FixtureRequest, open_store: OpenStore) -> ObjectStore:
    """Each of the two stores that a local stack may use, with a new bucket."""
    server: ObjectStoreServer = request.getfixturevalue(request.param)
    store = open_store(archive(server.endpoint))
    await store.create_bucket()
    await ensure_ready(store)
    return store


async def test_exactly_one_of_many_writers_creates_the_object(any_store: ObjectStore) -> None:
    winners = await race_writers(any_store, "ledger/a.json", etag=None)
    stored = await any_store.get("ledger/a.json")
    assert stored is not None
    assert winners == [stored.data]


async def test_exactly_one_of_many_writers_changes_the_object(any_store: ObjectStore) -> None:
    first = await any_store.put_if("ledger/a.json", b"first", etag=None)
    winners = await race_writers(any_store, "ledger/a.json", etag=first)
    stored = await any_store.get("ledger/a.json")
    assert stored is not None
    assert winners == [stored.data]


async def test_conditional_write_enforces_its_condition(any_store: ObjectStore) -> None:
    store = any_store
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


async def test_setup_may_run_twice_or_concurrently(minio_archive: VideoArchive, open_store: OpenStore) -> None:
    stores = [open_store(minio_archive) for _ in range(4)]
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
async def test_object_is_read_back_as_written(minio_store: ObjectStore, name: str) -> None:
    for data in (b"", b"\x00\xff" * 1000):
        await minio_store.put(name, data, content_type="application/json")
        stored = await minio_store.get(name)
        assert stored is not None
        assert stored.data == data
    assert name in await minio_store.names("")
    for _ in range(2):
        await minio_store.remove(name)
    assert await minio_store.get(name) is None
    assert await minio_store.digest(name) is None


async def test_names_are_sorted_and_limited_to_the_prefix(minio_store: ObjectStore) -> None:
    for name in ("open/b", "open/a", "open/c/d", "opening", "ledger/a.json"):
        await minio_store.put(name, b"")
    assert await minio_store.names("open/") == ["open/a", "open/b", "open/c/d"]
    assert await minio_store.names("nothing/") == []


@pytest.mark.parametrize("size_bytes", [0, 1, 999, 1_000, 1_001, 3_000_000])
async def test_read_returns_at_most_max_bytes(minio_store: ObjectStore, size_bytes: int) -> None:
    content = secrets.token_bytes(size_bytes)
    await minio_store.put("plan.csv", content)
    assert await minio_store.read("plan.csv", max_bytes=1_000) == content[:1_000]
    assert await minio_store.read("plan.csv", max_bytes=2_500_000) == content[:2_500_000]
    assert await minio_store.read("nothing.csv", max_bytes=1_000) is None


async def test_truncated_object_raises_store_unavailable(open_store: OpenStore) -> None:
    cut = http(200, b"prompt\nA ki", **{"content-length": "20"})

    async def answer(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(cut)
        await writer.drain()
        writer.close()

    async with listening(FakeStore(answer).handle) as endpoint:
        with pytest.raises(StoreUnavailableError):
            await open_store(archive(endpoint)).read("plan.csv", max_bytes=1_000)


async def test_lost_reply_raises_store_unavailable_though_the_object_is_written(
    minio_store: ObjectStore, minio_server: ObjectStoreServer, open_store: OpenStore
) -> None:
    proxy = LosingProxy(minio_server.endpoint, loses="if-none-match")
    async with listening(proxy.handle) as endpoint:
        losing = open_store(archive(endpoint, bucket=minio_store.bucket))
        with pytest.raises(StoreUnavailableError) as raised:
            await losing.put_if("ledger/a.json", b"mine", etag=None)
        assert raised.value.retryable
        assert "Signature" not in f"{raised.value} {raised.value.__cause__}"
        assert proxy.lost == 1
        stored = await losing.get("ledger/a.json")
        assert stored is not None
        assert stored.data == b"mine"
        # What the ledger does next: the same write is rejected, and the record shows that it was our own.
        with pytest.raises(PreconditionFailedError):
            await losing.put_if("ledger/a.json", b"mine", etag=None)


async def test_a_thousand_concurrent_reads_succeed(minio_store: ObjectStore) -> None:
    await minio_store.put("ledger/a.json", b"{}")
    found = await asyncio.gather(*(minio_store.get("ledger/a.json") for _ in range(1_000)))
    assert [item.data for item in found if item] == [b"{}"] * 1_000


async def test_listing_has_names_times_and_sizes(minio_store: ObjectStore) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    for index in range(1_001):  # more than one page
        await minio_store.put(f"open/{index:04}", bytes(index % 3))
    listed = await minio_store.listed("open/")
    assert [item.name for item in listed] == [f"open/{index:04}" for index in range(1_001)]
    assert [item.size_bytes for item in listed[:4]] == [0, 1, 2, 0]
    assert all(began <= item.modified <= datetime.now(UTC) for item in listed)
    with pytest.raises(ValueError, match="ends with a slash"):
        await minio_store.names("open")


class WatchedStore(ObjectStore):
    """Records what is requested, and loses the replies to some requests."""

    requests: list[str]
    loses: str = "nothing"

    async def _call(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self.requests.append(f"{method} {name}")
        result = await super()._call(method, name, call)
        if self.loses in self.requests[-1]:
            raise GenericError("lost on its way")
        return result


@pytest.mark.usefixtures("small_requests")
async def test_subclass_can_watch_every_request_and_lose_replies(minio_store: ObjectStore, tmp_path: Path) -> None:
    store = WatchedStore(minio_store._connection, minio_store.bucket)
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


async def test_any_begins_finds_names_with_the_prefix(any_store: ObjectStore) -> None:
    for number in range(3):
        await any_store.put_if(f"ledger/spring-{number}.json", b"{}", etag=None)
    assert await any_store.any_begins("ledger/spring-")
    assert await any_store.any_begins("ledger/spr")
    assert not await any_store.any_begins("ledger/spring-3")
    assert not await any_store.any_begins("ledger/autumn-")
