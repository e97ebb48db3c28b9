"""`sora` as a client of the session's server, with blocks of its own."""

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
    """Both blocks, saved under a name of their own."""
    return await store_blocks(api, archive)


@pytest.fixture
def sora(
    stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, forks: ForkServer, tmp_path: Path
) -> Iterator[Sora]:
    """The command line as a client of the session's server, whose blocks are named `stored.name`."""
    secrets = [sandbox.settings.api_key, stored.archive.secret_key.get_secret_value()]
    made = Sora(tmp_path, prefect_server.environment, secrets, forks)
    yield made
    made.close()


@pytest.fixture
def blocks(stored: StoredBlocks) -> list[str]:
    """The options that choose this test's blocks."""
    return ["--api", stored.name, "--archive", stored.name]
