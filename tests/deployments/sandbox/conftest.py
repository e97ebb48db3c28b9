"""A sandbox that runs much faster than the real API, and a client with the right API key."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from deployments.sandbox import SandboxServer, SandboxSettings
from tests.deployments.sandbox.caller import KEY, Caller

StartSandbox = Callable[..., SandboxServer]


@pytest.fixture
def start_sandbox(video_folder: Path) -> Iterator[StartSandbox]:
    """Starts sandboxes with the given settings. All are stopped after the test."""
    running: list[SandboxServer] = []

    def start(**settings: object) -> SandboxServer:
        values = {"speed": 2000.0, "video_height": 90, "data_dir": video_folder, **settings}
        sandbox = SandboxServer(SandboxSettings.model_validate(values)).start()
        running.append(sandbox)
        return sandbox

    yield start
    for sandbox in running:
        sandbox.stop()


@pytest.fixture(scope="session")
def shared_sandbox(video_folder: Path) -> Iterator[SandboxServer]:
    with SandboxServer(SandboxSettings(speed=2000, video_height=90, data_dir=video_folder)) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(shared_sandbox: SandboxServer) -> SandboxServer:
    """A sandbox shared by tests that need no special settings. Its record and faults start empty, its tasks do not."""
    shared_sandbox.faults.clear()
    shared_sandbox.record.clear()
    return shared_sandbox


@pytest.fixture(scope="session")
def http() -> Iterator[httpx.Client]:
    """A client without an API key, for videos, samples and pages."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def call(sandbox: SandboxServer, http: httpx.Client) -> Caller:
    return Caller(sandbox.base_url, http, KEY)
