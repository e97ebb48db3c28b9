"""The services of a local stack: the sandbox of the API, the object store and a Prefect server."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from deployments.local.credentials import Credentials
from deployments.local.object_store import Say, start_object_store
from deployments.local.prefect_server import start_prefect_server
from deployments.local.processes import LOOPBACK, Launcher, ManagedProcess, http_get, wait_until_ready

SANDBOX_PORT: Final = 8700
MINIO_PORT: Final = 9000
MINIO_CONSOLE_PORT: Final = 9001
PREFECT_PORT: Final = 4200
RECEIVER_PORT: Final = 8710

SANDBOX_START_TIMEOUT_SECONDS: Final = 60.0
CLIENT_START_TIMEOUT_SECONDS: Final = 90.0
"""For the receiver and the worker. Each imports Prefect first: some 4 s on two idle cores."""
WORKER_QUERY_SECONDS: Final = 2
"""How often the worker asks for runs: from an event to its run were measured 6 s with 2 and 24 s with Prefect's 10."""


class RunningServer(Protocol):
    """What the stack knows of a server that is up."""

    @property
    def process(self) -> ManagedProcess:
        """Its process."""

    @property
    def url(self) -> str:
        """Its address, `http://127.0.0.1:port`."""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that other processes need to use it, secrets included."""


@dataclass(frozen=True)
class Start:
    """What a service gets to start with: its port, folders, and what the services that it needs have published."""

    port: int
    local_dir: Path
    environment: Mapping[str, str]
    launcher: Launcher
    say: Say

    @property
    def log_dir(self) -> Path:
        """Where logs go."""
        return self.local_dir / "logs"


@dataclass(frozen=True)
class Service:
    """One service of a stack.

    Args:
        name: of its entry in stack.json and in `LocalStack.servers`.
        start: starts it on the given port, through the given launcher, and returns when it is ready. Called once more
            with another port when that was taken.
        preferred_port: taken when free; 0: any.
        needs: names of services, earlier in the list, that must be ready first.
        secret_files: which of its variables are secret, and the `Credentials` file where others find each.
    """

    name: str
    start: Callable[[Start], RunningServer]
    preferred_port: int = 0
    needs: tuple[str, ...] = ()
    secret_files: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class SandboxServer:
    """The running sandbox of the provider's API."""

    url: str
    api_key: str = field(repr=False)
    process: ManagedProcess

    @property
    def environment(self) -> dict[str, str]:
        """The variables that `sora setup` reads the API's block from."""
        # Its callbacks and videos come from loopback, which is refused otherwise.
        return {"APIXO_BASE_URL": self.url, "APIXO_API_KEY": self.api_key, "APIXO_ALLOW_PRIVATE_HOSTS": "true"}


@dataclass(frozen=True)
class ClientServer:
    """A running client of the Prefect server: the callback receiver, or a worker with its health check."""

    url: str
    process: ManagedProcess
    environment: Mapping[str, str] = field(default_factory=dict)


def default_services(local_dir: Path, *, speed: float = 60.0, sandbox_arguments: Sequence[str] = ()) -> list[Service]:
    """The sandbox, the object store and Prefect.

    Args:
        local_dir: where they keep their data.
        speed: how many times faster than life the sandbox makes its videos.
        sandbox_arguments: further arguments of its command line.
    """
    local_dir = local_dir.resolve()  # the files are named in stack.json, for processes in other folders
    minio_keys, sandbox_keys = local_dir / "minio-credentials.json", local_dir / "sandbox-credentials.json"

    def sandbox(start: Start) -> RunningServer:
        key = Credentials.load_or_create(sandbox_keys).secret_key
        return start_sandbox(start, api_key=key, speed=speed, arguments=sandbox_arguments)

    def object_store(start: Start) -> RunningServer:
        return start_object_store(
            local_dir=local_dir,
            data_dir=local_dir / "minio",
            log_dir=start.log_dir,
            credentials=Credentials.load_or_create(minio_keys),
            port=start.port,
            console_port=MINIO_CONSOLE_PORT,
            say=start.say,
            launcher=start.launcher,
        )

    def prefect(start: Start) -> RunningServer:
        home = local_dir / "prefect"
        return start_prefect_server(home=home, log_dir=start.log_dir, port=start.port, launcher=start.launcher)

    return [
        Service("sandbox", sandbox, SANDBOX_PORT, secret_files={"APIXO_API_KEY": sandbox_keys}),
        Service("object store", object_store, MINIO_PORT, secret_files={"MINIO_SECRET_KEY": minio_keys}),
        Service("prefect", prefect, PREFECT_PORT),
    ]


def client_services(*, receiver_port: int = RECEIVER_PORT) -> list[Service]:
    """The callback receiver and a process worker. They need the blocks and the work pool, so they start last."""
    needs = ("sandbox", "object store", "prefect")
    return [
        Service("receiver", start_receiver, receiver_port, needs),
        Service("worker", start_worker, needs=needs),
    ]


def start_receiver(start: Start) -> ClientServer:
    """Starts `sora callbacks` with the default blocks, and waits until it answers."""
    command = [sys.executable, "-m", "deployments.cli", "callbacks", "--port", str(start.port)]
    return _start_client(start, command, {}, name="The callback receiver", log="receiver")


def start_worker(start: Start) -> ClientServer:
    """Starts a process worker of the work pool, and waits until its health check answers."""
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "sora", "--type", "process"]
    environment = {
        "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_QUERY_SECONDS),
        "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
        "PREFECT_WORKER_WEBSERVER_PORT": str(start.port),
    }
    return _start_client(start, [*command, "--with-healthcheck"], environment, name="The worker", log="worker")


def _start_client(
    start: Start, command: Sequence[str], environment: Mapping[str, str], *, name: str, log: str
) -> ClientServer:
    folder = start.local_dir / log
    folder.mkdir(parents=True, exist_ok=True)
    process = start.launcher.start(
        command,
        name=name,
        log_path=start.log_dir / f"{log}.log",
        environment={**os.environ, **start.environment, **environment},
        cwd=folder,  # Prefect reads .env, prefect.toml and pyproject.toml of its working folder, Python its modules
    )
    try:
        wait_until_ready(
            lambda: (http_get(start.port, "/health") or (0, b""))[0] == 200,
            process=process,
            timeout_seconds=CLIENT_START_TIMEOUT_SECONDS,
            what=name,
        )
    except BaseException:
        process.stop()
        raise
    return ClientServer(url=f"http://{LOOPBACK}:{start.port}", process=process)


def start_sandbox(start: Start, *, api_key: str, speed: float, arguments: Sequence[str] = ()) -> SandboxServer:
    """Starts the sandbox of the API and waits until it answers. `speed` 60 makes a minute a second."""
    data_dir = start.local_dir / "sandbox"
    data_dir.mkdir(parents=True, exist_ok=True)
    options = ["--port", str(start.port), "--speed", str(speed)]
    process = start.launcher.start(
        [sys.executable, "-m", "deployments.cli", "sandbox", *options, *arguments],
        name="The sandbox of the API",
        log_path=start.log_dir / "sandbox.log",
        environment={**os.environ, **start.environment, "SORA_SANDBOX_API_KEY": api_key},
        cwd=data_dir,  # Python's -m looks here first: another folder's own `deployments` must not win
    )
    try:
        wait_until_ready(
            lambda: (http_get(start.port, "/") or (0, b""))[0] == 200,
            process=process,
            timeout_seconds=SANDBOX_START_TIMEOUT_SECONDS,
            what=process.name,
        )
    except BaseException:
        process.stop()
        raise
    return SandboxServer(url=f"http://{LOOPBACK}:{start.port}", api_key=api_key, process=process)
