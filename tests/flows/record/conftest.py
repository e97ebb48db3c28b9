"""Direct access to the bucket of the test's ledger."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from flows.record.ledger import Ledger


@pytest.fixture
async def store(archive: VideoArchive, ledger: Ledger) -> AsyncIterator[ObjectStore]:
    """Direct access to the ledger's bucket."""
    async with aclosing(archive.store()) as opened:
        yield opened
