"""Outages while many generations are under way, through `sora` in processes of its own. Each has a bound in time.

What counts: one paid call a video, whatever is away, and every video in the archive after at most one more run of the
same command.
"""

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from deployments.object_store import Credentials, ObjectStoreServer, start_object_store
from deployments.prefect_server import PrefectServer, start_prefect_server
from deployments.processes import ManagedProcess
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from flows.generation import Generation, State
from tests.e2e.running import ROOT, until
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, make_archive
from tests.support.store_gate import StoreGate, nothing

ROWS = 50
BOUND_SECONDS = 240.0
"""Longer than any outage here, its retries and the work itself. Whatever takes longer hangs."""

outages = pytest.mark.parametrize("seconds", [pytest.param(4.0, id="4 s"), pytest.param(30.0, id="30 s")])
pytestmark = pytest.mark.timeout(600)


@dataclass
class Commands:
    """`sora` against blocks of one test."""

    stored: StoredBlocks
    environment: dict[str, str]
    folder: Path
    prefix: tuple[str, ...] = ()

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *self.prefix, sys.executable, "-m", "deployments.cli", *arguments, "--api", self.stored.name, "--archive",
            self.stored.name, cwd=self.folder, env=self.environment | {"PYTHONPATH": str(ROOT)},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip

    async def end(self, process: asyncio.subprocess.Process) -> tuple[int, str]:
        """Exit code and output, within the bound."""
        out, _ = await asyncio.wait_for(process.communicate(), BOUND_SECONDS)
        return process.returncode or 0, out.decode()

    async def recorded(self, key: str) -> Generation | None:
        return await self.stored.recorded(key)


@pytest.fixture
async def slow_sandbox(films: Path) -> AsyncIterator[SandboxServer]:
    """Some seconds for each video, so that all are under way when something goes away."""
    with SandboxServer(SandboxSettings(speed=30, film_height=90, data_dir=films)) as server:
        yield server


@pytest.fixture
def commands(prefect_server: PrefectServer, tmp_path: Path) -> Callable[..., Commands]:
    def made(stored: StoredBlocks, **environment: str) -> Commands:
        base = {**os.environ, **prefect_server.environment, "SORA_SPOOL_DIR": str(tmp_path / "spool")}
        return Commands(stored, base | environment, tmp_path)

    return made


def patient_api(sandbox: SandboxServer, **changed: Any) -> Any:
    """The block as a user has it, but for the stand-in's pace: pauses between retries as they are by default."""
    fields = {"initial_wait_seconds": 3, "poll_interval_seconds": 0.5, "deadline_seconds": 150} | changed
    return make_api(sandbox, **({"submit_timeout_seconds": 5, "retry_delay_seconds": 2} | fields))


async def a_batch_survives(
    commands: Commands, sandbox: SandboxServer, key: str, outage: Callable[[], Awaitable[None]]
) -> None:
    """Starts fifty videos, has the outage begin and end in the midst of them, and runs the batch again if needed."""
    calendar = commands.folder / "fifty.csv"
    calendar.write_text("id,prompt\n" + "".join(f"{number:02},The same film\n" for number in range(ROWS)))
    order = ("batch", str(calendar), "--key", key, "--submissions-per-second", "10")
    running = await commands.start(*order)

    async def half() -> bool:
        return len(sandbox.record.charged()) >= ROWS // 2

    try:
        await until(half, what="half of the submissions", pause=0.05)
        await outage()
        code, said = await commands.end(running)
    finally:
        if running.returncode is None:
            running.kill()
    states = [line.split()[2] for line in said.splitlines() if key in line and line.lstrip()[:1].isdigit()]
    print(
        f"\nafter the outage: exit code {code}, {sum('archived' in line for line in said.splitlines())} lines archived"
    )
    if code:
        code, said = await commands.end(await commands.start(*order))
        print(f"after one more run: exit code {code}")
    assert code == 0, (states, said[-3000:])
    for number in range(ROWS):
        found = await commands.recorded(f"{key}-{number:02}")
        assert found is not None
        assert found.state is State.ARCHIVED
    assert len(sandbox.record.charged()) == ROWS


@outages
async def test_minio_goes_away_and_comes_back(
    seconds: float,
    slow_sandbox: SandboxServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    servers: list[ObjectStoreServer] = []

    def start(port: int = 0) -> None:
        servers.append(
            start_object_store(
                local_dir=ROOT / ".local",
                data_dir=tmp_path / "minio",
                log_dir=tmp_path,
                credentials=Credentials.load_or_create(tmp_path / "credentials.json"),
                port=port,
            )
        )

    async def outage() -> None:
        servers[-1].process.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start, int(servers[-1].endpoint.rpartition(":")[2]))

    await asyncio.to_thread(start)
    try:
        stored = await store_blocks(patient_api(slow_sandbox), make_archive(servers[0]))
        await a_batch_survives(commands(stored), slow_sandbox, key, outage)
    finally:
        servers[-1].process.stop()


@outages
async def test_the_prefect_server_goes_away_and_comes_back(
    seconds: float,
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    servers: list[PrefectServer] = []

    def start(port: int = 0) -> None:
        servers.append(start_prefect_server(home=tmp_path / "prefect", log_dir=tmp_path, port=port))

    async def outage() -> None:
        servers[-1].process.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start, int(servers[-1].api_url.split(":")[2].split("/")[0]))

    await asyncio.to_thread(start)
    try:
        api, archive = patient_api(slow_sandbox), make_archive(minio)
        stored = StoredBlocks("default", api, archive)
        made = commands(stored, **servers[0].environment)
        set_up = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deployments.cli", "setup", "--no-deploy", cwd=tmp_path,
            env=made.environment | {"PYTHONPATH": str(ROOT)} | as_environment(api, archive),
        )  # fmt: skip
        assert await set_up.wait() == 0
        await a_batch_survives(made, slow_sandbox, key, outage)
    finally:
        servers[-1].process.stop()


def as_environment(api: Any, archive: Any) -> dict[str, str]:
    """What `sora setup` makes the same blocks from."""
    plain = ("base_url", "initial_wait_seconds", "poll_interval_seconds", "deadline_seconds", "submit_timeout_seconds")
    return {f"APIXO_{name.upper()}": str(getattr(api, name)) for name in (*plain, "retry_delay_seconds")} | {
        "APIXO_ALLOW_PRIVATE_HOSTS": "true",
        "APIXO_API_KEY": api.api_key.value.get_secret_value(),
        "MINIO_ENDPOINT": archive.endpoint,
        "MINIO_ACCESS_KEY": archive.access_key,
        "MINIO_SECRET_KEY": archive.secret_key.get_secret_value(),
        "MINIO_SECURE": "false",
        "MINIO_BUCKET": archive.bucket,
    }


@pytest.mark.parametrize("seconds", [pytest.param(4.0, id="4 s"), pytest.param(60.0, id="60 s")])
async def test_the_provider_goes_away_and_comes_back(
    seconds: float,
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
) -> None:
    with StoreGate(slow_sandbox.base_url.removeprefix("http://")) as gate:

        async def outage() -> None:
            gate.shut = lambda _: True
            await asyncio.sleep(seconds)
            gate.shut = nothing

        api = patient_api(slow_sandbox, base_url=f"http://{gate.endpoint}")
        stored = await store_blocks(api, make_archive(minio))
        made = commands(stored)
        with contextlib.suppress(AssertionError):
            await a_batch_survives(made, slow_sandbox, key, outage)
        # A request that was cut may have been read: those rows wait for a person, and were not sent again.
        states = {}
        for number in range(ROWS):
            found = await made.recorded(f"{key}-{number:02}")
            assert found is not None
            states[found.key] = found.state
        charged = slow_sandbox.record.charged()
        assert set(states.values()) <= {State.ARCHIVED, State.UNCONFIRMED}
        assert len(charged) == sum(state is State.ARCHIVED for state in states.values())
        print(f"\n{len(charged)} archived, {ROWS - len(charged)} unconfirmed, {len(charged)} paid")
        for name, state in states.items():
            if state is State.UNCONFIRMED:
                code, said = await made.end(await made.start("resolve", name, "--resubmit", "--yes"))
                assert code == 0, said
        assert len(slow_sandbox.record.charged()) == ROWS


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[str, ...]]:
    """A disk of 128 KB in this folder, for commands that begin with what is yielded, and for nobody else.

    It lives in a mount namespace of its own, so it is gone with this process, however that ends.
    """
    holder = ManagedProcess(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=128k tmpfs "$0" && echo $$ && exec sleep 600',
         str(folder)],
        name="small disk",
        log_path=folder.with_suffix(".log"),
    )  # fmt: skip
    try:
        while not (told := holder.log_path.read_text().strip()) and holder.is_alive():
            time.sleep(0.05)
        if not told.isdecimal():
            pytest.skip(f"a disk of its own needs the right to mount one: {told}")
        yield "nsenter", "--mount", f"--target={told}"
    finally:
        holder.stop()


async def test_the_disk_of_the_spool_is_full(
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    spool = tmp_path / "small"
    spool.mkdir()
    stored = await store_blocks(patient_api(slow_sandbox), make_archive(minio))
    order = ("generate", "The same film, twelve seconds", "--duration", "12", "--key", key)
    with small_disk(spool) as inside:
        full = replace(commands(stored, SORA_SPOOL_DIR=str(spool)), prefix=inside)
        others = [*inside, "sh", "-c", f"head -c 120000 /dev/zero > {spool}/others"]
        assert await (await asyncio.create_subprocess_exec(*others)).wait() == 0
        assert list(spool.iterdir()) == []  # nothing of it is seen from here
        code, said = await full.end(await full.start(*order))
        assert code == 1, said
        assert "No space left" in said or "disk" in said, said
        found = await full.recorded(key)
        assert found is not None
        assert found.state is State.SUCCEEDED
    code, said = await full.end(await commands(stored).start(*order))  # where there is room
    assert code == 0, said
    assert len(slow_sandbox.record.charged()) == 1


@pytest.mark.parametrize("moment", ["claimed", pytest.param("paid", marks=pytest.mark.sample)])
async def test_a_process_that_was_frozen_after_its_claim_pays_nothing_when_it_goes_on(
    moment: str,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=1), make_archive(minio))
    made = commands(stored)
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.7, times=-1))
    frozen = await made.start("generate", "Frozen", "--key", key)
    try:

        async def reached() -> bool:
            return bool(sandbox.record.charged() if moment == "paid" else await made.recorded(key))

        await until(reached, what=moment, pause=0.002)
        os.kill(frozen.pid, signal.SIGSTOP)
        code, said = await made.end(await made.start("generate", "Frozen", "--key", key))
        found = await made.recorded(key)
        assert found is not None
        charged = sandbox.record.charged()
        print(f"\nfrozen with {len(charged)} paid, then found {found.state}")
        if found.state is State.UNCONFIRMED:
            assert code == 1
            assert f"sora resolve {key}" in said
            options = ["--task-id", charged[0].task_id or ""] if charged else ["--resubmit", "--yes"]
            code, said = await made.end(await made.start("resolve", key, *options))
        assert code == 0, said
    finally:
        os.kill(frozen.pid, signal.SIGCONT)
    await made.end(frozen)
    archived = await made.recorded(key)
    assert archived is not None
    assert archived.state is State.ARCHIVED
    assert len(sandbox.record.charged()) == 1
    assert len(sandbox.record.submits()) == 1


MOMENTS = [0.8, 1.1, 1.4, 1.8]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
@pytest.mark.parametrize(
    "moments",
    [
        pytest.param(MOMENTS, id="a few", marks=pytest.mark.sample),
        pytest.param([random.Random(5).uniform(0.3, 4) for _ in range(30)], id="many"),
    ],
)
async def test_a_run_that_is_ended_at_any_time_goes_on_by_the_same_command(
    moments: list[float],
    number: signal.Signals,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=2), make_archive(minio))
    made = commands(stored)
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.5, times=-1))
    for count, moment in enumerate(moments):
        order = ("generate", "Ended", "--key", f"{key}-{count}")
        run = await made.start(*order)
        await asyncio.sleep(moment)
        if run.returncode is None:
            run.send_signal(number)
        first, said = await made.end(run)
        assert "Traceback" not in said, said
        code, said = await made.end(await made.start(*order))
        assert code == 0, (moment, first, said)
    assert len(sandbox.record.charged()) == len(moments)
    assert len(sandbox.record.submits()) == len(moments)


DEPLOY = ["--no-prompt", "deploy", "--name", "generate-video"]  # the collector would run on its schedule


@pytest.mark.sample
async def test_two_workers_that_run_the_same_flow_run_at_once_pay_once(
    sandbox: SandboxServer, minio: ObjectStoreServer, prefect_server: PrefectServer, commands: Callable[..., Commands],
    key: str,
) -> None:  # fmt: skip
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=5), make_archive(minio))
    made = commands(stored)
    for command in (["work-pool", "create", "sora", "--type", "process", "--overwrite"], DEPLOY):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prefect", *command, cwd=ROOT, env=made.environment
        )
        assert await process.wait() == 0
    async with get_client() as client:
        found = await client.read_deployment_by_name("generate-video/generate-video")
        parameters = {"request": {"prompt": "Twice"}, "key": key, "api": stored.name, "archive": stored.name}
        run = await client.create_flow_run_from_deployment(found.id, parameters=parameters)
    both = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prefect.engine", str(run.id), cwd=ROOT, env=made.environment
        )
        for _ in range(2)
    ]
    await asyncio.wait_for(asyncio.gather(*(process.wait() for process in both)), BOUND_SECONDS)
    archived = await made.recorded(key)
    assert archived is not None
    assert archived.state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1
