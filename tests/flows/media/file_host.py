"""A host on loopback that serves one file, and hangs up, changes the file or misreports it as a test needs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flows.media.downloads import download
from flows.media.guarded_client import guarded_client
from flows.media.media_errors import DownloadError

from .wire import listening

VIDEO = bytes(range(256)) * 40
ETAG = '"v1"'


@dataclass
class Host:
    """Serves one file. Each field breaks one rule. ``cuts`` are the body lengths after which it hangs up, in turn."""

    body: bytes = VIDEO
    etag: str | None = ETAG
    status: int = 200
    cuts: list[int] = field(default_factory=list)
    honors_range: bool = True
    sends_length: bool = True
    content_range: Callable[[int, int], str] = lambda start, size: f"bytes {start}-{size - 1}/{size}"
    extra_headers: str = ""
    raw_response: bytes | None = None
    pause_seconds: float = 0.0
    hold: asyncio.Event | None = None
    """If set, the host waits for this event in the middle of a body."""
    requested: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video.mp4?sig=secret"

    @property
    def ranges(self) -> list[str]:
        return [request.get("range", "whole") for request in self.requested]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
            request = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            self.requested.append(request)
            if self.raw_response is not None:
                writer.write(self.raw_response)
                return
            await self.send(request, writer)
        except ConnectionError:
            pass  # the client has hung up
        finally:
            writer.close()

    async def send(self, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        start, status, size = 0, self.status, len(self.body)
        if self.honors_range and request.get("if-range") in {None, self.etag} and "range" in request:
            start = int(request["range"].removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < size else 416
        body = self.body[start:] if status in {200, 206} else b""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: video/mp4\r\n{self.extra_headers}"
        head += f"Content-Length: {len(body)}\r\n" if self.sends_length else ""
        head += f"ETag: {self.etag}\r\n" if self.etag else ""
        head += f"Content-Range: {self.content_range(start, size)}\r\n" if status == 206 else ""
        writer.write(head.encode() + b"\r\n")
        if self.hold is not None:
            half, body = body[: len(body) // 2], body[len(body) // 2 :]
            writer.write(half)
            await self.hold.wait()
        for at in range(0, len(body), 1 if self.pause_seconds else 65_536):
            if self.cuts:
                writer.write(body[: self.cuts[0]])
                await writer.drain()
                self.cuts.pop(0)
                return
            writer.write(body[at : at + (1 if self.pause_seconds else 65_536)])
            await writer.drain()
            await asyncio.sleep(self.pause_seconds)


@asynccontextmanager
async def hosting(host: Host) -> AsyncIterator[Host]:
    async with listening(host.handle) as host.port:
        yield host


async def fetch(
    url: str,
    path: Path,
    *,
    max_bytes: int = 10_000_000,
    total_seconds: float = 30,
    report: Callable[[int], None] | None = None,
) -> bytes:
    """Downloads to the path, and returns the content of the file."""
    async with guarded_client(allow_private_hosts=True) as client:
        await download(client, url, path, max_bytes=max_bytes, total_seconds=total_seconds, report=report)
    return await asyncio.to_thread(path.read_bytes)


def part_path(path: Path) -> Path:
    return path.with_name("video.mp4.part")


async def interrupt_at_4000(host: Host, path: Path) -> None:
    host.cuts = [4000]
    with pytest.raises(DownloadError):
        await fetch(host.url, path)
