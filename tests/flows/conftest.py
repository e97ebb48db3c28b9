"""Stored blocks, as a deployed flow would load them."""

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.local.prefect_server import PrefectServer
from flows.generate_video import generate_video
from flows.record.generation import Generation
from flows.record.ledger import Ledger
from tests.flows.media.conftest import VideoFiles
from tests.flows.record.ledgers import open_ledger
from tests.support import unique
from tests.support.events import Sent, taken_in


@dataclass(frozen=True)
class StoredBlocks:
    """One test's API and archive blocks, and the name that both are saved under."""

    name: str
    api: ApixoApi
    archive: VideoArchive

    async def generate(self, request: VideoRequest, **parameters: Any) -> Generation:
        """Runs `generate_video` with these blocks."""
        made: Generation = await generate_video(request, api=self.name, archive=self.name, **parameters)
        return made

    async def recorded(self, key: str) -> Generation | None:
        """The generation in the ledger, if there is one."""
        async with aclosing(self.archive.store()) as store:
            entry = await Ledger(store).read(key)
        return entry.generation if entry else None

    async def existing(self, key: str) -> Generation:
        """The generation in the ledger."""
        async with aclosing(self.archive.store()) as store:
            return (await Ledger(store).existing(key)).generation


@pytest.fixture
async def stored(api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Both blocks, saved under a unique name."""
    return await store_blocks(api, archive)


@pytest.fixture
async def ledger(archive: VideoArchive) -> AsyncIterator[Ledger]:
    """A ledger in a new bucket."""
    async with open_ledger(archive) as opened:
        yield opened


_SAVED_KEYS: dict[tuple[str | None, str], Secret[str]] = {}
"""By Prefect's URL and the API key. Nearly all sandboxes have the same key, and saving it takes 20 ms of CPU time."""


async def store_blocks(api: ApixoApi, archive: VideoArchive) -> StoredBlocks:
    """Saves both blocks with their Secret blocks."""
    name = unique("blocks")
    wanted = PREFECT_API_URL.value(), api.api_key.get()
    async with get_client() as client:
        if wanted not in _SAVED_KEYS:
            await api.api_key.asave(f"{name}-key", client=client)
            _SAVED_KEYS[wanted] = api.api_key
        api.api_key = _SAVED_KEYS[wanted]
        if api.callback_secret is not None:
            await api.callback_secret.asave(f"{name}-callback-secret", client=client)
        await api.asave(name, client=client)
        await archive.asave(name, client=client)
    return StoredBlocks(name, api, archive)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A video of four seconds, with sound."""
    files = VideoFiles(tmp_path_factory.mktemp("whole"))
    return files.make("made.mp4", audio=True, frames=96, movflags="faststart").read_bytes()


@pytest.fixture
def sent(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """The events that this test sends. None reaches the server, but without one Prefect would not send any."""
    with taken_in(monkeypatch) as events:
        yield events
