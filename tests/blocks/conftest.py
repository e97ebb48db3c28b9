"""Real object stores for the whole session, and a new bucket for each test."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydantic import SecretStr

import blocks.object_store
from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.probe import ensure_ready, mark_raced
from deployments.local.minio_build import STORE_VARIABLE
from deployments.local.store_server import ObjectStoreServer, start_object_store
from tests.support import CREDENTIALS

SMALL_REQUEST_BYTES = 6 * 2**20
"""With one byte more, the store's client still uploads two parts."""

OpenStore = Callable[..., ObjectStore]


@pytest.fixture(scope="session")
def minio_server(minio: ObjectStoreServer) -> ObjectStoreServer:
    """The session's store. Tests of what MinIO does are skipped if that is another one."""
    if minio.kind != "minio":
        pytest.skip("the session's object store is not MinIO")
    return minio


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """SeaweedFS, the fallback."""
    folder = tmp_path_factory.mktemp("own-seaweedfs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, "seaweedfs")
        server = start_object_store(
            local_dir=folder, data_dir=folder, log_dir=folder, credentials=CREDENTIALS, say=lambda _: None
        ).ready()
    with server.process:
        yield server


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are uploaded in parts above 6 MiB, instead of above 32."""
    monkeypatch.setattr(blocks.object_store, "ONE_REQUEST_BYTES", SMALL_REQUEST_BYTES)


@pytest.fixture
def minio_archive(minio_server: ObjectStoreServer) -> VideoArchive:
    """A block for MinIO, with a bucket that does not exist yet."""
    return archive(minio_server.endpoint)


@pytest.fixture
async def open_store() -> AsyncIterator[OpenStore]:
    """Opens the store of an archive block; all are closed at the end of the test."""
    stores: list[ObjectStore] = []

    def open_one(block: VideoArchive) -> ObjectStore:
        store = block.store()
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        await store.aclose()


@pytest.fixture
async def minio_store(minio_archive: VideoArchive, open_store: OpenStore) -> ObjectStore:
    """A bucket in MinIO, created and checked."""
    store = open_store(minio_archive)
    await store.create_bucket()
    await mark_raced(store)
    await ensure_ready(store)
    return store


def archive(endpoint: str, **changed: Any) -> VideoArchive:
    fields: dict[str, Any] = {
        "endpoint": endpoint,
        "access_key": CREDENTIALS.access_key,
        "secret_key": SecretStr(CREDENTIALS.secret_key),
        "secure": False,
        "bucket": f"own-{secrets.token_hex(6)}",
    }
    return VideoArchive(**(fields | changed))
