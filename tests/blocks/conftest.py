"""A real object store for the whole session, and buckets of their own for the tests."""

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

import blocks.object_store
from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.probe import ensure_ready
from deployments.local.minio_build import STORE_VARIABLE
from deployments.local.stack_info import Credentials
from deployments.local.store_server import ObjectStoreServer, start_object_store

CHECKOUT = Path(__file__).parents[2]
CREDENTIALS = Credentials("sora", "a-5ec7e7-of-enough-length")

SMALL_REQUEST_BYTES = 6 * 2**20
"""Of one byte more, the store's client still makes two parts."""

OpenStore = Callable[..., ObjectStore]


@pytest.fixture(scope="session")
def own_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """MinIO; it is built into the checkout's `.local/bin` where it is missing."""
    folder = tmp_path_factory.mktemp("own-minio")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(STORE_VARIABLE, raising=False)
        server = start_object_store(
            local_dir=CHECKOUT / ".local", data_dir=folder / "data", log_dir=folder, credentials=CREDENTIALS
        ).ready()
    with server.process:
        if server.kind != "minio":
            pytest.skip("MinIO can neither be found nor built here")
        yield server


@pytest.fixture(scope="session")
def own_seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
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
    """Files go in parts from 6 MiB on, not from 32."""
    monkeypatch.setattr(blocks.object_store, "ONE_REQUEST_BYTES", SMALL_REQUEST_BYTES)


@pytest.fixture
def own_archive(own_minio: ObjectStoreServer) -> VideoArchive:
    """MinIO, with a bucket that does not exist yet."""
    return archive(own_minio.endpoint)


@pytest.fixture
async def own_open() -> AsyncIterator[OpenStore]:
    """Opens the store of an archive; all are closed at the end."""
    opened: list[ObjectStore] = []

    def open_store(of: VideoArchive) -> ObjectStore:
        store = of.store()
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.aclose()


@pytest.fixture
async def own_store(own_archive: VideoArchive, own_open: OpenStore) -> ObjectStore:
    """A bucket in MinIO, ready."""
    store = own_open(own_archive)
    await store.create_bucket()
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
