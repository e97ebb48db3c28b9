"""The object store against a real MinIO: conditional writes above all, for the ledger stands on them."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from obstore.exceptions import GenericError
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.errors import PreconditionFailedError, StoreRefusedError, StoreUnavailableError
from blocks.object_store import PROBE, ObjectDigest, ObjectStore
from blocks.probe import RACED, ensure_ready, prove
from blocks.s3_uploads import ONE_REQUEST_BYTES, Uploads
from deployments.local.object_store import ObjectStoreServer

from .conftest import OpenStore, archive
from .wire import FakeStore, LimitingProxy, LosingProxy, http, listening

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


async def test_a_file_is_read_back_by_size_and_checksum(own_store: ObjectStore, tmp_path: Path) -> None:
    content = secrets.token_bytes(7_000_000)  # more than one part
    (tmp_path / "video.mp4").write_bytes(content)
    await own_store.create_file("v.mp4", tmp_path / "video.mp4", content_type="video/mp4")
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


SIZES = [0, 1, ONE_REQUEST_BYTES, ONE_REQUEST_BYTES + 1]


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_file_is_created_once_and_never_overwritten(
    own_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    content = secrets.token_bytes(size_bytes)
    file, other = tmp_path / "video.mp4", tmp_path / "other.mp4"
    file.write_bytes(content)
    other.write_bytes(b"other" + content)
    assert await own_store.create_file("v.mp4", file, content_type="video/mp4")
    assert not await own_store.create_file("v.mp4", other, content_type="video/mp4")
    assert await own_store.digest("v.mp4") == ObjectDigest(size_bytes, hashlib.sha256(content).hexdigest())
    assert own_store._minio.stat_object(own_store.bucket, "v.mp4").content_type == "video/mp4"
    assert await own_store.names("") == [PROBE, RACED, "v.mp4"]


@pytest.mark.parametrize("size_bytes", [1_000, ONE_REQUEST_BYTES + 1])
async def test_of_many_uploads_at_once_one_creates_the_object(
    own_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    files = [tmp_path / f"{index}.mp4" for index in range(6)]
    for file in files:
        file.write_bytes(secrets.token_bytes(size_bytes))
    created = await asyncio.gather(*(own_store.create_file("v.mp4", file, content_type="video/mp4") for file in files))
    (winner,) = [file for file, won in zip(files, created, strict=True) if won]
    stored = await own_store.digest("v.mp4")
    assert stored == ObjectDigest(size_bytes, hashlib.sha256(winner.read_bytes()).hexdigest())
    assert await own_store.names("incoming/") == []


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_damaged_file_is_replaced_in_the_version_that_was_read(
    own_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    content = secrets.token_bytes(size_bytes)
    (tmp_path / "video.mp4").write_bytes(content)
    await own_store.put("v.mp4", b"damaged")
    damaged = await own_store.digest("v.mp4")
    assert damaged is not None
    replace = partial(own_store.replace_file, "v.mp4", tmp_path / "video.mp4", content_type="video/mp4")
    with pytest.raises(PreconditionFailedError):
        await replace(etag=f'"{"0" * 32}"')
    assert await own_store.digest("v.mp4") == damaged
    await replace(etag=damaged.etag)
    assert await own_store.digest("v.mp4") == ObjectDigest(size_bytes, hashlib.sha256(content).hexdigest())
    assert own_store._minio.stat_object(own_store.bucket, "v.mp4").content_type == "video/mp4"
    await own_store.remove("v.mp4")
    with pytest.raises(PreconditionFailedError, match="removed"):
        await replace(etag=damaged.etag)


ATTRIBUTES = {
    "Content-Disposition": 'inline; filename="kite.mp4"',
    "Cache-Control": "max-age=31536000, immutable",
    "key": "kite",
    "task": "a%20b%C3%BC",
    "sha256": "ab" * 32,
}


@pytest.mark.parametrize("size_bytes", [1_000, ONE_REQUEST_BYTES + 1])
@pytest.mark.parametrize("how", ["created", "replaced", "written"])
async def test_whoever_gets_an_object_gets_its_attributes(
    own_store: ObjectStore, tmp_path: Path, size_bytes: int, how: str
) -> None:
    content = secrets.token_bytes(size_bytes)
    (tmp_path / "video.mp4").write_bytes(content)
    match how:
        case "created":
            assert await own_store.create_file(
                "v.mp4", tmp_path / "video.mp4", content_type="video/mp4", attributes=ATTRIBUTES
            )
        case "replaced":
            await own_store.put("v.mp4", b"damaged")
            damaged = await own_store.digest("v.mp4")
            assert damaged is not None
            await own_store.replace_file(
                "v.mp4", tmp_path / "video.mp4", etag=damaged.etag, content_type="video/mp4", attributes=ATTRIBUTES
            )
        case _:
            await own_store.put_if("v.mp4", content, etag=None, content_type="video/mp4", attributes=ATTRIBUTES)
    async with httpx.AsyncClient(trust_env=False) as client:
        got = await client.get(own_store.signed_url("v.mp4", seconds=60))
    assert hashlib.sha256(got.content).digest() == hashlib.sha256(content).digest()
    assert got.headers["content-type"] == "video/mp4"
    assert "content-encoding" not in got.headers
    for name, value in ATTRIBUTES.items():
        assert got.headers[name if name[0].isupper() else f"x-amz-meta-{name}"] == value
    assert await own_store.names("incoming/") == []


async def test_a_store_that_takes_no_attributes_keeps_the_file(
    own_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise GenericError("this store copies nothing onto itself")

    monkeypatch.setattr(Uploads, "label", refuse)
    content = secrets.token_bytes(ONE_REQUEST_BYTES + 1)
    (tmp_path / "f").write_bytes(content)
    assert await own_store.create_file("v.mp4", tmp_path / "f", content_type="video/mp4", attributes=ATTRIBUTES)
    assert await own_store.digest("v.mp4") == ObjectDigest(len(content), hashlib.sha256(content).hexdigest())


async def test_a_file_that_cannot_be_read_is_no_fault_of_the_store(own_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await own_store.create_file("v.mp4", tmp_path / "nothing", content_type="video/mp4")
    with pytest.raises(FileNotFoundError):
        await own_store.replace_file("v.mp4", tmp_path / "nothing", etag='"1"', content_type="video/mp4")
    assert not await own_store.get_file("nothing", tmp_path / "f")


@pytest.mark.parametrize("size_bytes", [5, ONE_REQUEST_BYTES + 1])
async def test_an_upload_whose_reply_is_lost_is_no_answer_and_the_object_is_written(
    own_store: ObjectStore, own_minio: ObjectStoreServer, own_open: OpenStore, tmp_path: Path, size_bytes: int
) -> None:
    content = secrets.token_bytes(size_bytes)
    (tmp_path / "f").write_bytes(content)
    proxy = LosingProxy(own_minio.endpoint, loses="if-none-match")
    async with listening(proxy.handle) as endpoint:
        losing = own_open(archive(endpoint, bucket=own_store.bucket))
        with pytest.raises(StoreUnavailableError, match="may have been written"):
            await losing.create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
        assert proxy.lost == 1
        assert not await losing.create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
        assert await losing.digest("v.mp4") == ObjectDigest(size_bytes, hashlib.sha256(content).hexdigest())
        assert await losing.names("incoming/") == []


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


async def test_every_request_can_be_watched_and_lost(own_store: ObjectStore, tmp_path: Path) -> None:
    store = Watched(own_store._connection, own_store.bucket)
    store.requests = []
    (tmp_path / "small").write_bytes(b"video")
    (tmp_path / "large").write_bytes(bytes(ONE_REQUEST_BYTES + 1))
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
        *("LIST open/", f"GET {PROBE}"),
        "DELETE a",
    ]
    store.loses = "PUT lost"
    with pytest.raises(StoreUnavailableError, match="may have been written"):
        await store.put_if("lost", b"mine", etag=None)
    with pytest.raises(StoreUnavailableError):
        await store.create_file("lost.mp4", tmp_path / "large", content_type="video/mp4")
    assert [item.name for item in await store.listed("")] == ["b", "c", "lost", "lost.mp4", PROBE, RACED]
    await store.aclose()


@pytest.mark.parametrize("size_bytes", [6 * 2**20, 12 * 2**20])
async def test_a_file_that_is_too_large_for_a_proxy_goes_in_parts(
    own_minio: ObjectStoreServer, own_open: OpenStore, own_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    (tmp_path / "v.mp4").write_bytes(data := secrets.token_bytes(size_bytes))
    proxy = LimitingProxy(own_minio.endpoint, max_bytes=5 * 2**20)
    async with listening(proxy.handle) as endpoint:
        store = own_open(archive(endpoint, bucket=own_store.bucket))
        assert await store.create_file("v.mp4", tmp_path / "v.mp4", content_type="video/mp4")
        assert not await store.create_file("v.mp4", tmp_path / "v.mp4", content_type="video/mp4")
        digest = await store.digest("v.mp4")
    assert digest is not None
    assert (digest.size_bytes, digest.sha256) == (size_bytes, hashlib.sha256(data).hexdigest())
    assert await own_store.names("incoming/") == []
    assert proxy.refused == 2


async def every_call(store: ObjectStore, file: Path) -> list[BaseException | object]:
    file.write_bytes(b"film")  # noqa: ASYNC240 - four bytes
    calls = [
        ensure_ready(store),
        store.get("a"),
        store.put_if("a", b"", etag=None),
        store.put("a", b""),
        store.create_file("a", file, content_type="video/mp4"),
        store.digest("a"),
        store.read("a", max_bytes=9),
        store.replace_file("a", file, etag='"0"', content_type="video/mp4"),
        store.get_file("a", file.with_name("download")),
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


async def test_the_rights_that_the_guide_names_are_enough(
    own_store: ObjectStore, own_minio: ObjectStoreServer, own_open: OpenStore, tmp_path: Path
) -> None:
    guide = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    policy = guide.partition("```json\n")[2].partition("```")[0].replace("sora-videos", own_store.bucket)
    MinioAdmin(
        endpoint=own_minio.endpoint,
        credentials=StaticProvider(own_minio.access_key, own_minio.secret_key),
        secure=False,
    ).add_service_account(access_key="pipeline01", secret_key="pipeline-51gned", policy=json.loads(policy))
    keys = {"access_key": "pipeline01", "secret_key": SecretStr("pipeline-51gned")}
    store = own_open(archive(own_minio.endpoint, bucket=own_store.bucket, **keys))
    (tmp_path / "f").write_bytes(bytes(ONE_REQUEST_BYTES + 1))
    await prove(store)
    etag = await store.put_if("ledger/a.json", b"1", etag=None)
    await store.put_if("ledger/a.json", b"2", etag=etag)
    await store.put("open/a", b"")
    await store.remove("open/a")
    await store.put_if("tasks/a", b"", etag=await store.put_if("tasks/a", b"", etag=None))
    await store.put_if("requests/a", b"", etag=None)
    await store.put_if("budget/a", b"2", etag=await store.put_if("budget/a", b"1", etag=None))
    for _ in range(2):
        await store.create_file("videos/v.mp4", tmp_path / "f", content_type="video/mp4")
    found = await store.digest("videos/v.mp4")
    assert found is not None
    await store.replace_file("videos/v.mp4", tmp_path / "f", etag=found.etag, content_type="video/mp4")
    assert await store.names("") == ["budget/a", "ledger/a.json", PROBE, RACED, "requests/a", "tasks/a", "videos/v.mp4"]
    assert await store.get("ledger/missing.json") is None
    for refused in (store.remove("ledger/a.json"), store.remove("videos/v.mp4"), store.put("other/a", b"")):
        with pytest.raises(StoreRefusedError, match="AccessDenied"):
            await refused


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
        await ensure_ready(store)
    await store.create_bucket()
    await ensure_ready(store)
