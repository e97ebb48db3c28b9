"""Fixtures that run `sora` as a client of the session's Prefect server, with its own blocks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks import ApixoApi, VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from tests.deployments.cli.sora import Sora
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support.fork_server import ForkServer


@pytest.fixture
async def stored(api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Both blocks, saved under a unique name."""
    return await store_blocks(api, archive)


@pytest.fixture
def sora(
    stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, forks: ForkServer, tmp_path: Path
) -> Iterator[Sora]:
    """The command line as a client of the session's Prefect server. Its blocks are named `stored.name`."""
    secrets = [sandbox.settings.api_key, stored.archive.secret_key.get_secret_value()]
    runner = Sora(tmp_path, prefect_server.environment, secrets, forks)
    yield runner
    runner.close()


@pytest.fixture
def blocks(stored: StoredBlocks) -> list[str]:
    """The options that select this test's blocks."""
    return ["--api", stored.name, "--archive", stored.name]
