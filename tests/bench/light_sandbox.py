"""The sandbox with a video that is already rendered: `python -m tests.bench.light_sandbox PORT SPEED VIDEO`.

Rendering a thousand videos would take longer than anything that is measured.
"""

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from deployments.sandbox import SandboxSettings, rendering, serve


def main(port: int, speed: float, video: Path) -> None:
    """Serves until SIGTERM. Each video that it generates is a hard link to `video`."""

    def link(path: Path, **_: Any) -> None:
        path.hardlink_to(video)

    setattr(rendering, "render_video", link)  # noqa: B010 - an assignment is an error of its type
    with tempfile.TemporaryDirectory(dir=video.parent) as folder:
        serve(
            SandboxSettings(
                api_key=os.environ["SORA_SANDBOX_API_KEY"],
                speed=speed,
                balance=1_000_000,
                requests_per_minute=10_000_000,
                data_dir=Path(folder),
            ),
            socket.create_server(("127.0.0.1", port), backlog=2048),
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]))
