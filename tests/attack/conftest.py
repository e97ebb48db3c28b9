"""Fixtures of the attack tests: the servers, blocks with long timeouts, and `sora` in its own processes."""

import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import SandboxServer, SandboxSettings
from deployments.sandbox.rendering import render_video
from tests.attack.environment import Servers
from tests.attack.fifty import Commands
from tests.attack.zygote import Zygote
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api


@pytest.fixture(scope="session")
async def servers(
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    video_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Servers]:
    """The servers of the session, and a zygote."""
    folder = tmp_path_factory.mktemp("attack")
    environment = {
        **os.environ,
        **prefect_server.environment,
        "PYTHONWARNINGS": "ignore",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
    }
    async with Zygote(environment, folder / "children") as zygote:
        yield Servers(zygote, minio, prefect_server, video_folder, folder)


@pytest.fixture(autouse=True)
def _logs_reach_prefect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enables logging to the API, as outside of tests, in this process and in those that it starts."""
    if "prefect_server" not in request.fixturenames:
        yield
        return
    monkeypatch.setenv("PREFECT_LOGGING_TO_API_ENABLED", "true")
    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}):
        yield


@pytest.fixture
async def slow_sandbox(video_folder: Path) -> AsyncIterator[SandboxServer]:
    """A sandbox that takes some seconds for each video, so that all are in progress when the outage begins."""
    with SandboxServer(SandboxSettings(speed=30, video_height=90, data_dir=video_folder)) as server:
        yield server


@pytest.fixture
def commands(prefect_server: PrefectServer, tmp_path: Path) -> Callable[..., Commands]:
    def make(stored: StoredBlocks, **environment: str) -> Commands:
        base = {**os.environ, **prefect_server.environment, "SORA_WORK_DIR": str(tmp_path / "work")}
        return Commands(stored, base | environment, tmp_path)

    return make


@pytest.fixture
async def stored(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Blocks with timeouts that fit a busy machine."""
    api = make_api(sandbox, submit_timeout_seconds=20, deadline_seconds=120, max_in_flight=8)
    return await store_blocks(api, archive)


@pytest.fixture
def one_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where all videos are copies of one: rendering a thousand takes longer than the batch."""
    video, folder = tmp_path / "video.mp4", tmp_path / "videos"
    render_video(
        video, prompt="Dunes", duration_seconds=4, aspect_ratio="landscape", height=32, image=None, watermark=False
    )
    folder.mkdir()
    monkeypatch.setattr("deployments.sandbox.rendering.render_video", lambda path, **_: shutil.copyfile(video, path))
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that are not marked `sample` run only in `make attack`."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("sample") is None:
            item.add_marker(pytest.mark.attack)
