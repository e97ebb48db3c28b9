"""A real worker, which executes each run of the deployed flow in its own process.

All long-running processes stop after the last test of this package, so they do not slow down the tests after it.
"""

import os
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest
from prefect.client.base import PrefectHttpxAsyncClient
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State

from deployments.local.prefect_server import PrefectServer
from deployments.local.processes import ManagedProcess
from deployments.local.stack_info import StackInfo
from tests.e2e.running import Running
from tests.e2e.stack import stack_up
from tests.support.fork_server import ForkServer

ROOT = Path(__file__).parent.parent.parent
RUN_SECONDS = 180
"""A flow run in its own process takes 4 to 8 s on two cores. Several in parallel take longer."""


@pytest.fixture(scope="session")
def client_environment(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment that makes a process a client of the session's server."""
    work_root = tmp_path_factory.mktemp("work")
    return {
        **os.environ,
        **prefect_server.environment,
        "SORA_WORK_DIR": str(work_root),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
    }


@pytest.fixture(scope="package")
def forks(client_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks processes that use the session's server and send their logs to it."""
    folder = tmp_path_factory.mktemp("e2e-forks")
    with ForkServer(folder / "socket", client_environment) as server:
        yield server


@pytest.fixture(scope="package")
def deployment(client_environment: dict[str, str], forks: ForkServer) -> str:
    """Deploys prefect.yaml with the command in its first line. Returns the name of the deployment for one video."""
    for command in (
        ["work-pool", "create", "sora", "--type", "process", "--overwrite"],
        # Not the collector, which would run on its schedule.
        ["--no-prompt", "deploy", *(f"--name=generate-{name}" for name in ("video", "batch", "shard"))],
    ):
        process = forks.start(command, client_environment, ROOT, module="prefect")
        output = process.communicate(RUN_SECONDS)
        assert process.returncode == 0, output
    return "generate-video/generate-video"


@pytest.fixture(scope="package")
def start_worker(
    deployment: str, client_environment: dict[str, str], forks: ForkServer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], ManagedProcess]:
    """Starts a forked process worker. The worker of `sora up` is started as a user's is."""

    def start() -> ManagedProcess:
        return ManagedProcess(
            [*forks.command("prefect"), "worker", "start", "--pool", "sora", "--type", "process"],
            name="worker",
            log_path=tmp_path_factory.mktemp("worker") / "worker.log",
            environment=client_environment,
            cwd=ROOT,
        )

    return start


@pytest.fixture(scope="package")
def worker(start_worker: Callable[[], ManagedProcess]) -> Iterator[ManagedProcess]:
    process = start_worker()
    yield process
    process.stop()


Runs = Callable[..., Awaitable[FlowRun]]


@pytest.fixture
async def start_run(prefect: PrefectClient, deployment: str, worker: ManagedProcess) -> Runs:
    """Starts a run of the deployment, as the UI's Run button does."""

    async def start(**parameters: Any) -> FlowRun:
        found = await prefect.read_deployment_by_name(deployment)
        return await prefect.create_flow_run_from_deployment(found.id, parameters=parameters)

    return start


@pytest.fixture
async def start_quick_run(prefect: PrefectClient, deployment: str, worker: ManagedProcess, forks: ForkServer) -> Runs:
    """The same, but each process is forked. The worker would start three in turn, which spend 5 s on imports.

    Not for tests of what a signal does to the processes that Prefect starts.
    """
    command = {"command": shlex.join(forks.command("prefect.engine"))}

    async def start(**parameters: Any) -> FlowRun:
        found = await prefect.read_deployment_by_name(deployment)
        return await prefect.create_flow_run_from_deployment(found.id, parameters=parameters, job_variables=command)

    return start


async def wait_for_end(prefect: PrefectClient, run_id: UUID, *, than: State | None = None) -> State:
    """The final state of a run (another one than `than`)."""
    with anyio.fail_after(RUN_SECONDS):
        while True:
            state = (await prefect.read_flow_run(run_id)).state
            if state is not None and state.is_final() and (than is None or state.id != than.id):
                return state
            await anyio.sleep(0.25)


async def retry(prefect: PrefectClient, run_id: UUID, ended: State, *, force: bool = False) -> State:
    """Sends what the UI's Retry button sends, and returns how the run ends this time.

    The classic UI sends it without force, the new one with it.
    """
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    async with PrefectHttpxAsyncClient(base_url=prefect.api_url) as http:
        reply = await http.post(f"/flow_runs/{run_id}/set_state", json={"state": state, "force": force})
    assert reply.json()["status"] == "ACCEPT", reply.text
    return await wait_for_end(prefect, run_id, than=ended)


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A stack started by `sora up`, in its own folder."""
    with stack_up(tmp_path_factory.mktemp("up")) as started:
        yield started


@pytest.fixture
async def running(up: tuple[Path, dict[str, str]]) -> AsyncIterator[Running]:
    local_dir, environment = up
    info = StackInfo.read(local_dir)
    assert info is not None
    async with httpx.AsyncClient(timeout=120) as http, PrefectHttpxAsyncClient(timeout=120) as prefect:
        yield Running(info, environment, local_dir, http, prefect)
