"""What the whole suite shares: one real MinIO, one real Prefect server, and a sandbox for each test.

All of it listens on free loopback ports and keeps its data in temporary folders, so suites can run beside each other.
"""

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import certifi

# In memory, where two suites have room there for their 2.5 GB each: a tenth less time, as nothing waits for the disk.
# Some tests start programs that they have written, which a hardened system forbids there.
_MEMORY = Path("/dev/shm")
if (
    "TMPDIR" not in os.environ
    and _MEMORY.is_dir()
    and shutil.disk_usage(_MEMORY).free > 8 * 1024**3
    and not os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC
):
    os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)

# Before Prefect is imported anywhere: its settings are read then. No test may touch the home of who runs it.
_HOME = tempfile.mkdtemp(prefix="sora-tests-")
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "APIXO_", "MINIO_", "SORA_"))]:
    if _name != "SORA_OBJECT_STORE":
        del os.environ[_name]
# Each client that anything opens reads all authorities there are, for 45 ms; a flow run opens some 16 clients.
_AUTHORITY = Path(_HOME) / "authority.pem"
_END = "-----END CERTIFICATE-----\n"
_AUTHORITY.write_text(Path(certifi.where()).read_text().partition(_END)[0] + _END)
os.environ |= {
    "SSL_CERT_FILE": str(_AUTHORITY),
    "PREFECT_HOME": f"{_HOME}/prefect",
    "PREFECT_PROFILE": "ephemeral",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # A sixth of the work of a Prefect server, and only attacks and end-to-end tests look into it: they switch it on.
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    # Each client would ask for a token once, and hear that no server here has any.
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "TOKIO_WORKER_THREADS": "1",  # of the stores' clients: fewer that wake up for nothing
}

gc.disable()  # until all is collected

# A shell that starts the suite in the background has it ignore SIGINT, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import pytest
from prefect.blocks.core import Block
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from blocks import ApixoApi, VideoArchive
from deployments.local.prefect_server import TUNED, PrefectServer, start_prefect_server
from deployments.local.processes import LOOPBACK
from deployments.local.stack_info import Credentials
from deployments.local.store_server import ObjectStoreServer, start_object_store
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.resources import PayingResources
from tests.support import make_api, make_archive, unique
from tests.support.fork_server import ForkServer
from tests.support.prefect_home import prepare

ROOT = Path(__file__).parent.parent

# A busy machine makes one example slow and the next one fast; that is no property of the code. Half the usual number of
# examples: the suite runs often, each time with new ones.
hypothesis.settings.register_profile("any machine", deadline=None, max_examples=50)
hypothesis.settings.load_profile("any machine")


SHELL = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///{folder}/somebody-elses.db",
    "PREFECT_API_URL": "http://127.0.0.1:1/api",
    "PREFECT_PROFILE": "no-such-profile",
}
"""What a user's shell may hold: none of it may reach the session's server."""
LESS_WORK = {
    # The database that it starts with has both.
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
}
"""How the session's server differs from that of `sora up`."""
SLOW_ROOMS = ("attack", "blocks", "deployments")
"""Their tests start processes of their own, or wait for what does not answer, which takes seconds."""
ONE_STACK = ("tests/e2e/test_browser.py", "tests/e2e/test_unattended.py")
"""They share what `sora up` starts."""
SEAWEEDFS = ("tests/blocks/test_object_store.py", "tests/blocks/test_probe.py")
"""They share one, which takes long to start."""


class FilesThatShare(LoadFileScheduling):  # type: ignore[misc]
    """Each worker takes a file at a time; those that share what takes long to start are taken as one."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        if file in ONE_STACK:
            return "tests/e2e, one stack"
        if file in SEAWEEDFS:
            return "tests/blocks, SeaweedFS"
        return "tests/e2e, one worker" if file.startswith("tests/e2e/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesThatShare:
    return FilesThatShare(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, in its shuffled order; otherwise one core would idle for minutes at the end.

    Tests that wait and tests that compute are mixed, for the same reason.
    """

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT)
        if path.parts[1] == "e2e":
            return 0 if str(path) in ONE_STACK else 1
        runs_flows = path.parts[1] == "flows" and len(path.parts) == 3
        return 2 if path.parts[1] in SLOW_ROOMS or runs_flows else 3

    items.sort(key=rank)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: nobody need look through them for garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _block_types_once() -> Iterator[None]:
    """Prefect makes the JSON schema of a block over a hundred times for each save, and registers it each time anew:
    half a second of this process, and a dozen requests. Here it does both once for each server.
    """
    make = Block.model_json_schema.__func__  # type: ignore[attr-defined] # the function behind the class method
    register = Block.aregister_type_and_schema.__func__  # type: ignore[attr-defined]
    made: dict[Any, str] = {}
    registered: dict[tuple[type[Block], str | None], tuple[Any, Any]] = {}

    def make_once(cls: type[Block], *arguments: Any, **named: Any) -> dict[str, Any]:
        wanted = (cls, arguments, tuple(sorted(named.items())))
        if wanted not in made:
            made[wanted] = json.dumps(make(cls, *arguments, **named))
        schema: dict[str, Any] = json.loads(made[wanted])  # each its own
        return schema

    async def register_once(cls: type[Block], client: Any = None) -> None:
        wanted = (cls, PREFECT_API_URL.value())
        if wanted not in registered:
            await register(cls, client=client)
            registered[wanted] = (cls._block_type_id, cls._block_schema_id)
        # The class has those of the server that it was last registered with.
        cls._block_type_id, cls._block_schema_id = registered[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "model_json_schema", classmethod(make_once))
        patch.setattr(Block, "aregister_type_and_schema", classmethod(register_once))
        yield


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """A real MinIO, built into the checkout's `.local/bin` where it is missing."""
    folder = tmp_path_factory.mktemp("minio")
    server = start_object_store(
        local_dir=ROOT / ".local",
        data_dir=folder / "data",
        log_dir=folder,
        credentials=Credentials.load_or_create(folder / "credentials.json"),
    ).ready()
    yield server
    server.process.stop()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real Prefect server, which this process uses too."""
    folder = tmp_path_factory.mktemp("prefect")
    home = prepare(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHELL.items():
            patch.setenv(name, value.format(folder=folder))
        for name, value in LESS_WORK.items():
            patch.setitem(TUNED, name, value)
        server = start_prefect_server(home=home, log_dir=folder).ready()
    with server.process:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield server
            for worker in (APILogWorker, EventsWorker):  # before the server goes, or Prefect complains at exit
                worker.drain_all(timeout=60)
        # It stops quickly and wholly, even with a connection open.
        with socket.create_connection((LOOPBACK, int(server.url.rsplit(":", 1)[1]))):
            assert server.process.stop() != 128 + signal.SIGKILL  # which comes when it has not ended after a while
    groups = subprocess.run(["ps", "-A", "-o", "pgid="], capture_output=True, text=True, check=True).stdout.split()
    assert str(server.process.pid) not in groups


@pytest.fixture
async def prefect(prefect_server: PrefectServer) -> AsyncIterator[PrefectClient]:
    """A client of the session's server."""
    async with get_client() as client:
        yield client


@pytest.fixture(scope="session")
def forks(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks processes that talk to the session's server."""
    folder = tmp_path_factory.mktemp("forks")
    with ForkServer(folder / "socket", {**os.environ, **prefect_server.environment}) as server:
        yield server


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sandboxes keep their videos: the same video is drawn once for the whole suite, by whichever worker."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "videos"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def sandbox(video_folder: Path) -> Iterator[SandboxServer]:
    """A sandbox of its own for each test: minutes become fractions of a second, videos are small."""
    with SandboxServer(SandboxSettings(speed=600, video_height=90, data_dir=video_folder)) as server:
        yield server


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    """The API block for this test's sandbox."""
    return make_api(sandbox)


@pytest.fixture
def archive(minio: ObjectStoreServer) -> VideoArchive:
    """An archive with a bucket of its own."""
    return make_archive(minio)


@pytest.fixture
async def resources(
    api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer, tmp_path: Path
) -> AsyncIterator[PayingResources]:
    """What the steps work with, opened."""
    async with PayingResources(api, archive) as opened:
        opened.work_root = tmp_path / "work"
        yield opened


@pytest.fixture
def key() -> str:
    """A key no other test uses."""
    return unique("key")
