"""Fixtures for the tests in this folder: generated video files, and web servers on loopback."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest

from flows.media.guarded_client import guarded_client

from .file_host import Host, hosting
from .wire import listening

Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Web:
    """A server on loopback. ``files`` maps paths to complete responses; ``scripts`` write their responses by hand."""

    files: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    scripts: dict[str, Serve] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    port: int = 0

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path: str, body: bytes, status: int = 200) -> str:
        self.files[path] = (status, body)
        return self.url(path)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().partition("?")[0]
            self.requested.append(target)
            if target in self.scripts:
                await self.scripts[target](writer)
            else:
                status, body = self.files.get(target, (404, b""))
                writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
        except ConnectionError:
            pass  # the client has hung up
        finally:
            writer.close()


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    server = Web()
    async with listening(server.handle) as server.port:
        yield server


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with guarded_client(allow_private_hosts=True) as made:
        yield made


@dataclass(frozen=True)
class VideoFiles:
    """Makes small H.264 videos. Each frame has its own brightness, so that a picture shows which frame it is.

    The same call does not always make the same bytes: in a process that also decodes, with x264 in one thread,
    4,320 bytes were usual, and up to 6,558 were measured.
    """

    folder: Path

    def make(
        self,
        name: str,
        *,
        frames: int = 48,
        width: int = 64,
        height: int = 48,
        audio: bool = False,
        picture: bool = True,
        rotation: int = 0,
        pixel_shape: Fraction | None = None,
        black: range = range(0),
        container: str | None = None,
        **options: str,
    ) -> Path:
        path = self.folder / name
        with av.open(str(path), "w", format=container, options=options) as out:
            if picture:
                video = out.add_stream("libx264", rate=24)
                video.width, video.height, video.pix_fmt = width, height, "yuv420p"
                if rotation:
                    video.set_display_rotation(rotation)
                if pixel_shape is not None:
                    video.codec_context.sample_aspect_ratio = pixel_shape
            if audio:
                sound = out.add_stream("aac", rate=48_000)
            if picture:
                for number in range(frames):
                    level = 0 if number in black else 60 + 3 * number
                    pixels = np.random.default_rng(number).integers(level, level + 20, (height, width, 3))
                    pixels[: height // 2, : width // 2] = 0 if number in black else 250  # marks the top left corner
                    frame = av.VideoFrame.from_ndarray(pixels.clip(0, 255).astype(np.uint8), format="rgb24")
                    out.mux(video.encode(frame))
                out.mux(video.encode(None))
            if audio:
                for start in range(0, 2000 * frames, 1024):
                    tone = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
                    tone.sample_rate, tone.pts, tone.time_base = 48_000, start, Fraction(1, 48_000)
                    out.mux(sound.encode(tone))
                out.mux(sound.encode(None))
        return path


@pytest.fixture
def video_files(tmp_path: Path) -> VideoFiles:
    return VideoFiles(tmp_path)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with hosting(Host()) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "work" / "video.mp4"
