"""Fixtures for the whole suite: one real MinIO and one real Prefect server per session, and a sandbox for each test.

All servers listen on free loopback ports and keep their data in temporary folders, so suites can run in parallel.
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

# Keep temporary files in memory if there is room for two suites, which take 2.5 GB each. This saves a tenth of the
# time, because nothing waits for the disk. Some tests run programs that they have written, so it must not be mounted
# with noexec.
_SHARED_MEMORY = Path("/dev/shm")
if (
    "TMPDIR" not in os.environ
    and _SHARED_MEMORY.is_dir()
    and shutil.disk_usage(_SHARED_MEMORY).free > 8 * 1024**3
    and not os.statvfs(_SHARED_MEMORY).f_flag & os.ST_NOEXEC
):
    os.environ["TMPDIR"] = tempfile.tempdir = str(_SHARED_MEMORY)

# Before Prefect is imported anywhere, because it reads its settings on import. No test may touch the user's home, and
# none may depend on the user's settings and proxies.
_HOME = tempfile.mkdtemp(prefix="sora-tests-")
_OURS = ("PREFECT_", "APIXO_", "MINIO_", "SORA_")
for _name in [name for name in os.environ if name.startswith(_OURS) or name.lower().endswith("_proxy")]:
    if _name != "SORA_OBJECT_STORE":
        del os.environ[_name]
# Each new HTTP client loads every certificate authority, which takes 45 ms, and a flow run opens some 16 clients. One
# authority is enough here.
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
    # Logging to the API is a sixth of a Prefect server's work. Only attack and end-to-end tests need it, and enable it.
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    # Otherwise, each client would request a token once, although no server here issues any.
    "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "TOKIO_WORKER_THREADS": "1",  # the store clients' threads: with fewer, less time is spent on idle wakeups
}

gc.disable()  # until pytest has collected all tests

# If a shell starts the suite in the background, SIGINT is ignored, and child processes would inherit that.
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
from deployments.local.store_server import ObjectStoreServer, start_object_store
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.resources import PayingResources
from tests.support import CREDENTIALS, make_api, make_archive, unique
from tests.support.fork_server import ForkServer
from tests.support.prefect_home import prepare

ROOT = Path(__file__).parent.parent

# No deadline: on a busy machine, the time of an example says nothing about the code. Half the default number of
# examples, because the suite runs often, each time with new ones.
hypothesis.settings.register_profile("any machine", deadline=None, max_examples=50)
hypothesis.settings.load_profile("any machine")


USER_SHELL = {
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:///{folder}/somebody-elses.db",
    "PREFECT_API_URL": "http://127.0.0.1:1/api",
    "PREFECT_PROFILE": "no-such-profile",
}
"""Settings that a user's shell may contain. None of them may affect the session's server."""
TEST_SETTINGS = {
    # The prepared database already has the tables and the block types.
    "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "1",
}
"""How the settings of the session's server differ from those of `sora up`."""
SLOW_FOLDERS = ("attack", "blocks", "deployments")
"""Their tests take seconds: they start processes, or wait for servers that do not answer."""
ONE_STACK = ("tests/e2e/test_browser.py", "tests/e2e/test_unattended.py")
"""They share the stack that `sora up` starts."""
SHARED_SEAWEEDFS = ("tests/blocks/test_object_store.py", "tests/blocks/test_probe.py")
"""They share a SeaweedFS server, which is slow to start."""


class SharedResourceScheduling(LoadFileScheduling):  # type: ignore[misc]
    """Gives each worker one file at a time. Files that share a server that is slow to start go to the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        if file in ONE_STACK:
            return "tests/e2e, one stack"
        if file in SHARED_SEAWEEDFS:
            return "tests/blocks, SeaweedFS"
        return "tests/e2e, one worker" if file.startswith("tests/e2e/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedResourceScheduling:
    return SharedResourceScheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the slowest tests first. Otherwise, one core would be idle for minutes at the end.

    Within each rank, the order stays shuffled, so that tests that wait and tests that compute are mixed.
    """

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT)
        if path.parts[1] == "e2e":
            return 0 if str(path) in ONE_STACK else 1
        runs_flows = path.parts[1] == "flows" and len(path.parts) == 3
        return 2 if path.parts[1] in SLOW_FOLDERS or runs_flows else 3

    items.sort(key=rank)


def pytest_unconfigure() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Excludes modules and tests from garbage collection, because they live until the end anyway."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _block_types_once() -> Iterator[None]:
    """Builds the JSON schema of each block type only once, and registers each type once per server.

    Prefect builds the schema over a hundred times per save and registers the type again each time, which takes half a
    second of processor time and a dozen requests.
    """
    make = Block.model_json_schema.__func__  # type: ignore[attr-defined] # the function behind the class method
    register = Block.aregister_type_and_schema.__func__  # type: ignore[attr-defined]
    made: dict[Any, str] = {}
    registered: dict[tuple[type[Block], str | None], tuple[Any, Any]] = {}

    def make_once(cls: type[Block], *arguments: Any, **named: Any) -> dict[str, Any]:
        wanted = (cls, arguments, tuple(sorted(named.items())))
        if wanted not in made:
            made[wanted] = json.dumps(make(cls, *arguments, **named))
        schema: dict[str, Any] = json.loads(made[wanted])  # a new copy for each caller
        return schema

    async def register_once(cls: type[Block], client: Any = None) -> None:
        wanted = (cls, PREFECT_API_URL.value())
        if wanted not in registered:
            await register(cls, client=client)
            registered[wanted] = (cls._block_type_id, cls._block_schema_id)
        # The class has the ids from the server that it was last registered with.
        cls._block_type_id, cls._block_schema_id = registered[wanted]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "model_json_schema", classmethod(make_once))
        patch.setattr(Block, "aregister_type_and_schema", classmethod(register_once))
        yield


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """A real MinIO. If it is not installed, it is built into the checkout's `.local/bin`."""
    folder = tmp_path_factory.mktemp("minio")
    server = start_object_store(
        local_dir=ROOT / ".local",
        data_dir=folder / "data",
        log_dir=folder,
        credentials=CREDENTIALS,
    ).ready()
    yield server
    server.process.stop()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real Prefect server, which this process uses as well."""
    folder = tmp_path_factory.mktemp("prefect")
    home = prepare(folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in USER_SHELL.items():
            patch.setenv(name, value.format(folder=folder))
        for name, value in TEST_SETTINGS.items():
            patch.setitem(TUNED, name, value)
        server = start_prefect_server(home=home, log_dir=folder).ready()
    with server.process:
        with temporary_settings({PREFECT_API_URL: server.api_url}):
            yield server
            for worker in (APILogWorker, EventsWorker):  # before the server stops, or Prefect logs errors at exit
                worker.drain_all(timeout=60)
        # It stops quickly and completely, even if a connection is open.
        with socket.create_connection((LOOPBACK, int(server.url.rsplit(":", 1)[1]))):
            assert server.process.stop() != 128 + signal.SIGKILL  # sent if it takes too long to stop
    groups = subprocess.run(["ps", "-A", "-o", "pgid="], capture_output=True, text=True, check=True).stdout.split()
    assert str(server.process.pid) not in groups


@pytest.fixture
async def prefect(prefect_server: PrefectServer) -> AsyncIterator[PrefectClient]:
    """A client of the session's server."""
    async with get_client() as client:
        yield client


@pytest.fixture(scope="session")
def forks(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Forks processes that use the session's server."""
    folder = tmp_path_factory.mktemp("forks")
    with ForkServer(folder / "socket", {**os.environ, **prefect_server.environment}) as server:
        yield server


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sandboxes keep their videos. All workers share it, so the suite renders each video only once."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "videos"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def sandbox(video_folder: Path) -> Iterator[SandboxServer]:
    """A new sandbox for each test. It turns minutes into fractions of a second, and its videos are small."""
    with SandboxServer(SandboxSettings(speed=600, video_height=90, data_dir=video_folder)) as server:
        yield server


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    """The API block for this test's sandbox."""
    return make_api(sandbox)


@pytest.fixture
def archive(minio: ObjectStoreServer) -> VideoArchive:
    """An archive with a new bucket."""
    return make_archive(minio)


@pytest.fixture
async def resources(
    api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer, tmp_path: Path
) -> AsyncIterator[PayingResources]:
    """The open resources that the steps need."""
    async with PayingResources(api, archive) as opened:
        opened.work_root = tmp_path / "work"
        yield opened


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return unique("key")
