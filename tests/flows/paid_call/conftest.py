"""The ledger of this folder's tests."""

from collections.abc import AsyncIterator

import pytest

from blocks import VideoArchive
from flows.record.ledger import Ledger
from tests.flows.paid_call.spending import opened


@pytest.fixture
async def ledger(archive: VideoArchive) -> AsyncIterator[Ledger]:
    async with opened(archive) as made:
        yield made
