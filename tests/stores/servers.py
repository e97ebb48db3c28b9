"""The object stores that can be started here: with default settings, and as a company would run them."""

import base64
import os
import secrets
import shutil
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3
from minio.error import MinioException
from pydantic import SecretStr

import deployments.local.store_server
from blocks import VideoArchive
from deployments.local.minio_build import STORE_VARIABLE
from deployments.local.processes import LOOPBACK, ManagedProcess, free_port, free_ports
from deployments.local.stack_info import Credentials
from deployments.local.store_server import start_object_store
from tests.support import minio_client, unique

ROOT: Final = Path(__file__).parents[2]
KINDS: Final = ("MinIO", "SeaweedFS", "VersityGW")
DOMAIN: Final = "minio.example.com"
"""The company's domain for its store. Bucket names go in front of it."""
REGION: Final = "eu-central-1"
CREDENTIALS: Final = Credentials("GK0123456789abcdef01234567", secrets.token_hex(32))  # in the form for Garage
START_SECONDS: Final = 60.0


@dataclass(frozen=True)
class RunningStore:
    """A store that is up.

    Attributes:
        kind: its name.
        endpoint: `127.0.0.1:port`.
        authority: the folder of the authority that signed its certificate; None: it does not use TLS.
    """

    kind: str
    endpoint: str
    authority: Path | None = None

    def archive(self, **changed: Any) -> VideoArchive:
        """A block for this store, with the name of a bucket that does not exist yet."""
        fields: dict[str, Any] = {
            "endpoint": self.endpoint,
            "access_key": CREDENTIALS.access_key,
            "secret_key": SecretStr(CREDENTIALS.secret_key),
            "secure": self.authority is not None,
            "region": REGION if self.authority else "us-east-1",
            "bucket": unique("stores"),
        }
        return VideoArchive(**(fields | changed))

    def report(self, text: str) -> None:
        """Prints a result for docs/stores.md."""
        print(f"\n{self.kind:10} {text}")


@contextmanager
def running(kind: str, folder: Path, authority: Path | None = None) -> Iterator[RunningStore]:
    """A store with a folder of its own. Skips the test if the program is missing.

    Args:
        kind: one of `KINDS`, or Garage.
        folder: for its data and log.
        authority: see `make_authority`. If given, the store uses TLS, is in `REGION`, accepts bucket names in front of
            `DOMAIN`, and can encrypt objects and keep versions if it supports that.
    """
    start = {"VersityGW": _versitygw, "Garage": _garage}.get(kind, _local)
    process, endpoint = start(kind, folder, authority)
    with process:
        store = RunningStore(kind, endpoint, authority)
        _wait_for(store)
        yield store


def _wait_for(store: RunningStore) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if store.authority:
            patch.setenv("SSL_CERT_FILE", str(store.authority / "ca.pem"))
        client = minio_client(store.archive())
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            client.list_buckets()
            break
        except (MinioException, urllib3.exceptions.HTTPError, ssl.SSLError):
            assert time.monotonic() < deadline, f"{store.kind} does not answer"
            time.sleep(0.2)
    client._http.clear()


def _local(kind: str, folder: Path, authority: Path | None) -> tuple[ManagedProcess, str]:
    """MinIO or SeaweedFS, as the local stack starts them, plus a company's options."""
    options: list[str] = []
    environment: dict[str, str] = {}
    local_dir = folder / "local"
    local_dir.mkdir()
    (local_dir / "bin").symlink_to(ROOT / ".local" / "bin")
    if authority and kind == "MinIO":
        (local_dir / "minio-certs").mkdir()
        shutil.copy(authority / "store.pem", local_dir / "minio-certs" / "public.crt")
        shutil.copy(authority / "store.key", local_dir / "minio-certs" / "private.key")
        key = base64.b64encode(secrets.token_bytes(32)).decode()
        environment = {"MINIO_DOMAIN": DOMAIN, "MINIO_REGION": REGION, "MINIO_KMS_SECRET_KEY": f"key:{key}"}
    elif authority:
        options = [f"-s3.cert.file={authority / 'store.pem'}", f"-s3.key.file={authority / 'store.key'}"]
        options.append(f"-s3.domainName={DOMAIN}")

    def start(command: list[str], **given: Any) -> ManagedProcess:
        given["environment"] = given["environment"] | environment
        return ManagedProcess([*command, *options], **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, kind.lower())
        patch.setattr(deployments.local.store_server, "ManagedProcess", start)
        server = start_object_store(
            local_dir=local_dir, data_dir=folder / "data", log_dir=folder, credentials=CREDENTIALS, say=lambda _: None
        )
    return server.process, server.endpoint


def _versitygw(kind: str, folder: Path, authority: Path | None) -> tuple[ManagedProcess, str]:
    """VersityGW on a folder, which must be on a file system with extended attributes."""
    endpoint, program = f"{LOOPBACK}:{free_port()}", _program("versitygw")
    for name in ("data", "versions"):
        (folder / name).mkdir()
    options, backend = [program, "--port", endpoint], ["posix", str(folder / "data")]
    if authority:
        options += ["--cert", str(authority / "store.pem"), "--key", str(authority / "store.key")]
        options += ["--region", REGION, "--virtual-domain", DOMAIN]
        backend = ["posix", "--versioning-dir", str(folder / "versions"), str(folder / "data")]
    process = ManagedProcess(
        [*options, *backend],
        name=kind,
        log_path=folder / "versitygw.log",
        environment={
            **os.environ,
            "ROOT_ACCESS_KEY": CREDENTIALS.access_key,
            "ROOT_SECRET_KEY": CREDENTIALS.secret_key,
        },
    )
    return process, endpoint


def _garage(kind: str, folder: Path, authority: Path | None) -> tuple[ManagedProcess, str]:
    """Garage with one node, without TLS."""
    assert authority is None
    program = _program("garage")
    api, rpc = (f"{LOOPBACK}:{port}" for port in free_ports(2))
    configuration = folder / "garage.toml"
    configuration.write_text(
        f'metadata_dir = "{folder / "meta"}"\ndata_dir = "{folder / "data"}"\ndb_engine = "sqlite"\n'
        f'replication_factor = 1\nrpc_bind_addr = "{rpc}"\nrpc_public_addr = "{rpc}"\n'
        f'rpc_secret = "{secrets.token_hex(32)}"\n[s3_api]\ns3_region = "us-east-1"\napi_bind_addr = "{api}"\n'
    )
    process = ManagedProcess(
        [program, "-c", str(configuration), "server", "--single-node", "--default-bucket"],
        name=kind,
        log_path=folder / "garage.log",
        environment={
            **os.environ,
            "GARAGE_DEFAULT_ACCESS_KEY": CREDENTIALS.access_key,
            "GARAGE_DEFAULT_SECRET_KEY": CREDENTIALS.secret_key,
            "GARAGE_DEFAULT_BUCKET": GARAGE_BUCKET,
        },
    )
    return process, api


GARAGE_BUCKET: Final = "made-at-start"
"""The access key may not create any other bucket."""


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(ROOT / ".local" / "bin"))
    if found is None:
        pytest.skip(f"{name} is neither on PATH nor in .local/bin")
    return found
