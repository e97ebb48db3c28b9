"""A sandbox that offers more models than the catalog has."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.sandbox import SandboxServer, SandboxSettings


@pytest.fixture
def sandbox(video_folder: Path) -> Iterator[SandboxServer]:
    """A sandbox that also offers a model that is not in the catalog."""
    settings = SandboxSettings(speed=600, video_height=90, data_dir=video_folder, other_models=("future-1",))
    with SandboxServer(settings) as server:
        yield server
