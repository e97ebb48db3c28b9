"""A sandbox of the API at the provider's own pace, and clients whose pauses are counted, not slept."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from apixo import ApixoClient, VideoRequest
from deployments.sandbox import SandboxServer, SandboxSettings

KITE = VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour")
KEY = "sandbox-key"


class Naps(list[float]):
    """Stands for `asyncio.sleep`: keeps the seconds and takes none."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


Connect = Callable[..., ApixoClient]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client honors the proxies of the environment; a developer's own must not decide these tests."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def own_sandbox_server() -> Iterator[SandboxServer]:
    """At the provider's pace no task ends during a test, so no video is ever drawn."""
    with SandboxServer(SandboxSettings(api_key=KEY, speed=1)) as server:
        yield server


@pytest.fixture
def own_sandbox(own_sandbox_server: SandboxServer) -> Iterator[SandboxServer]:
    own_sandbox_server.record.clear()
    yield own_sandbox_server
    own_sandbox_server.faults.clear()


@pytest.fixture
def own_naps() -> Naps:
    return Naps()


@pytest.fixture
async def own_connect(own_naps: Naps) -> AsyncIterator[Connect]:
    """Opens clients; all are closed at the end."""
    opened: list[ApixoClient] = []

    def connect(base_url: str, **options: Any) -> ApixoClient:
        given: dict[str, Any] = {
            "submit_timeout_seconds": 5.0,
            "sleep": own_naps,
            "rng": lambda: 0.5,
            "max_tries": 3,
        } | options
        client = ApixoClient(given.pop("api_key", KEY), base_url=base_url, **given)
        opened.append(client)
        return client

    yield connect
    for client in opened:
        await client.aclose()
