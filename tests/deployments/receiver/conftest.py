"""The callback receiver that the tests in this folder use."""

from collections.abc import AsyncIterator

import pytest

from blocks import ApixoApi, VideoArchive
from deployments.local.prefect_server import PrefectServer
from tests.support.receiver import Receiver, receiving


@pytest.fixture
async def receiver(api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer) -> AsyncIterator[Receiver]:
    """A receiver for this test's sandbox and archive. The sandbox sends its callbacks there."""
    async with receiving(api, archive, name="a-block") as running:
        yield running
