"""Scripted servers on loopback, a proxy, and a resolver with made-up names."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from flows.media.guarded_client import open_stream

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


def redirect(location: str, encoding: str = "utf-8") -> bytes:
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode(encoding)


@dataclass
class Server:
    """Sends its scripted responses in turn, the last one forever, and records the requests."""

    responses: list[bytes]
    requests: list[str] = field(default_factory=list)
    port: int = 0
    keeps_connections: bool = False

    def url(self, path: str = "/", *, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                writer.write(self.responses.pop(0) if len(self.responses) > 1 else self.responses[0])
                await writer.drain()
                if not self.keeps_connections:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has hung up, or rejected the certificate
        finally:
            writer.close()


@asynccontextmanager
async def listening(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Handles connections on a free port of loopback, and yields the port."""
    listener = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await listener.wait_closed()


@asynccontextmanager
async def serving(*responses: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(list(responses))
    async with listening(server.handle, tls) as server.port:
        yield server


def fake_resolver(**addresses: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """A resolver that knows only these names. ``a_example`` stands for a.example."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses[host.rstrip(".").replace(".", "_")]

    return resolve


async def get(client: httpx.AsyncClient, url: str, **headers: str) -> bytes:
    async with client, open_stream(client, url, headers=headers) as response:
        return await response.aread()


@dataclass
class Proxy:
    """An HTTP proxy that answers plain requests itself, and tunnels all others to one port."""

    target: int
    rejects: bool = False
    request_lines: list[str] = field(default_factory=list)
    port: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.request_lines.append(" ".join(head.split(" ", 2)[:2]))
            if self.rejects:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            elif head.startswith("CONNECT"):
                writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                await tunnel(reader, writer, self.target)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nby proxy")
            await writer.drain()
        finally:
            writer.close()


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)

    async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            to.write(data)
            await to.drain()

    pumps = [asyncio.ensure_future(pump(reader, up_writer)), asyncio.ensure_future(pump(up_reader, writer))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
    finally:
        up_writer.transport.abort()
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


@asynccontextmanager
async def forward_proxy(target: int, *, rejects: bool = False) -> AsyncIterator[Proxy]:
    proxy = Proxy(target, rejects)
    async with listening(proxy.handle) as proxy.port:
        yield proxy
