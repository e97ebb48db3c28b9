"""A ledger in the bucket of the test."""

from collections.abc import AsyncIterator

import pytest

from blocks import VideoArchive
from flows.record.ledger import Ledger
from tests.flows.paid_call.spending import open_ledger


@pytest.fixture
async def ledger(archive: VideoArchive) -> AsyncIterator[Ledger]:
    async with open_ledger(archive) as opened:
        yield opened
