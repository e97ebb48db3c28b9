"""A ledger in its own bucket."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from flows.record.ledger import Ledger

from .ledgers import open_ledger


@pytest.fixture
async def ledger(archive: VideoArchive) -> AsyncIterator[Ledger]:
    """A ledger with a working connection to MinIO."""
    async with open_ledger(archive) as opened:
        yield opened


@pytest.fixture
async def store(archive: VideoArchive, ledger: Ledger) -> AsyncIterator[ObjectStore]:
    """Direct access to the ledger's bucket."""
    async with aclosing(archive.store()) as opened:
        yield opened
