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
from deployments.local.processes import (
    LOOPBACK,
    Launcher,
    ManagedProcess,
    ProcessError,
    free_port,
    http_get,
    port_is_free,
    require_free,
    start_on_free_port,
    wait_until_ready,
)

MINIO_PACKAGE: Final = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
"""A version pinned by its commit: Go verifies its checksum, and every machine builds the same program."""

BUILD_TIMEOUT_SECONDS: Final = 1800.0
"""A first build was measured at 2 to 4 minutes on 2 idle cores, and at 9 where other work took most of them."""

START_TIMEOUT_SECONDS: Final = 60.0
"""MinIO was measured to be ready within a second, moto within three; a busy machine takes longer."""

FORCE_VARIABLE: Final = "SORA_OBJECT_STORE"
"""Environment variable: `moto` takes the fallback even where MinIO is available."""

Say = Callable[[str], None]


class ObjectStoreUnavailableError(ProcessError):
    """Neither MinIO nor the fallback can be started on this machine."""


@dataclass(frozen=True)
class ObjectStoreServer:
    """A running object store.

    `endpoint` is `127.0.0.1:port`, as MinIO clients want it; `url` the same with its scheme; `console_url` its web page
    for people, which moto does not have.
    """

    kind: Literal["minio", "moto"]
    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    process: ManagedProcess
    console_url: str | None = None

    @property
    def url(self) -> str:
        """The address of its S3 API."""
        return f"http://{self.endpoint}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `sora setup` reads the archive's block from."""
        return {
            "MINIO_ENDPOINT": self.endpoint,
            "MINIO_ACCESS_KEY": self.access_key,
            "MINIO_SECRET_KEY": self.secret_key,
            "MINIO_SECURE": "false",
        }


def find_minio(local_dir: Path) -> Path | None:
    """The `minio` program: on PATH, else in `<local_dir>/bin`."""
    built = local_dir / "bin" / "minio"
    # With another search path `which` checks that the file may be executed.
    found = shutil.which("minio") or shutil.which("minio", path=str(built.parent))
    return Path(found).resolve() if found else None


def build_minio(local_dir: Path, say: Say, *, launcher: Launcher | None = None) -> Path | None:
    """Builds MinIO into `<local_dir>/bin` with Go, once: 2 to 4 minutes, needs the network.

    Several processes may call it at once: one builds, the others wait and take its result.

    Returns:
        The program, or None when Go is missing or the build failed; why is said.
    """
    launcher = launcher or Launcher()
    local_dir = local_dir.resolve()  # Go refuses a relative GOBIN
    bin_dir = local_dir / "bin"
    go = shutil.which("go")
    if go is None:
        say("MinIO is not installed, and Go, which could build it, is neither.")
        return None
    bin_dir.mkdir(parents=True, exist_ok=True)
    with _locked(local_dir / "minio-build.lock", launcher, say):
        built = bin_dir / "minio"
        if built.exists():
            return built
        say("MinIO is not installed: building it with Go, once. This takes 2 to 4 minutes, on a busy machine longer.")
        # A folder beside the result: the rename at the end is atomic, so a half-written program is never found.
        with tempfile.TemporaryDirectory(dir=bin_dir, prefix=".minio-") as folder:
            if not _go_install(go, Path(folder), local_dir, say, launcher):
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
    launcher: Launcher | None = None,
) -> ObjectStoreServer:
    """Starts MinIO on loopback and waits until it accepts the credentials; without MinIO, moto's S3 server.

    Args:
        local_dir: where a built MinIO is, or is put.
        data_dir: MinIO's data. Kept over restarts.
        log_dir: `minio.log` (or `moto.log`) and `minio-build.log` go there.
        port: the S3 API's; 0 takes a free one.
        console_port: that of MinIO's web page. 0, or a taken one, takes a free one.

    Raises:
        PortTakenError: `port` was given and is taken.
        ProcessError: it could not be started; the message holds the end of its log.
        ObjectStoreUnavailableError: there is neither MinIO, nor Go, nor moto.
    """
    launcher = launcher or Launcher()
    binary = None
    if os.environ.get(FORCE_VARIABLE) != "moto":
        binary = find_minio(local_dir) or build_minio(local_dir, say, launcher=launcher)

    def start(chosen: int) -> ObjectStoreServer:
        if binary is None:
            return _start_moto(chosen, log_dir=log_dir, credentials=credentials, say=say, launcher=launcher)
        return _start_minio(
            binary,
            chosen,
            console_port if console_port and port_is_free(console_port) else free_port(),
            certs_dir=local_dir / "minio-certs",
            data_dir=data_dir,
            log_dir=log_dir,
            credentials=credentials,
            launcher=launcher,
        )

    return start(require_free(port, "The object store")) if port else start_on_free_port(start)


def _start_minio(
    binary: Path,
    port: int,
    console_port: int,
    *,
    certs_dir: Path,
    data_dir: Path,
    log_dir: Path,
    credentials: Credentials,
    launcher: Launcher,
) -> ObjectStoreServer:
    data_dir.mkdir(parents=True, exist_ok=True)
    certs_dir.mkdir(parents=True, exist_ok=True)
    endpoint, console = f"{LOOPBACK}:{port}", f"{LOOPBACK}:{console_port}"
    # No MINIO_* of the caller gets through: those of our own clients (MINIO_ACCESS_KEY) mean something else to the
    # server, and a stranger's MINIO_VOLUMES or MINIO_CONFIG would make it serve other data.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MINIO_")} | {
        "MINIO_ROOT_USER": credentials.access_key,
        "MINIO_ROOT_PASSWORD": credentials.secret_key,
        "MINIO_UPDATE": "off",
        "MINIO_CALLHOME_ENABLE": "off",
        "MINIO_BROWSER_REDIRECT_URL": f"http://{console}",
    }
    # An own folder for certificates: one found in ~/.minio/certs would switch it to https.
    options = ["--address", endpoint, "--console-address", console, "--certs-dir", str(certs_dir)]
    process = launcher.start(
        [str(binary), "server", *options, str(data_dir)],
        name="MinIO",
        log_path=log_dir / "minio.log",
        environment=environment,
    )
    _ready_or_stopped(process, lambda: _accepts(endpoint, credentials))
    return ObjectStoreServer(
        "minio", endpoint, credentials.access_key, credentials.secret_key, process, f"http://{console}"
    )


def _start_moto(
    port: int, *, log_dir: Path, credentials: Credentials, say: Say, launcher: Launcher
) -> ObjectStoreServer:
    if importlib.util.find_spec("moto") is None:
        raise ObjectStoreUnavailableError(
            "There is no object store: install MinIO (or Go, which builds it), or the fallback with "
            "`pip install 'moto[s3,server]'`; or point MINIO_ENDPOINT at a running MinIO or S3."
        )
    say("Using moto's S3 server instead of MinIO. It forgets every video when it stops: for trying out only.")
    process = launcher.start(
        [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)],
        name="moto",
        log_path=log_dir / "moto.log",
    )
    _ready_or_stopped(process, lambda: (http_get(port, "/moto-api/") or (0, b""))[0] == 200)
    return ObjectStoreServer("moto", f"{LOOPBACK}:{port}", credentials.access_key, credentials.secret_key, process)


def _ready_or_stopped(process: ManagedProcess, check: Callable[[], bool]) -> None:
    try:
        wait_until_ready(check, process=process, timeout_seconds=START_TIMEOUT_SECONDS, what=process.name)
    except BaseException:
        process.stop()
        raise


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
def _locked(path: Path, launcher: Launcher, say: Say) -> Iterator[None]:
    with path.open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    say("Another process is building MinIO: waiting for it.")
                waiting = True
            # Not a blocking lock: a stack that is being stopped would hang in it for minutes.
            launcher.check_open()
            time.sleep(0.2)
        yield  # closing the file unlocks, as does the end of this process


def _go_install(go: str, target: Path, local_dir: Path, say: Say, launcher: Launcher) -> bool:
    process = launcher.start(
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
    launcher.check_open()  # stopped from outside is no failed build
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
