"""What the object store rejects: the errors name wrong keys, missing permissions and missing buckets."""

import json
from pathlib import Path

import pytest
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.object_store import PROBE, ObjectStore
from blocks.probe import RACED, ensure_ready, prove
from blocks.store_errors import StoreRefusedError, StoreUnavailableError
from deployments.local.store_server import ObjectStoreServer
from tests.support.waiting import until

from .conftest import SMALL_REQUEST_BYTES, OpenStore, archive
from .store_calls import every_call


@pytest.mark.parametrize(
    ("changed", "code", "advice"),
    [
        ({"secret_key": SecretStr("wrong-51gned-secret")}, "SignatureDoesNotMatch", "secret key"),
        ({"access_key": "nobody"}, "InvalidAccessKeyId", "access key"),
    ],
)
async def test_wrong_keys_are_reported_and_not_shown(
    minio_server: ObjectStoreServer,
    open_store: OpenStore,
    tmp_path: Path,
    changed: dict[str, object],
    code: str,
    advice: str,
) -> None:
    store = open_store(archive(minio_server.endpoint, **changed))

    async def knows_its_users() -> bool:  # a MinIO that has just started answers 503 to all but its own key
        return not isinstance((await every_call(store, tmp_path / "f"))[0], StoreUnavailableError)

    await until(knows_its_users, what="MinIO's users")
    for error in await every_call(store, tmp_path / "f"):
        assert isinstance(error, StoreRefusedError), error
        assert not error.retryable
        assert "51gned" not in str(error)
        assert "5ec7e7" not in str(error)
    refused = (await every_call(store, tmp_path / "f"))[1]
    assert isinstance(refused, StoreRefusedError)
    assert refused.code == code
    assert advice in str(refused)


async def test_missing_permission_is_reported(
    minio_store: ObjectStore, minio_server: ObjectStoreServer, open_store: OpenStore
) -> None:
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{minio_store.bucket}/*"]}
    admin = MinioAdmin(
        endpoint=minio_server.endpoint,
        credentials=StaticProvider(minio_server.access_key, minio_server.secret_key),
        secure=False,
    )
    admin.add_service_account(
        access_key="reader0001",
        secret_key="reader-51gned",
        policy={"Version": "2012-10-17", "Statement": [allowed]},
    )
    await minio_store.put("a", b"clip")
    reader = open_store(
        archive(
            minio_server.endpoint,
            bucket=minio_store.bucket,
            access_key="reader0001",
            secret_key=SecretStr("reader-51gned"),
        )
    )
    assert await reader.get("a") is not None
    for call in (reader.put("a", b""), reader.put_if("b", b"", etag=None), reader.remove("a"), reader.names("")):
        with pytest.raises(
            StoreRefusedError, match=rf"AccessDenied.*no permission for this in bucket {minio_store.bucket}"
        ) as raised:
            await call
        assert "51gned" not in str(raised.value)


@pytest.mark.usefixtures("small_requests")
async def test_permissions_in_security_md_are_sufficient(
    minio_store: ObjectStore, minio_server: ObjectStoreServer, open_store: OpenStore, tmp_path: Path
) -> None:
    guide = (Path(__file__).parents[2] / "SECURITY.md").read_text()
    policy = guide.partition("```json\n")[2].partition("```")[0].replace("sora-videos", minio_store.bucket)
    MinioAdmin(
        endpoint=minio_server.endpoint,
        credentials=StaticProvider(minio_server.access_key, minio_server.secret_key),
        secure=False,
    ).add_service_account(access_key="pipeline01", secret_key="pipeline-51gned", policy=json.loads(policy))
    keys = {"access_key": "pipeline01", "secret_key": SecretStr("pipeline-51gned")}
    store = open_store(archive(minio_server.endpoint, bucket=minio_store.bucket, **keys))
    (tmp_path / "f").write_bytes(bytes(SMALL_REQUEST_BYTES + 1))
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


async def test_missing_bucket_is_named(minio_archive: VideoArchive, open_store: OpenStore) -> None:
    store = open_store(minio_archive)
    for call in (
        store.get("a"),
        store.put("a", b""),
        store.put_if("a", b"", etag='"0"'),
        store.digest("a"),
        store.read("a", max_bytes=9),
        store.names(""),
    ):
        with pytest.raises(StoreRefusedError, match=rf"NoSuchBucket.*{store.bucket}"):
            await call


async def test_missing_bucket_is_not_recreated_by_a_run(minio_archive: VideoArchive, open_store: OpenStore) -> None:
    """The ledger is gone with it: with a new, empty one, every key would be paid for again."""
    store = open_store(minio_archive)
    with pytest.raises(StoreRefusedError, match="restore it"):
        await ensure_ready(store)
    await store.create_bucket()
    await ensure_ready(store)
