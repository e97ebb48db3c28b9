"""The servers of the benchmark, each in its own processes, and how much processor time each has used."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, assert_never

import httpx
from prefect.blocks.system import Secret

from blocks import ApixoApi
from deployments.local.prefect_server import start_prefect_server
from deployments.local.processes import LOOPBACK, ManagedProcess, free_port, http_get, wait_until_ready
from deployments.local.stack_info import Credentials
from deployments.local.store_server import ObjectStoreServer, start_object_store
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_archive, topology, unique
from tests.support.prefect_home import prepare

ROOT: Final = Path(__file__).parents[2]
TICKS: Final = os.sysconf("SC_CLK_TCK")


Server = Literal["sqlite", "postgresql"]
"""Where the Prefect server keeps its data: in SQLite and its own memory, or in PostgreSQL and Redis. With PostgreSQL,
the API runs in two processes and the services in one."""


def processor_seconds(processes: Sequence[ManagedProcess]) -> float:
    """The processor time of processes and all their descendants, including ended ones, as measured by Linux."""
    found: dict[int, tuple[int, int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found[int(stat.parent.name)] = int(fields[1]), sum(int(field) for field in fields[11:15])
    ours = {process.pid for process in processes}
    while more := {pid for pid, (parent, _) in found.items() if parent in ours} - ours:
        ours |= more
    return sum(ticks for pid, (_, ticks) in found.items() if pid in ours) / TICKS


@dataclass(frozen=True)
class Backend:
    """A Prefect server.

    Attributes:
        api_url, environment: what its clients need.
        prefect, database, redis: its processes; with SQLite, only the server itself.
    """

    api_url: str
    environment: Mapping[str, str]
    prefect: Sequence[ManagedProcess]
    database: Sequence[ManagedProcess] = ()
    redis: Sequence[ManagedProcess] = ()


class Sandbox:
    """A running light sandbox, and the requests that it received."""

    def __init__(self, process: ManagedProcess, url: str, api_key: str) -> None:
        self.process, self.url, self.api_key = process, url, api_key

    def requests(self) -> dict[str, int]:
        """How many requests it received, by kind."""
        counts: dict[str, int] = {}
        for request in self._get("requests"):
            counts[request["call"]] = counts.get(request["call"], 0) + 1
        return counts

    def first_at(self, call: str) -> dict[str, float]:
        """When it received the first such request about each task, in Unix seconds."""
        first: dict[str, float] = {}
        for request in self._get("requests"):
            if request["call"] == call and request["task_id"] is not None:
                first.setdefault(request["task_id"], request["time"])
        return first

    def completed_at(self) -> dict[str, float]:
        """When each task was finished, in Unix seconds."""
        return {task["taskId"]: task["completeTime"] / 1000 for task in self._get("tasks") if task.get("completeTime")}

    def longest_seconds(self) -> float:
        """Seconds from the first submission to the end of the last task. At this rate, no client can be faster."""
        tasks = self._get("tasks")
        return float(max(task["completeTime"] for task in tasks) - min(task["createTime"] for task in tasks)) / 1000

    def _get(self, what: str) -> Any:
        return httpx.get(f"{self.url}/sandbox/{what}", timeout=120).raise_for_status().json()


class Environment:
    """A store and a Prefect server for all runs, and a new sandbox, bucket and blocks for each."""

    def __init__(self, minio: ObjectStoreServer, prefect: Backend, folder: Path) -> None:
        self.minio, self.prefect, self.folder = minio, prefect, folder

    @contextmanager
    def sandbox(self, *, speed: float, video: Path) -> Iterator[Sandbox]:
        port, api_key = free_port(), unique("key")
        arguments = [str(port), str(speed), str(video)]
        with self._program(["tests.bench.light_sandbox", *arguments], port, SORA_SANDBOX_API_KEY=api_key) as process:
            yield Sandbox(process, f"http://{LOOPBACK}:{port}", api_key)

    @contextmanager
    def receiver(self, stored: StoredBlocks) -> Iterator[ManagedProcess]:
        port = int((stored.api.callback_url or "").rpartition(":")[2])
        blocks = ["--api", stored.name, "--archive", stored.name]
        with self._program(["deployments.cli", "callbacks", "--port", str(port), *blocks], port) as process:
            yield process

    @contextmanager
    def _program(self, module: list[str], port: int, **environment: str) -> Iterator[ManagedProcess]:
        process = ManagedProcess(
            [sys.executable, "-m", *module],
            name=module[0],
            log_path=self.folder / f"{module[0]}.log",
            environment={**self.environment, **environment},
            cwd=ROOT,
        )
        with process:
            wait_until_ready(
                lambda: (http_get(port, "/health") or http_get(port, "/")) is not None,
                process=process,
                timeout_seconds=90,
            )
            yield process

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that a client process needs."""
        return {**os.environ, **self.prefect.environment, "SORA_WORK_DIR": str(self.folder / "work")}

    async def blocks(self, sandbox: Sandbox, *, callbacks: bool, **waits: float) -> StoredBlocks:
        """Stores blocks with a new bucket."""
        api = ApixoApi(
            api_key=Secret(value=sandbox.api_key),
            base_url=sandbox.url,
            allow_private_hosts=True,
            callback_url=f"http://{LOOPBACK}:{free_port()}" if callbacks else None,
            callback_secret=Secret(value=unique("secret")) if callbacks else None,
            **waits,
        )
        return await store_blocks(api, make_archive(self.minio))


@contextmanager
def environments(folder: Path, servers: Sequence[Server]) -> Iterator[dict[Server, Environment]]:
    """Starts the store and each of the Prefect servers."""
    credentials = Credentials.load_or_create(folder / "credentials.json")
    store = start_object_store(
        local_dir=ROOT / ".local", data_dir=folder / "data", log_dir=folder, credentials=credentials
    ).ready()
    with ExitStack() as stack:
        stack.enter_context(store.process)
        yield {server: Environment(store, stack.enter_context(_backend(server, folder)), folder) for server in servers}


@contextmanager
def _backend(server: Server, folder: Path) -> Iterator[Backend]:
    match server:
        case "sqlite":
            alone = start_prefect_server(home=prepare(folder / "home"), log_dir=folder).ready()
            with alone.process:
                yield Backend(alone.api_url, alone.environment, [alone.process])
        case "postgresql":
            (folder / server).mkdir()
            with topology.started(folder / server) as many:
                yield Backend(many.api_url, many.environment, many.prefect, [many.database], [many.redis])
        case _:
            assert_never(server)
