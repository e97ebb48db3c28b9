"""Prefect as it runs on many machines: PostgreSQL, Redis, several API processes, separate services; all on loopback."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deployments.local.prefect_server import SERVER_QUIET, TUNED
from deployments.local.processes import LOOPBACK, ManagedProcess, free_port, http_get, wait_until_ready

POSTGRES_FOLDERS: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
API_PROCESSES: Final = "2"
START_SECONDS: Final = 120.0


def missing() -> str | None:
    """What is not installed here; None: everything is installed."""
    if _postgres() is None:
        return "PostgreSQL is not installed: apt-get install postgresql"
    if shutil.which("redis-server") is None:
        return "Redis is not installed: apt-get install redis-server"
    return None


def _postgres() -> Path | None:
    found = shutil.which("initdb")
    folders = [*POSTGRES_FOLDERS, *([Path(found).resolve().parent] if found else [])]
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@dataclass(frozen=True)
class Topology:
    """The API URL, the environment that makes a process its client, and the server processes."""

    api_url: str
    environment: dict[str, str]
    folder: Path
    prefect: tuple[ManagedProcess, ...]
    """The API and the services."""
    database: ManagedProcess
    redis: ManagedProcess

    def worker(self, name: str) -> ManagedProcess:
        """Starts a worker of the pool `sora`, as on one more machine."""
        return ManagedProcess(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "sora", "--type", "process", "--name", name],
            name=name,
            log_path=self.folder / f"{name}.log",
            environment=self.environment | {"SORA_WORK_DIR": str(self.folder / f"work_root-{name}")},
            cwd=Path(__file__).parents[2],
        )


@contextmanager
def started(folder: Path) -> Iterator[Topology]:
    """Starts the whole topology with empty databases, and stops it when the block ends."""
    with ExitStack() as stack:
        database, database_url = stack.enter_context(_postgresql(folder))
        redis, redis_port = stack.enter_context(_redis(folder))
        port = free_port()
        home = folder / "home"
        home.mkdir()
        api_url = f"http://{LOOPBACK}:{port}/api"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        server = inherited | {
            **SERVER_QUIET,
            **TUNED,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": api_url,
            # If two API processes register block types in an empty database, they may conflict, and then both stop.
            "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # `save` registers missing ones
            "PREFECT_API_DATABASE_CONNECTION_URL": database_url,
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_URL": f"redis://{LOOPBACK}:{redis_port}/0",
            "PREFECT_SERVER_DOCKET_URL": f"redis://{LOOPBACK}:{redis_port}/1",
        }
        prefect = [sys.executable, "-m", "prefect", "server"]
        _run([*prefect, "database", "upgrade", "-y"], folder / "upgrade.log", server)
        api = ManagedProcess(
            [*prefect, "start", "--no-services", "--host", LOOPBACK, "--port", str(port), "--workers", API_PROCESSES],
            name="Prefect's API", log_path=folder / "api.log", environment=server, cwd=home,
        )  # fmt: skip
        stack.callback(api.stop)
        services = ManagedProcess(
            [*prefect, "services", "start"],
            name="Prefect's services", log_path=folder / "services.log", environment=server, cwd=home,
        )  # fmt: skip
        stack.callback(services.stop)
        wait_until_ready(
            lambda: http_get(port, "/api/health") == (200, b"true"),
            process=api, timeout_seconds=START_SECONDS,
        )  # fmt: skip
        client = inherited | {
            **SERVER_QUIET,
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": api_url,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        yield Topology(api_url, client, folder, (api, services), database, redis)


@contextmanager
def _postgresql(folder: Path) -> Iterator[tuple[ManagedProcess, str]]:
    programs = _postgres()
    assert programs is not None
    # Not in pytest's folder: if root runs the tests, PostgreSQL runs as another user, who cannot read that folder.
    data, port, password = Path(tempfile.mkdtemp(prefix="sora-postgres-")), free_port(), secrets.token_hex(16)
    as_user: list[str] = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        shutil.chown(data, "postgres")
    secret = data.with_suffix(".password")
    secret.touch(0o600)
    secret.write_text(password)
    if as_user:
        shutil.chown(secret, "postgres")
    initdb = [str(programs / "initdb"), "-D", str(data / "data"), "-U", "prefect", "-A", "scram-sha-256"]
    _run([*as_user, *initdb, "--pwfile", str(secret), "-E", "UTF8"], folder / "initdb.log", dict(os.environ))
    is_ready = [str(programs / "pg_isready"), "-qh", LOOPBACK, "-p", str(port)]
    options = {"listen_addresses": LOOPBACK, "port": str(port), "unix_socket_directories": "", "fsync": "off"}
    server = ManagedProcess(
        [*as_user, str(programs / "postgres"), "-D", str(data / "data")]
        + [part for name, value in options.items() for part in ("-c", f"{name}={value}")],
        name="PostgreSQL", log_path=folder / "postgres.log", cwd=Path("/"),
    )  # fmt: skip
    try:
        wait_until_ready(
            lambda: subprocess.run(is_ready, check=False).returncode == 0,
            process=server, timeout_seconds=START_SECONDS,
        )  # fmt: skip
        yield server, f"postgresql+asyncpg://prefect:{password}@{LOOPBACK}:{port}/postgres"
    finally:
        server.stop()
        secret.unlink()
        shutil.rmtree(data, ignore_errors=True)


@contextmanager
def _redis(folder: Path) -> Iterator[tuple[ManagedProcess, int]]:
    port = free_port()
    program = shutil.which("redis-server")
    assert program is not None
    with ManagedProcess(
        [program, "--bind", LOOPBACK, "--port", str(port), "--save", "", "--dir", str(folder)],
        name="Redis", log_path=folder / "redis.log",
    ) as server:  # fmt: skip
        wait_until_ready(
            lambda: "Ready to accept connections" in server.log_tail(),
            process=server, timeout_seconds=START_SECONDS,
        )  # fmt: skip
        yield server, port


def _run(command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Runs a program, which must succeed."""
    with log.open("wb") as out:
        done = subprocess.run(command, env=environment, stdout=out, stderr=out, cwd="/", check=False)
    assert done.returncode == 0, log.read_text()[-4000:]
