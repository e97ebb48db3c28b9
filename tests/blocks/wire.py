"""Fake stores on loopback with scripted S3 replies, and proxies that lose, limit, break or tunnel requests."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serves connections on a free port, and yields its `host:port`. At the end all connections are closed."""
    handlers: set[asyncio.Task[None]] = set()

    async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handle(reader, writer)
        finally:
            writer.transport.abort()
            handlers.discard(task)

    listener = await asyncio.start_server(tracked, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for handler in list(handlers):
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await listener.wait_closed()


@dataclass
class FakeStore:
    """Answers every request with the same function, and records the heads of the requests."""

    answer: Answer
    heads: list[str] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            await reader.readexactly(body_length(head))
            self.heads.append(head)
            await self.answer(head, writer)
            await writer.drain()


def body_length(head: str) -> int:
    lines = [line.partition(":") for line in head.split("\r\n")]
    return next((int(value) for name, _, value in lines if name.lower() == "content-length"), 0)


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    all_headers = {"content-length": str(len(body))} | headers
    return (
        "\r\n".join([f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in all_headers.items())]).encode()
        + b"\r\n\r\n"
        + body
    )


def s3_error(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    return http(status, body, **{"content-type": "application/xml"})


def always(content: bytes) -> Answer:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        # A reply to HEAD has no body, whatever its Content-Length.
        writer.write(content.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if head.startswith("HEAD") else content)

    return answer


@dataclass
class LosingProxy:
    """Passes everything to a store, but loses the reply to the first request whose lowercased head contains `loses`."""

    endpoint: str
    loses: str
    lost: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with connected(self.endpoint) as (up_reader, up_writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                up_writer.write(head + await reader.readexactly(body_length(head.decode("latin-1"))))
                reply = await read_reply(head, up_reader)
                if self.loses in head.decode("latin-1").lower() and not self.lost:
                    self.lost += 1
                    return  # the store has answered, so the request took effect
                writer.write(reply)
                await writer.drain()


@dataclass
class LimitingProxy:
    """Passes requests to a store if their body has at most `max_bytes`; rejects the others as nginx does."""

    endpoint: str
    max_bytes: int
    rejected: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with connected(self.endpoint) as (up_reader, up_writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if (length := body_length(head.decode("latin-1"))) > self.max_bytes:
                    self.rejected += 1
                    writer.write(http(413, b"<h1>413 Request Entity Too Large</h1>", connection="close"))
                    await writer.drain()
                    await reader.readexactly(length)  # closing at once could cost the client the reply
                    return
                up_writer.write(head + await reader.readexactly(length))
                writer.write(await read_reply(head, up_reader))
                await writer.drain()


@dataclass
class BreakingProxy:
    """Passes everything to a store, but itself answers the end of the first multipart upload under a path prefix."""

    endpoint: str
    begins: str
    answer: bytes
    broken: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with connected(self.endpoint) as (up_reader, up_writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(body_length(head.decode("latin-1")))
                method, target, _ = head.decode("latin-1").split(" ", 2)
                if method == "POST" and "uploadId=" in target and target.startswith(self.begins) and not self.broken:
                    self.broken += 1
                    writer.write(self.answer)
                else:
                    up_writer.write(head + body)
                    writer.write(await read_reply(head, up_reader))
                await writer.drain()


@asynccontextmanager
async def connected(endpoint: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the store behind a proxy, aborted at the end."""
    host, _, port = endpoint.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_reply(request_head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The complete reply to a request. A reply to HEAD has no body, whatever its Content-Length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0 if request_head.startswith(b"HEAD") else body_length(head.decode("latin-1"))
    return head + await reader.readexactly(length)


@dataclass
class ConnectProxy:
    """An HTTP proxy that tunnels every host to one endpoint, and records the heads of the requests."""

    endpoint: str
    heads: list[str] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
        async with connected(self.endpoint) as (up_reader, up_writer):
            writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
            await asyncio.wait(
                [asyncio.ensure_future(pump(reader, up_writer)), asyncio.ensure_future(pump(up_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )


async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    """Forwards data until the end of the stream."""
    while data := await source.read(65_536):
        to.write(data)
        await to.drain()
