"""A ledger in a bucket of its own."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from flows.record.ledger import Ledger

from .ledgers import opened


@pytest.fixture
async def ledger(archive: VideoArchive) -> AsyncIterator[Ledger]:
    """A ledger whose line to MinIO is good."""
    async with opened(archive) as made:
        yield made


@pytest.fixture
async def store(archive: VideoArchive, ledger: Ledger) -> AsyncIterator[ObjectStore]:
    """The bucket itself."""
    async with aclosing(archive.store()) as made:
        yield made
