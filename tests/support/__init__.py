"""Helpers that tests share, apart from fixtures."""

import io
import secrets
from typing import Any

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule
from prefect.blocks.system import Secret
from pydantic import SecretStr

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from blocks.probe import RACED
from deployments.local.stack_info import Credentials
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import SandboxServer

KITE = VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour")
CREDENTIALS = Credentials("sora", f"5ec7e7-{secrets.token_hex(16)}")
"""Of the stores that this process starts. Tests search for the first part of the secret where none may be."""


def unique(stem: str) -> str:
    """A name that is not used anywhere else."""
    return f"{stem}-{secrets.token_hex(5)}"


def make_api(sandbox: SandboxServer, **changed: Any) -> ApixoApi:
    """An API block for this sandbox, with waits as short as its own."""
    fields: dict[str, Any] = {
        "api_key": Secret(value=sandbox.settings.api_key),
        "base_url": sandbox.base_url,
        "initial_wait_seconds": 0.1,
        "poll_interval_seconds": 0.1,
        "deadline_seconds": 20,
        "submit_timeout_seconds": 3,
        "retry_delay_seconds": 0.01,
        "allow_private_hosts": True,
    }
    return ApixoApi(**(fields | changed))


def make_archive(minio: ObjectStoreServer, **changed: Any) -> VideoArchive:
    """An archive block with a new bucket, which it creates."""
    fields: dict[str, Any] = {
        "endpoint": minio.endpoint,
        "access_key": minio.access_key,
        "secret_key": SecretStr(minio.secret_key),
        "secure": False,
        "bucket": unique("bucket"),
    }
    archive = VideoArchive(**(fields | changed))
    client = minio_client(archive)
    client.make_bucket(archive.bucket)
    client.put_object(archive.bucket, RACED, io.BytesIO(b"-"), 1)  # as setup does: it marks the store as already tested
    client._http.clear()  # minio-py has no close(), and open sockets cause warnings
    return archive


def expire_records(archive: VideoArchive) -> None:
    """Gives the bucket a lifecycle rule that deletes records of the ledger."""
    rule = Rule(ENABLED, rule_filter=Filter(prefix="ledger/"), rule_id="tidy", expiration=Expiration(days=30))
    client = minio_client(archive)
    client.set_bucket_lifecycle(archive.bucket, LifecycleConfig([rule]))
    client._http.clear()


def minio_client(archive: VideoArchive) -> Minio:
    """A minio-py client for the archive's store."""
    connection = archive.connection()
    return connection.minio(connection.pool())


async def made_outside(api: ApixoApi, request: VideoRequest = KITE, **options: Any) -> str:
    """Creates a task outside the pipeline, with the same API key. Returns its id."""
    async with api.client() as client:
        return await client.submit_once(request, **options)
