"""The object store of the local stack: MinIO where it can be found or built, else moto's S3 server."""

import fcntl
import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import urllib3
from minio import Minio
from minio.error import MinioException

from deployments.local.credentials import Credentials
from deployments.local.processes import LOOPBACK, ManagedProcess, ProcessError, Server, free_port, require_free

MINIO_PACKAGE: Final = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
"""A version pinned by its commit: Go verifies its checksum, and every machine builds the same program."""

BUILD_TIMEOUT_SECONDS: Final = 1800.0
"""A first build was measured at 2 to 4 minutes on 2 idle cores, and at 9 where other work took most of them."""

START_TIMEOUT_SECONDS: Final = 60.0
"""MinIO was measured to be ready within a second, moto within three; a busy machine takes longer."""

FORCE_VARIABLE: Final = "SORA_OBJECT_STORE"
"""Environment variable: `moto` takes the fallback even where MinIO is available."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ObjectStoreServer(Server):
    """An object store. `endpoint` is `127.0.0.1:port`, as MinIO clients want it."""

    kind: Literal["minio", "moto"]
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)


def find_minio(local_dir: Path) -> Path | None:
    """The `minio` program: on PATH, else in `<local_dir>/bin`."""
    built = local_dir / "bin" / "minio"
    # With another search path `which` checks that the file may be executed.
    found = shutil.which("minio") or shutil.which("minio", path=str(built.parent))
    return Path(found).resolve() if found else None


def build_minio(local_dir: Path, say: Say) -> Path | None:
    """Builds MinIO into `<local_dir>/bin` with Go, once: 2 to 4 minutes, needs the network.

    Several processes may call it at once: one builds, the others wait and take its result.

    Returns:
        The program, or None when Go is missing or the build failed; why is said.
    """
    local_dir = local_dir.resolve()  # Go refuses a relative GOBIN
    bin_dir = local_dir / "bin"
    go = shutil.which("go")
    if go is None:
        say("MinIO is not installed, and Go, which could build it, is neither.")
        return None
    bin_dir.mkdir(parents=True, exist_ok=True)
    with _locked(local_dir / "minio-build.lock", say):
        built = bin_dir / "minio"
        if built.exists():
            return built
        say("MinIO is not installed: building it with Go, once. This takes 2 to 4 minutes, on a busy machine longer.")
        # A folder beside the result: the rename at the end is atomic, so a half-written program is never found.
        with tempfile.TemporaryDirectory(dir=bin_dir, prefix=".minio-") as folder:
            if not _go_install(go, Path(folder), local_dir, say):
                return None
            (Path(folder) / "minio").replace(built)
        say("MinIO is built.")
        return built


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
    """Starts MinIO on loopback; without MinIO, moto's S3 server. It is not ready yet: see `Server.ready`.

    Args:
        local_dir: where a built MinIO is, or is put.
        data_dir: MinIO's data. Kept over restarts.
        log_dir: `minio.log` (or `moto.log`) goes there.
        port: the S3 API's; 0 takes a free one.
        console_port: that of MinIO's web page. 0, or a taken one, takes a free one.

    Raises:
        ProcessError: `port` was given and is taken; or there is neither MinIO, nor Go, nor moto.
    """
    binary = None
    if os.environ.get(FORCE_VARIABLE) != "moto":
        binary = find_minio(local_dir) or build_minio(local_dir, say)
    port = require_free(port, "The object store") if port else free_port()
    endpoint, console_url = f"{LOOPBACK}:{port}", None
    if binary is None:
        process = _start_moto(port, log_dir=log_dir, say=say)
    else:
        console = f"{LOOPBACK}:{free_port(console_port)}"
        console_url = f"http://{console}"
        # An own folder for certificates: one found in ~/.minio/certs would switch it to https.
        certs_dir = local_dir / "minio-certs"
        for folder in (data_dir, certs_dir):
            folder.mkdir(parents=True, exist_ok=True)
        options = ["--address", endpoint, "--console-address", console, "--certs-dir", str(certs_dir)]
        process = ManagedProcess(
            [str(binary), "server", *options, str(data_dir)],
            name="MinIO",
            log_path=log_dir / "minio.log",
            environment=_minio_environment(os.environ, credentials, console_url),
        )
    return ObjectStoreServer(
        kind="moto" if binary is None else "minio",
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


def _minio_environment(inherited: Mapping[str, str], credentials: Credentials, console_url: str) -> dict[str, str]:
    # No MINIO_* of the caller gets through: those of our own clients (MINIO_ACCESS_KEY) mean something else to the
    # server, and a stranger's MINIO_VOLUMES or MINIO_CONFIG would make it serve other data.
    return {name: value for name, value in inherited.items() if not name.startswith("MINIO_")} | {
        "MINIO_ROOT_USER": credentials.access_key,
        "MINIO_ROOT_PASSWORD": credentials.secret_key,
        "MINIO_UPDATE": "off",
        "MINIO_CALLHOME_ENABLE": "off",
        "MINIO_BROWSER_REDIRECT_URL": console_url,
    }


def _start_moto(port: int, *, log_dir: Path, say: Say) -> ManagedProcess:
    if importlib.util.find_spec("moto") is None:
        raise ProcessError(
            "There is no object store: install MinIO (or Go, which builds it), or the fallback with "
            "`pip install 'moto[s3,server]'`; or point MINIO_ENDPOINT at a running MinIO or S3."
        )
    say("Using moto's S3 server instead of MinIO. It forgets every video when it stops: for trying out only.")
    return ManagedProcess(
        [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)],
        name="moto",
        log_path=log_dir / "moto.log",
    )


def _accepts(endpoint: str, credentials: Credentials) -> bool:
    # A signed call, not the health page: only our own server knows the secret, whoever else may listen on this port.
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


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is building MinIO: waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file unlocks, as does the end of this process


def _go_install(go: str, target: Path, local_dir: Path, say: Say) -> bool:
    process = ManagedProcess(
        [go, "install", "-ldflags=-s -w", MINIO_PACKAGE],
        name="go install",
        log_path=local_dir / "logs" / "minio-build.log",
        environment=_go_environment(os.environ, target, local_dir),
        cwd=target,  # outside any Go module or workspace
    )
    began = time.monotonic()
    said = 0.0
    try:
        while process.is_alive() and (spent := time.monotonic() - began) < BUILD_TIMEOUT_SECONDS:
            if spent - said >= 20:
                said = spent
                say(f"Building MinIO… {spent:.0f} s")
            time.sleep(0.2)
    finally:
        code = process.stop()
    if code != 0:
        say(f"MinIO could not be built (exit code {code}); {process.log_path} ends with:\n{process.log_tail(8)}")
    return code == 0


def _go_environment(inherited: Mapping[str, str], target: Path, local_dir: Path) -> dict[str, str]:
    environment = {**inherited, "GOBIN": str(target), "CGO_ENABLED": "0", "GOWORK": "off"}
    # For another system it would be built into a folder of that name, and GOBIN be refused.
    environment.pop("GOOS", None)
    environment.pop("GOARCH", None)
    if not inherited.get("HOME"):  # Go finds no place for its caches without one
        environment["GOPATH"] = str(local_dir / "go")
        environment["GOCACHE"] = str(local_dir / "go" / "build-cache")
        environment["GOFLAGS"] = f"{inherited.get('GOFLAGS', '')} -modcacherw".strip()  # so that `make clean` can
    return environment
