"""The services of a local stack: the sandbox of the API, the object store, a Prefect server, and its clients."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from deployments.local.minio_build import Say
from deployments.local.prefect_server import start_prefect_server
from deployments.local.processes import LOOPBACK, SANDBOX_PORT, ManagedProcess, Server, http_get
from deployments.local.stack_info import Credentials
from deployments.local.store_server import start_object_store

MINIO_PORT: Final = 9000
MINIO_CONSOLE_PORT: Final = 9001
PREFECT_PORT: Final = 4200

START_TIMEOUT_SECONDS: Final = 90.0
"""For the sandbox, receiver, gallery and worker. The last three import Prefect, some 4 s on two idle cores."""
WORKER_QUERY_SECONDS: Final = 2
"""How often the worker polls for runs. Measured from an event to its run: 6 s, or 24 s with Prefect's default of 10."""


@dataclass(frozen=True)
class Service:
    """One service of a stack.

    Args:
        name: its name in stack.json and in `LocalStack.servers`.
        start: starts it on the given port, with the variables of the services that are ready. It may return early.
        preferred_port: used if it is free; 0: any port.
        console_port: the same for its web console; None: it has none. `start` gets the port as `console_port`.
        secret_files: its secret variables, each with the `Credentials` file that contains the secret.
    """

    name: str
    start: Callable[..., Server]
    preferred_port: int = 0
    console_port: int | None = None
    secret_files: Mapping[str, Path] = field(default_factory=dict)


def default_services(local_dir: Path, *, say: Say, sandbox_options: Sequence[str]) -> list[Service]:
    """The sandbox, started with these command-line options, the object store and Prefect.

    Args:
        say: called with one line per step if MinIO has to be built.
    """
    local_dir = local_dir.resolve()  # stack.json contains the files' paths, for processes in other folders
    minio_keys, sandbox_keys = local_dir / "minio-credentials.json", local_dir / "sandbox-credentials.json"

    def sandbox(port: int, _: Mapping[str, str]) -> Server:
        key = Credentials.load_or_create(sandbox_keys).secret_key
        return _start_program(
            "sandbox",
            ["deployments.cli", "sandbox", "--port", str(port), *sandbox_options],
            port,
            {"SORA_SANDBOX_API_KEY": key},
            local_dir,
            health="/",
            # Its callbacks and videos come from loopback, which is rejected otherwise.
            publishes={
                "APIXO_BASE_URL": f"http://{LOOPBACK}:{port}",
                "APIXO_API_KEY": key,
                "APIXO_ALLOW_PRIVATE_HOSTS": "true",
            },
        )

    def object_store(port: int, _: Mapping[str, str], *, console_port: int) -> Server:
        return start_object_store(
            local_dir=local_dir,
            data_dir=local_dir / "minio",
            log_dir=local_dir / "logs",
            credentials=Credentials.load_or_create(minio_keys),
            port=port,
            console_port=console_port,
            say=say,
        )

    def prefect(port: int, _: Mapping[str, str]) -> Server:
        return start_prefect_server(home=local_dir / "prefect", log_dir=local_dir / "logs", port=port)

    return [
        Service("sandbox", sandbox, SANDBOX_PORT, secret_files={"APIXO_API_KEY": sandbox_keys}),
        Service("object store", object_store, MINIO_PORT, MINIO_CONSOLE_PORT, {"MINIO_SECRET_KEY": minio_keys}),
        Service("prefect", prefect, PREFECT_PORT),
    ]


def client_services(local_dir: Path, *, receiver_port: int, gallery_port: int) -> list[Service]:
    """The callback receiver and the gallery, with the default blocks, and a process worker of the work pool."""
    local_dir = local_dir.resolve()

    def program(name: str, command: str, preferred_port: int) -> Service:
        def start(port: int, environment: Mapping[str, str]) -> Server:
            order = ["deployments.cli", command, "--port", str(port)]
            return _start_program(name, order, port, environment, local_dir)

        return Service(name, start, preferred_port)

    def worker(port: int, environment: Mapping[str, str]) -> Server:
        command = ["prefect", "worker", "start", "--pool", "sora", "--type", "process", "--with-healthcheck"]
        options = {
            "PREFECT_WORKER_QUERY_SECONDS": str(WORKER_QUERY_SECONDS),
            "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
        }
        return _start_program("worker", command, port, {**environment, **options}, local_dir)

    return [
        program("receiver", "callbacks", receiver_port),
        program("gallery", "serve", gallery_port),
        Service("worker", worker),
    ]


def _start_program(
    name: str,
    module: Sequence[str],
    port: int,
    environment: Mapping[str, str],
    local_dir: Path,
    *,
    health: str = "/health",
    publishes: dict[str, str] | None = None,
) -> Server:
    """Starts `python -m <module>`. It is ready when the path `health` answers 200."""
    # A separate working folder: Prefect reads its .env, prefect.toml and pyproject.toml, and `python -m` would import a
    # `deployments` package from it.
    folder = local_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    process = ManagedProcess(
        [sys.executable, "-m", *module],
        name=f"The {name}",
        log_path=local_dir / "logs" / f"{name}.log",
        environment={**os.environ, **environment},
        cwd=folder,
    )
    return Server(
        process=process,
        url=f"http://{LOOPBACK}:{port}",
        environment=publishes or {},
        answers=lambda: (http_get(port, health) or (0, b""))[0] == 200,
        timeout_seconds=START_TIMEOUT_SECONDS,
    )
