"""The object store against a real MinIO: conditional writes above all, for the ledger stands on them."""

import asyncio
import hashlib
import secrets
from pathlib import Path

import httpx
import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.errors import PreconditionFailedError, StoreRefusedError, StoreUnavailableError
from blocks.object_store import PROBE, ObjectDigest, ObjectStore
from deployments.object_store import ObjectStoreServer

from .conftest import OpenStore, archive
from .wire import FakeStore, LosingProxy, http, listening

WRITERS = 64


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


@pytest.fixture(params=["own_minio", "own_moto"])
async def own_any_store(request: pytest.FixtureRequest, own_open: OpenStore) -> ObjectStore:
    """Each of the two stores that a local stack may have, with a new bucket."""
    server: ObjectStoreServer = request.getfixturevalue(request.param)
    store = own_open(archive(server.endpoint))
    await store.create_bucket()
    await store.ensure_ready()
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
    with pytest.raises(PreconditionFailedError) as lost:
        await store.put_if("ledger/a.json", b"lost", etag=None)
    assert lost.value.object_name == "ledger/a.json"
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
    await asyncio.gather(*(store.ensure_ready() for store in stores))
    await stores[0].ensure_ready()
    assert await stores[0].names("") == [PROBE]
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


async def test_a_file_is_read_back_by_size_and_checksum(own_store: ObjectStore, tmp_path: Path) -> None:
    content = secrets.token_bytes(7_000_000)  # more than one part
    (tmp_path / "video.mp4").write_bytes(content)
    await own_store.put_file("v.mp4", tmp_path / "video.mp4", content_type="video/mp4")
    assert await own_store.digest("v.mp4") == ObjectDigest(7_000_000, hashlib.sha256(content).hexdigest())
    url = own_store.signed_url("v.mp4", seconds=60)
    async with httpx.AsyncClient() as anyone:
        opened = await anyone.get(url)
        assert (opened.status_code, opened.content == content) == (200, True)
        assert opened.headers["content-type"] == "video/mp4"
        assert (await anyone.get(url.partition("?")[0])).status_code == 403


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
    proxy = LosingProxy(own_minio.endpoint, loses="If-None-Match")
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


async def every_call(store: ObjectStore, file: Path) -> list[BaseException | object]:
    file.write_bytes(b"film")  # noqa: ASYNC240 - four bytes
    calls = [
        store.ensure_ready(),
        store.get("a"),
        store.put_if("a", b"", etag=None),
        store.put("a", b""),
        store.put_file("a", file, content_type="video/mp4"),
        store.digest("a"),
        store.read("a", max_bytes=9),
        store.remove("a"),
        store.names(""),
    ]
    results: list[BaseException | object] = await asyncio.gather(*calls, return_exceptions=True)
    return results


@pytest.mark.parametrize(
    ("changed", "code", "advice"),
    [
        ({"secret_key": SecretStr("wrong-51gned-secret")}, "SignatureDoesNotMatch", "secret key"),
        ({"access_key": "nobody"}, "InvalidAccessKeyId", "access key"),
    ],
)
async def test_wrong_keys_are_named_and_not_shown(
    own_minio: ObjectStoreServer,
    own_open: OpenStore,
    tmp_path: Path,
    changed: dict[str, object],
    code: str,
    advice: str,
) -> None:
    store = own_open(archive(own_minio.endpoint, **changed))
    for error in await every_call(store, tmp_path / "f"):
        assert isinstance(error, StoreRefusedError), error
        assert not error.retryable
        assert "51gned" not in str(error)
        assert "5ec7e7" not in str(error)
    refused = (await every_call(store, tmp_path / "f"))[1]
    assert isinstance(refused, StoreRefusedError)
    assert (refused.code, refused.object_name) == (code, "a")
    assert advice in str(refused)


async def test_a_right_that_is_missing_is_named(
    own_store: ObjectStore, own_minio: ObjectStoreServer, own_open: OpenStore
) -> None:
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{own_store.bucket}/*"]}
    admin = MinioAdmin(
        endpoint=own_minio.endpoint,
        credentials=StaticProvider(own_minio.access_key, own_minio.secret_key),
        secure=False,
    )
    admin.add_service_account(
        access_key="reader0001",
        secret_key="reader-51gned",
        policy={"Version": "2012-10-17", "Statement": [allowed]},
    )
    await own_store.put("a", b"film")
    reader = own_open(
        archive(
            own_minio.endpoint, bucket=own_store.bucket, access_key="reader0001", secret_key=SecretStr("reader-51gned")
        )
    )
    assert await reader.get("a") is not None
    for call in (reader.put("a", b""), reader.put_if("b", b"", etag=None), reader.remove("a"), reader.names("")):
        with pytest.raises(
            StoreRefusedError, match=rf"AccessDenied.*no right to it in bucket {own_store.bucket}"
        ) as no:
            await call
        assert "51gned" not in str(no.value)


async def test_a_bucket_that_is_gone_is_named(own_archive: VideoArchive, own_open: OpenStore) -> None:
    gone = own_open(own_archive)
    for call in (
        gone.get("a"),
        gone.put("a", b""),
        gone.put_if("a", b"", etag='"0"'),
        gone.digest("a"),
        gone.read("a", max_bytes=9),
        gone.names(""),
    ):
        with pytest.raises(StoreRefusedError, match=rf"NoSuchBucket.*{gone.bucket}"):
            await call


async def test_a_bucket_that_is_gone_is_not_made_anew_by_a_run(own_archive: VideoArchive, own_open: OpenStore) -> None:
    """With it went the ledger: a new, empty one would have every key paid for again."""
    store = own_open(own_archive)
    with pytest.raises(StoreRefusedError, match="restore it"):
        await store.ensure_ready()
    await store.create_bucket()
    await store.ensure_ready()
