"""A gallery over its own bucket in a real MinIO."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from deployments.gallery.app import create_app
from tests.deployments.gallery.sample_records import NOW, Gallery, NoPrefect, OpenGallery


@pytest.fixture
async def store(archive: VideoArchive) -> AsyncIterator[ObjectStore]:
    async with aclosing(archive.store()) as opened:
        yield opened


@pytest.fixture
def open_gallery(archive: VideoArchive, store: ObjectStore) -> OpenGallery:
    """Opens a gallery over the test's bucket. Its arguments are `redirect`, `host`, `now`, and fields of the block."""

    @asynccontextmanager
    async def opened(
        *,
        redirect: bool | None = None,
        host: str = "localhost",
        now: datetime = NOW + timedelta(hours=1),
        **fields: Any,
    ) -> AsyncIterator[Gallery]:
        block = archive.model_copy(update=fields)
        app = create_app(block, store, redirect=redirect, links=NoPrefect(), now=lambda: now)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client,
        ):
            yield Gallery(block, store, client)

    return opened
