"""Stores that are not: scripted S3 answers on loopback, a proxy that loses a reply, and one that tunnels."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Serves connections on a free port, whose address is given; at the end all are closed."""
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
    """Answers every request the same way, and keeps the heads of the requests."""

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
    given = {"content-length": str(len(body))} | headers
    return "\r\n".join([f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in given.items())]).encode() + b"\r\n\r\n" + body


def s3_error(status: int, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    return http(status, body, **{"content-type": "application/xml"})


def always(content: bytes) -> Answer:
    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        # A reply to HEAD has no body, whatever length it announces.
        writer.write(content.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if head.startswith("HEAD") else content)

    return answer


@dataclass
class LosingProxy:
    """Passes everything to a store, but loses the reply to the first request with this in its head, in lower case."""

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
                    return  # the store has answered: what it did, it did
                writer.write(reply)
                await writer.drain()


@dataclass
class LimitingProxy:
    """Passes to a store what has no larger body than this; the rest is refused as nginx does it."""

    endpoint: str
    max_bytes: int
    refused: int = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with connected(self.endpoint) as (up_reader, up_writer):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if (length := body_length(head.decode("latin-1"))) > self.max_bytes:
                    self.refused += 1
                    writer.write(http(413, b"<h1>413 Request Entity Too Large</h1>", connection="close"))
                    await writer.drain()
                    await reader.readexactly(length)  # it lingers, so that the client comes to read the answer
                    return
                up_writer.write(head + await reader.readexactly(length))
                writer.write(await read_reply(head, up_reader))
                await writer.drain()


@dataclass
class BreakingProxy:
    """Passes everything to a store, but answers the end of the first upload in parts whose path begins so itself."""

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
    """A connection to the store behind a proxy, cut at the end."""
    host, _, port = endpoint.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_reply(request_head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The whole reply to a request. A reply to HEAD has no body, whatever length it announces."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0 if request_head.startswith(b"HEAD") else body_length(head.decode("latin-1"))
    return head + await reader.readexactly(length)


@dataclass
class ConnectProxy:
    """An HTTP proxy that tunnels whatever host to one endpoint, and keeps the heads of the requests."""

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
    """Passes on what comes, until the end."""
    while data := await source.read(65_536):
        to.write(data)
        await to.drain()
