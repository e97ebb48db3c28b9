"""A scripted HTTP server on loopback: sends what no web framework would, and records the requests it receives."""

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.blocks.wire import listening


@dataclass
class Exchange:
    """One complete request, and the connection to answer it on."""

    head: str
    body: bytes
    port: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def header(self, name: str) -> str | None:
        """The value of a request header, or None if it was not sent."""
        for line in self.head.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name.lower():
                return value.strip()
        return None

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()


Answer = Callable[[Exchange], Awaitable[None]]


@dataclass
class WireServer:
    """Gives its scripted answers in order, then repeats the last one forever."""

    answers: list[Answer]
    scheme: str = "http"
    port: int = 0
    requests: list[Exchange] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def lines(self) -> list[str]:
        """The request lines that arrived."""
        return [request.head.split("\r\n")[0] for request in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while not writer.is_closing():
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            exchange = Exchange(head, b"", writer.get_extra_info("peername")[1], reader, writer)
            exchange.body = await reader.readexactly(int(exchange.header("content-length") or 0))
            self.requests.append(exchange)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            await answer(exchange)


@asynccontextmanager
async def serving(*answers: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[WireServer]:
    """Runs such a server. At the end it closes every connection, even one that hangs."""
    server = WireServer(list(answers), scheme="https" if tls else "http")
    async with listening(server._serve, tls) as endpoint:
        server.port = int(endpoint.rpartition(":")[2])
        yield server


def http(status: int, body: bytes | str | dict[str, Any] = b"", **headers: str) -> bytes:
    """A complete HTTP reply. Underscores in header names stand for hyphens."""
    if isinstance(body, dict):
        body = json.dumps(body)
    content = body.encode() if isinstance(body, str) else body
    all_headers = {"content-length": str(len(content))} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in all_headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def envelope(data: Any, code: int = 200, message: str = "success") -> dict[str, Any]:
    return {"code": code, "message": message, "data": data}


def reply(content: bytes) -> Answer:
    """Sends these bytes and keeps the connection open."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(content)

    return answer


def cut(content: bytes = b"") -> Answer:
    """Sends these bytes and closes the connection."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(content)
        exchange.writer.close()

    return answer


async def reset(exchange: Exchange) -> None:
    """Resets the connection without a reply."""
    connection = exchange.writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.writer.transport.abort()


async def hang(exchange: Exchange) -> None:
    """Sends nothing until the client hangs up."""
    await exchange.reader.read()


def trickle(content: bytes, *, pause_seconds: float = 0.02) -> Answer:
    """Sends one byte at a time: each arrives in time, but the complete reply never does."""

    async def answer(exchange: Exchange) -> None:
        for number in range(len(content)):
            await exchange.send(content[number : number + 1])
            await asyncio.sleep(pause_seconds)

    return answer


def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
