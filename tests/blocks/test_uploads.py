"""Files in the object store: created once, replaced in one version only, sent whole or in parts, with attributes."""

import asyncio
import base64
import hashlib
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from obstore.exceptions import GenericError

from blocks import s3_uploads
from blocks.object_store import PROBE, ObjectDigest, ObjectStore
from blocks.probe import RACED
from blocks.s3_clients import REQUEST_TIMEOUT_SECONDS, StoreConnection
from blocks.s3_uploads import IN_MEMORY_BYTES, ONE_REQUEST_BYTES, Uploads
from blocks.store_errors import PreconditionFailedError, StoreError, StoreUnavailableError
from deployments.local.store_server import ObjectStoreServer
from tests.support.memory import forget_peak, peak_kib

from .conftest import SMALL_REQUEST_BYTES, OpenStore, archive
from .wire import BreakingProxy, FakeStore, LimitingProxy, LosingProxy, always, http, listening, s3_error


async def test_uploaded_file_is_verified_by_size_and_checksum(minio_store: ObjectStore, tmp_path: Path) -> None:
    content = secrets.token_bytes(7_000_000)  # more than one part
    (tmp_path / "video.mp4").write_bytes(content)
    await minio_store.create_file("v.mp4", tmp_path / "video.mp4", content_type="video/mp4")
    assert await minio_store.digest("v.mp4") == ObjectDigest(7_000_000, hashlib.sha256(content).hexdigest())
    url = minio_store.signed_url("v.mp4", seconds=60)
    async with httpx.AsyncClient() as anyone:
        opened = await anyone.get(url)
        assert (opened.status_code, opened.content == content) == (200, True)
        assert opened.headers["content-type"] == "video/mp4"
        assert (await anyone.get(url.partition("?")[0])).status_code == 403


SIZES = [0, 1, ONE_REQUEST_BYTES, ONE_REQUEST_BYTES + 1]
IN_PARTS = SMALL_REQUEST_BYTES + 1
SIZE_OF_EACH_METHOD = [1_000, 2 * IN_MEMORY_BYTES, IN_PARTS]
"""Uploaded from memory, from the disk, and (with `small_requests`) in parts."""
small_requests = pytest.mark.usefixtures("small_requests")


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_file_is_created_once_and_never_overwritten(
    minio_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    content = secrets.token_bytes(size_bytes)
    file, other = tmp_path / "video.mp4", tmp_path / "other.mp4"
    file.write_bytes(content)
    other.write_bytes(b"other" + content)
    assert await minio_store.create_file("v.mp4", file, content_type="video/mp4")
    assert not await minio_store.create_file("v.mp4", other, content_type="video/mp4")
    assert await minio_store.digest("v.mp4") == ObjectDigest(size_bytes, hashlib.sha256(content).hexdigest())
    assert minio_store._minio.stat_object(minio_store.bucket, "v.mp4").content_type == "video/mp4"
    assert await minio_store.names("") == [PROBE, RACED, "v.mp4"]


async def test_large_files_are_never_held_in_memory(minio_store: ObjectStore, tmp_path: Path) -> None:
    """Four at once hold twelve parts and what malloc retains of them, 50 to 140 MB, however large the files are."""
    large_kib, files = 100_000, [tmp_path / f"{index}.mp4" for index in range(4)]
    for path in files:
        with path.open("wb") as file:
            file.truncate(large_kib * 1024)
    before_kib = forget_peak()
    assert all(await asyncio.gather(*(minio_store.create_file(path.name, path, content_type="") for path in files)))
    assert peak_kib() - before_kib < 2 * large_kib


@pytest.mark.parametrize("size_bytes", [1_000, 2_000_000])
async def test_file_has_the_checksum_requested_by_the_environment(
    minio_server: ObjectStoreServer,
    open_store: OpenStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size_bytes: int,
) -> None:
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "SHA256")
    store = open_store(archive(minio_server.endpoint))
    await store.create_bucket()
    (tmp_path / "f").write_bytes(content := secrets.token_bytes(size_bytes))
    assert await store.create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
    requested: dict[str, str | list[str] | tuple[str]] = {"x-amz-checksum-mode": "ENABLED"}
    checksum = base64.b64encode(hashlib.sha256(content).digest()).decode()
    found = store._minio.stat_object(store.bucket, "v.mp4", extra_headers=requested).metadata
    assert found is not None
    assert found["x-amz-checksum-sha256"] == checksum
    await store.put("v.mp4", b"damaged")
    damaged = await store.digest("v.mp4")
    assert damaged is not None
    await store.replace_file("v.mp4", tmp_path / "f", etag=damaged.etag, content_type="video/mp4")
    repaired = store._minio.stat_object(store.bucket, "v.mp4", extra_headers=requested).metadata
    assert repaired is not None
    assert repaired["x-amz-checksum-sha256"] == checksum


@small_requests
@pytest.mark.parametrize("size_bytes", SIZE_OF_EACH_METHOD)
async def test_exactly_one_of_many_uploads_creates_the_object(
    minio_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    files = [tmp_path / f"{index}.mp4" for index in range(6)]
    for file in files:
        file.write_bytes(secrets.token_bytes(size_bytes))
    created = await asyncio.gather(
        *(minio_store.create_file("v.mp4", file, content_type="video/mp4") for file in files)
    )
    (winner,) = [file for file, won in zip(files, created, strict=True) if won]
    stored = await minio_store.digest("v.mp4")
    assert stored == ObjectDigest(size_bytes, hashlib.sha256(winner.read_bytes()).hexdigest())
    assert await minio_store.names("incoming/") == []


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_damaged_file_is_replaced_only_in_the_version_that_was_read(
    minio_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    content = secrets.token_bytes(size_bytes)
    (tmp_path / "video.mp4").write_bytes(content)
    await minio_store.put("v.mp4", b"damaged")
    damaged = await minio_store.digest("v.mp4")
    assert damaged is not None
    replace = partial(minio_store.replace_file, "v.mp4", tmp_path / "video.mp4", content_type="video/mp4")
    with pytest.raises(PreconditionFailedError):
        await replace(etag=f'"{"0" * 32}"')
    assert await minio_store.digest("v.mp4") == damaged
    await replace(etag=damaged.etag)
    assert await minio_store.digest("v.mp4") == ObjectDigest(size_bytes, hashlib.sha256(content).hexdigest())
    assert minio_store._minio.stat_object(minio_store.bucket, "v.mp4").content_type == "video/mp4"
    await minio_store.remove("v.mp4")
    with pytest.raises(PreconditionFailedError, match="removed"):
        await replace(etag=damaged.etag)


ATTRIBUTES = {
    "Content-Disposition": 'inline; filename="kite.mp4"',
    "Cache-Control": "max-age=31536000, immutable",
    "key": "kite",
    "task": "a%20b%C3%BC",
    "sha256": "ab" * 32,
}


@small_requests
@pytest.mark.parametrize(
    ("how", "size_bytes"),
    [*((how, size) for how in ("created", "replaced") for size in SIZE_OF_EACH_METHOD), ("written", 1_000)],
)
async def test_object_is_served_with_its_attributes(
    minio_store: ObjectStore, tmp_path: Path, size_bytes: int, how: str
) -> None:
    content = secrets.token_bytes(size_bytes)
    (tmp_path / "video.mp4").write_bytes(content)
    match how:
        case "created":
            assert await minio_store.create_file(
                "v.mp4", tmp_path / "video.mp4", content_type="video/mp4", attributes=ATTRIBUTES
            )
        case "replaced":
            await minio_store.put("v.mp4", b"damaged")
            damaged = await minio_store.digest("v.mp4")
            assert damaged is not None
            await minio_store.replace_file(
                "v.mp4", tmp_path / "video.mp4", etag=damaged.etag, content_type="video/mp4", attributes=ATTRIBUTES
            )
        case _:
            await minio_store.put_if("v.mp4", content, etag=None, content_type="video/mp4", attributes=ATTRIBUTES)
    async with httpx.AsyncClient(trust_env=False) as client:
        got = await client.get(minio_store.signed_url("v.mp4", seconds=60))
    assert hashlib.sha256(got.content).digest() == hashlib.sha256(content).digest()
    assert got.headers["content-type"] == "video/mp4"
    assert "content-encoding" not in got.headers
    for name, value in ATTRIBUTES.items():
        assert got.headers[name if name[0].isupper() else f"x-amz-meta-{name}"] == value
    assert await minio_store.names("incoming/") == []


@small_requests
async def test_file_is_kept_if_the_store_rejects_its_attributes(
    minio_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reject(*_: object) -> None:
        raise GenericError("this store copies nothing onto itself")

    monkeypatch.setattr(Uploads, "label", reject)
    content = secrets.token_bytes(IN_PARTS)
    (tmp_path / "f").write_bytes(content)
    assert await minio_store.create_file("v.mp4", tmp_path / "f", content_type="video/mp4", attributes=ATTRIBUTES)
    assert await minio_store.digest("v.mp4") == ObjectDigest(len(content), hashlib.sha256(content).hexdigest())


async def test_unreadable_local_file_is_not_a_store_error(minio_store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await minio_store.create_file("v.mp4", tmp_path / "nothing", content_type="video/mp4")
    with pytest.raises(FileNotFoundError):
        await minio_store.replace_file("v.mp4", tmp_path / "nothing", etag='"1"', content_type="video/mp4")
    assert not await minio_store.get_file("nothing", tmp_path / "f")


@small_requests
@pytest.mark.parametrize("size_bytes", SIZE_OF_EACH_METHOD)
async def test_lost_upload_reply_raises_store_unavailable_though_the_object_is_written(
    minio_store: ObjectStore, minio_server: ObjectStoreServer, open_store: OpenStore, tmp_path: Path, size_bytes: int
) -> None:
    content = secrets.token_bytes(size_bytes)
    (tmp_path / "f").write_bytes(content)
    proxy = LosingProxy(minio_server.endpoint, loses="if-none-match")
    async with listening(proxy.handle) as endpoint:
        losing = open_store(archive(endpoint, bucket=minio_store.bucket))
        with pytest.raises(StoreUnavailableError, match="may have been written"):
            await losing.create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
        assert proxy.lost == 1
        assert not await losing.create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
        assert await losing.digest("v.mp4") == ObjectDigest(size_bytes, hashlib.sha256(content).hexdigest())
        assert await losing.names("incoming/") == []


@pytest.mark.parametrize("size_bytes", SIZE_OF_EACH_METHOD[:2])
async def test_success_without_an_etag_is_an_error(open_store: OpenStore, tmp_path: Path, size_bytes: int) -> None:
    (tmp_path / "f").write_bytes(bytes(size_bytes))
    fake = FakeStore(always(http(200)))
    async with listening(fake.handle) as endpoint:
        with pytest.raises(StoreError):
            await open_store(archive(endpoint)).create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
    assert [head.split(" ")[0] for head in fake.heads] == ["PUT"]


async def test_upload_to_a_store_that_reads_too_slowly_is_aborted(
    open_store: OpenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single piece waits for long, so only the time limit of the whole upload ends it."""
    monkeypatch.setattr(s3_uploads, "BYTES_PER_SECOND", 10**9)
    monkeypatch.setattr(s3_uploads, "REQUEST_TIMEOUT_SECONDS", 2)
    (tmp_path / "f").write_bytes(bytes(ONE_REQUEST_BYTES))
    received = 0

    async def read_slowly(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        nonlocal received
        while piece := await reader.read(2**16):
            received += len(piece)
            await asyncio.sleep(0.05)

    async with listening(read_slowly) as endpoint:
        with pytest.raises(StoreUnavailableError, match="bytes per second"):
            await open_store(archive(endpoint)).create_file("v.mp4", tmp_path / "f", content_type="video/mp4")
    assert 0 < received < ONE_REQUEST_BYTES


@pytest.mark.parametrize("size_bytes", [6 * 2**20, 12 * 2**20])
async def test_file_too_large_for_a_proxy_is_uploaded_in_parts(
    minio_server: ObjectStoreServer, open_store: OpenStore, minio_store: ObjectStore, tmp_path: Path, size_bytes: int
) -> None:
    (tmp_path / "v.mp4").write_bytes(data := secrets.token_bytes(size_bytes))
    proxy = LimitingProxy(minio_server.endpoint, max_bytes=5 * 2**20)
    async with listening(proxy.handle) as endpoint:
        store = open_store(archive(endpoint, bucket=minio_store.bucket))
        assert await store.create_file("v.mp4", tmp_path / "v.mp4", content_type="video/mp4")
        assert not await store.create_file("v.mp4", tmp_path / "v.mp4", content_type="video/mp4")
        digest = await store.digest("v.mp4")
    assert digest is not None
    assert (digest.size_bytes, digest.sha256) == (size_bytes, hashlib.sha256(data).hexdigest())
    assert await minio_store.names("incoming/") == []
    assert proxy.rejected == 2


@small_requests
@pytest.mark.parametrize("begins", ["incoming/", "videos/"], ids=["the parts", "the copy"])
async def test_upload_can_be_retried_after_the_store_fails_to_assemble_it(
    minio_server: ObjectStoreServer, open_store: OpenStore, minio_store: ObjectStore, tmp_path: Path, begins: str
) -> None:
    """S3 answers 200 before it is done, and may then put an error into the body."""
    (tmp_path / "v.mp4").write_bytes(bytes(IN_PARTS))
    proxy = BreakingProxy(minio_server.endpoint, f"/{minio_store.bucket}/{begins}", s3_error(200, "InternalError"))
    async with listening(proxy.handle) as endpoint:
        store = open_store(archive(endpoint, bucket=minio_store.bucket))
        with pytest.raises(StoreUnavailableError, match="HTTP 200 InternalError"):
            await store.create_file("videos/v.mp4", tmp_path / "v.mp4", content_type="video/mp4")
        assert await store.create_file("videos/v.mp4", tmp_path / "v.mp4", content_type="video/mp4")
    assert proxy.broken == 1


async def test_small_files_share_one_client_and_large_files_another(
    minio_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Creating a client takes 5 ms of processor time, 20 ms with TLS, and a batch uploads hundreds of files."""
    made: list[float | None] = []
    small, http = StoreConnection.obstore_client, StoreConnection.http

    def counted(connection: StoreConnection, bucket: str, *, timeout_seconds: float | None = None, **more: Any) -> Any:
        made.append(timeout_seconds)
        return small(connection, bucket, timeout_seconds=timeout_seconds, **more)

    def counted_http(connection: StoreConnection) -> httpx.Client:
        made.append(REQUEST_TIMEOUT_SECONDS)
        return http(connection)

    monkeypatch.setattr(StoreConnection, "obstore_client", counted)
    monkeypatch.setattr(StoreConnection, "http", counted_http)
    for number, size_bytes in enumerate([0, 1, 1_000_000, 1_100_000, 20_000_000]):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(bytes(size_bytes))
        assert await minio_store.create_file(f"videos/{number}.mp4", path, content_type="video/mp4")
    assert len(made) == 2
    assert all(seconds is not None and seconds >= REQUEST_TIMEOUT_SECONDS for seconds in made)
