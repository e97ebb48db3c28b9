"""The videos on disk: each rendered once for its inputs, two at a time, beside the event loop."""

import asyncio
import hashlib
import json
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from PIL import Image

from deployments.sandbox.videos import RenderingCancelledError, render_video

#: Raised when videos look different, so that a kept `data_dir` does not serve the old ones.
LOOK = 2
#: Videos rendered at one time. More would only take the processor from those who wait for an answer.
RENDERERS = 2


class VideoStore:
    """Gives videos their place in a folder. Used on the event loop; only the rendering is in threads."""

    def __init__(self, folder: Path | None, height: int) -> None:
        """`folder` keeps the videos; without one they live in a temporary folder until `close`."""
        self._height = height
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="apixo-sandbox-")
        self._folder = folder or Path(self._temporary.name if self._temporary else "")
        self._pool = ThreadPoolExecutor(RENDERERS, thread_name_prefix="sandbox-video")
        self._stopped = threading.Event()
        self._under_way: dict[Path, asyncio.Future[None]] = {}

    async def video(
        self, *, prompt: str, duration: int, aspect_ratio: str, image: bytes | None, watermark: bool
    ) -> Path:
        """The video for these inputs, rendered unless it is there. `duration` in seconds; `image` an encoded one."""
        about = [LOOK, self._height, prompt, duration, aspect_ratio, watermark, _digest(image)]
        path = self._folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.mp4"

        def render() -> None:
            picture = None if image is None else Image.open(BytesIO(image))
            render_video(
                path,
                prompt=prompt,
                duration_seconds=duration,
                aspect_ratio=aspect_ratio,
                height=self._height,
                image=picture,
                watermark=watermark,
                cancelled=self._stopped,
            )

        while not path.exists():
            if self._stopped.is_set():
                raise RenderingCancelledError("the sandbox is stopped")
            rendering = self._under_way.get(path)
            if rendering is None:
                rendering = asyncio.get_running_loop().run_in_executor(self._pool, render)
                self._under_way[path] = rendering
                rendering.add_done_callback(lambda _: self._under_way.pop(path, None))
            # Shielded: others may wait for the same video when this caller goes away.
            await asyncio.shield(rendering)
        return path

    async def close(self) -> None:
        """Ends what is being rendered and removes the temporary folder."""
        self._stopped.set()
        waiting = list(self._under_way.values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*waiting, return_exceptions=True)
        self._pool.shutdown(wait=True)
        if self._temporary is not None:
            self._temporary.cleanup()


def _digest(image: bytes | None) -> str | None:
    return None if image is None else hashlib.sha256(image).hexdigest()
