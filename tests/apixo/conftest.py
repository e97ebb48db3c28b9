"""A sandbox of the API at the provider's own pace, and clients that record their sleeps instead of sleeping."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from apixo import ApixoClient, VideoRequest
from deployments.sandbox import SandboxServer, SandboxSettings

KITE = VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour")
KEY = "sandbox-key"


class SleepRecorder(list[float]):
    """Stands in for `asyncio.sleep`: records the seconds and returns at once."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


MakeClient = Callable[..., ApixoClient]


@pytest.fixture(scope="session")
def realtime_sandbox_server() -> Iterator[SandboxServer]:
    """At the provider's pace no task finishes during a test, so no video is ever rendered."""
    with SandboxServer(SandboxSettings(api_key=KEY, speed=1)) as server:
        yield server


@pytest.fixture
def realtime_sandbox(realtime_sandbox_server: SandboxServer) -> Iterator[SandboxServer]:
    realtime_sandbox_server.record.clear()
    yield realtime_sandbox_server
    realtime_sandbox_server.faults.clear()


@pytest.fixture
def sleeps() -> SleepRecorder:
    return SleepRecorder()


@pytest.fixture
async def make_client(sleeps: SleepRecorder) -> AsyncIterator[MakeClient]:
    """Creates clients; all are closed at the end of the test."""
    clients: list[ApixoClient] = []

    def make(base_url: str, **options: Any) -> ApixoClient:
        arguments: dict[str, Any] = {
            "submit_timeout_seconds": 5.0,
            "sleep": sleeps,
            "rng": lambda: 0.5,
            "max_tries": 3,
        } | options
        client = ApixoClient(arguments.pop("api_key", KEY), base_url=base_url, **arguments)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.aclose()
