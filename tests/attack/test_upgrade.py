"""Two releases run side by side, as when workers are replaced one after another while runs are in progress.

In the work pool tests, the older release is the last commit before the current schema of the record. In the command
test, the older release is this code, and the newer one is this code with the next schema version, which is the only
difference that an older release can see.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import Any, Final

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.local.processes import ManagedProcess
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.generate_video import generate_video
from flows.record import ledger
from flows.record.generation import SCHEMA, State
from tests.attack.fifty import Commands
from tests.e2e.running import ROOT
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, unique
from tests.support.waiting import until

ROWS: Final = 5
NEWER: Final = (
    sys.executable,
    "-c",
    "from flows.record import ledger; ledger.SCHEMA += 1; from deployments.cli import main; main()",
)


@pytest.mark.attack
@pytest.mark.timeout(600)
async def test_older_and_newer_release_share_batch_and_pay_once(
    prefect_server: PrefectServer,
    archive: VideoArchive,
    one_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The older one submits its rows slowly. The newer one starts later and submits the others."""
    key = unique("upgrade")
    calendar = tmp_path / "calendar.csv"
    calendar.write_text("id,prompt\n" + "".join(f"{number},Dunes; take {number}\n" for number in range(ROWS)))
    command = ("batch", str(calendar), "--key", key, "-v", "--submissions-per-second")
    with SandboxServer(SandboxSettings(speed=60, data_dir=one_video)) as sandbox:
        api = make_api(sandbox, initial_wait_seconds=2, poll_interval_seconds=0.5, deadline_seconds=120)
        stored = await store_blocks(api, archive)
        older = Commands(stored, {**os.environ, **prefect_server.environment}, tmp_path)
        newer = Commands(stored, older.environment, tmp_path, program=NEWER)

        async def started() -> bool:
            return len(sandbox.record.charged()) >= 1

        under_way = await older.start(*command, "0.1")
        await until(started, what="the first submission")
        newer_code, newer_output = await newer.end(await newer.start(*command, "20"))
        older_code, older_output = await older.end(under_way)
        # The markers of claims that the older one lost remain. A collector that can read the records removes them.
        collected = await newer.end(await newer.start("collect"))
        assert len(sandbox.record.submits()) == len(sandbox.record.charged()) == ROWS
    monkeypatch.setattr(ledger, "SCHEMA", SCHEMA + 1)
    async with aclosing(archive.store()) as store:
        keys = [f"{key}-{number}" for number in range(ROWS)]
        records = list((await ledger.Ledger(store).read_all(keys)).values())
        left_open = await store.names("open/")
    assert newer_code == 0, newer_output
    assert collected[0] == 0, collected[1]
    assert left_open == []
    assert [record.state for record in records] == [State.ARCHIVED] * ROWS
    assert {record.schema_version for record in records} >= {SCHEMA + 1}
    # The older one does not change what the newer one wrote, and reports why.
    assert older_code != 0
    assert "newer version" in older_output


@pytest.fixture(scope="session")
def older_release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout of the last commit with the previous schema of the record."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    raised = git("log", "--format=%H", "-S", f"SCHEMA: Final = {SCHEMA}", "--", "flows/record/generation.py").split()
    if not raised:
        pytest.skip("this checkout does not have the commits before the current schema")
    folder = tmp_path_factory.mktemp("older") / "release"
    git("worktree", "add", "--detach", str(folder), f"{raised[-1]}^")
    yield folder
    git("worktree", "remove", "--force", str(folder))


StartRun = Callable[..., Awaitable[FlowRun]]


@pytest.fixture
async def start(
    older_release: Path, prefect: PrefectClient, prefect_server: PrefectServer, tmp_path: Path
) -> AsyncIterator[StartRun]:
    """Starts a run of `generate-video` in one of the two releases. Each has a worker on the same work pool."""
    pool = unique("upgrade")
    await prefect.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    flow_id = await prefect.create_flow(generate_video)
    deployed = {}
    for release in (older_release, ROOT):
        deployed[release] = await prefect.create_deployment(
            flow_id,
            unique("upgrade"),
            entrypoint="flows/generate_video.py:generate_video",
            path=str(release),
            work_pool_name=pool,
        )

    async def start_run(release: Path, **parameters: Any) -> FlowRun:
        return await prefect.create_flow_run_from_deployment(deployed[release], parameters=parameters)

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with ExitStack() as stack:
        for number, release in enumerate(deployed):
            worker = ManagedProcess(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
                name=f"worker of {release}",
                log_path=tmp_path / f"worker-{number}.log",
                environment={
                    **environment,
                    **prefect_server.environment,
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    "SORA_WORK_DIR": str(tmp_path / f"work_root-{number}"),
                },
                cwd=release,
            )
            stack.callback(worker.stop)
        yield start_run


@pytest.mark.attack
@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", ["older", "newer"])
async def test_newer_release_finishes_video_started_by_either_release(
    first: str,
    start: StartRun,
    older_release: Path,
    prefect: PrefectClient,
    archive: VideoArchive,
    one_video: Path,
    key: str,
) -> None:
    """The run that paid is killed. If that was the newer release, the older one runs next, and changes nothing."""

    async def wait_for_end(run: FlowRun) -> FlowRun:
        async def final() -> FlowRun | None:
            found = await prefect.read_flow_run(run.id)
            return found if found.state is not None and found.state.is_final() else None

        return await until(final, what="the end of the run")

    with SandboxServer(SandboxSettings(speed=20, data_dir=one_video)) as sandbox:
        api = make_api(sandbox, initial_wait_seconds=60, poll_interval_seconds=0.5, deadline_seconds=120)
        stored = await store_blocks(api, archive)
        parameters = {"request": {"prompt": "Dunes"}, "key": key, "api": stored.name, "archive": stored.name}
        await start(older_release if first == "older" else ROOT, **parameters)
        os.kill(await until(lambda: _paying_process(stored, key), what="a submitted task", pause=0.1), signal.SIGKILL)
        sooner = api.model_copy(update={"initial_wait_seconds": 1.0})
        await sooner.save(stored.name, overwrite=True)
        if first == "newer":
            rejected = await wait_for_end(await start(older_release, **parameters))
            assert rejected.state is not None
            assert rejected.state.is_failed()
            assert "newer version" in str(rejected.state.message)
        finished = await wait_for_end(await start(ROOT, **parameters))
        assert finished.state is not None
        assert finished.state.is_completed(), finished.state.message
        (found,) = await _records(stored, key)
        assert (found["state"], found["schema_version"]) == (State.ARCHIVED, SCHEMA)
        assert len(sandbox.record.submits()) == len(sandbox.record.charged()) == 1


async def _records(stored: StoredBlocks, key: str) -> list[dict[str, Any]]:
    async with aclosing(stored.archive.store()) as store:
        document = await store.get(f"ledger/{key}.json")
    return [json.loads(document.data)] if document else []


async def _paying_process(stored: StoredBlocks, key: str) -> int | None:
    """The id of the process whose claim has a task."""
    for record in await _records(stored, key):
        if record["state"] == State.SUBMITTED:
            return int(record["attempts"][-1]["claimed_by"]["pid"])
    return None
