"""The process that the children of one test session are forked from."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import certifi
import pytest

from deployments.object_store import ObjectStoreServer
from deployments.prefect_server import PrefectServer
from tests.attack.stage import World
from tests.attack.zygote import Zygote


@pytest.fixture(scope="session")
async def world(
    minio: ObjectStoreServer, prefect_server: PrefectServer, films: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """The servers of the session, and a zygote."""
    folder = tmp_path_factory.mktemp("attack")
    environment = {
        **os.environ,
        **prefect_server.environment,
        "PYTHONWARNINGS": "ignore",
        "SSL_CERT_FILE": str(_one_authority(folder / "authority.pem")),
    }
    async with Zygote(environment, folder / "children") as zygote:
        yield World(zygote, minio, prefect_server, films, folder)


def _one_authority(path: Path) -> Path:
    """A CA bundle of one. A flow run opens some 16 clients, each of which reads it all: 0.3 s of processor."""
    end = "-----END CERTIFICATE-----\n"
    path.write_text(Path(certifi.where()).read_text().partition(end)[0] + end)
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is not marked as part of the sample belongs to `make attack` alone."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("sample") is None:
            item.add_marker(pytest.mark.attack)
