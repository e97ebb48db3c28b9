"""A running callback receiver, and a raw HTTP client that can send it anything."""

import asyncio
import contextlib
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from prefect.blocks.system import Secret

from blocks import ApixoApi, VideoArchive
from deployments.receiver.app import CallbackServer, open_app
from flows.resources import PayingResources


@dataclass(frozen=True)
class Answer:
    """A response of the receiver. `status` 0: there was none."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> str:
        """The `status` field in the body."""
        return str(json.loads(self.body)["status"])


async def exchange(port: int, content: bytes, *, then: float = 0.0, more: bytes = b"") -> Answer:
    """Sends bytes over a new connection, then `more` after `then` seconds, and reads the response to its end.

    It does not use httpx, which logs the URLs that it requests, because the tests search the log for tokens.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(content)
            await writer.drain()
            if more:
                await asyncio.sleep(then)
                writer.write(more)
                await writer.drain()

    sending = asyncio.create_task(send())
    try:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                received += piece
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    status = int(lines[0].split(" ")[1]) if received else 0
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    headers.pop("date", None)
    return Answer(status, headers, body)


def post(path: str, body: bytes = b"", *, method: str = "POST", **headers: str) -> bytes:
    """A request as bytes."""
    fields = {"host": "receiver", "content_length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def named(task_id: str | None) -> bytes:
    """The body of a callback about this task, as the sandbox sends it."""
    return json.dumps({"code": 200, "message": "success", "data": {"taskId": task_id, "state": "success"}}).encode()


@dataclass
class Receiver:
    """A receiver on a free port, and the resources of a run whose callbacks it gets.

    Attributes:
        api: a block whose callback URL points to this receiver.
        resources: those of the submitting side; the receiver has its own.
    """

    port: int
    api: ApixoApi
    resources: PayingResources
    server: CallbackServer

    def path(self, key: str, attempt: int = 1) -> str:
        """The path of an attempt's callback URL, including its token."""
        return (self.api.callback_url_for(key, attempt) or "").partition(f":{self.port}")[2]

    async def send(self, content: bytes, **options: Any) -> Answer:
        """Sends any bytes."""
        return await exchange(self.port, content, **options)

    async def call(self, key: str, task_id: str | None = None, *, attempt: int = 1) -> Answer:
        """Sends a callback as the provider does."""
        return await self.send(post(self.path(key, attempt), named(task_id)))

    async def healthy(self) -> bool:
        return (await self.send(post("/health", method="GET"))).said == "ok"


@asynccontextmanager
async def receiving(
    api: ApixoApi,
    archive: VideoArchive,
    *,
    name: str = "default",
    submitting: VideoArchive | None = None,
    path: str = "",
) -> AsyncIterator[Receiver]:
    """Runs a receiver until the block ends.

    Args:
        api: the block. The receiver's copy of it has a callback URL that points here.
        archive: the archive as the receiver reaches it.
        name: the name of both blocks, for the events.
        submitting: the archive as the submitting side reaches it, if that differs.
        path: the path of the public URL.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    secret: Secret[str] = Secret(value=secrets.token_hex(16))
    api = api.model_copy(update={"callback_url": f"http://127.0.0.1:{port}{path}", "callback_secret": secret})
    async with (
        open_app(api, archive, api=name, archive=name) as app,
        PayingResources(api, submitting or archive) as resources,
    ):
        server = CallbackServer(app)
        serving = asyncio.create_task(server.serve([listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield Receiver(port, api, resources, server)
        finally:
            server.should_exit = True
            await serving


async def records(resources: PayingResources) -> dict[str, bytes]:
    """The exact content of every record and open marker, by name."""
    names = [*await resources.store.names("ledger/"), *await resources.store.names("open/")]
    found = {name: await resources.store.get(name) for name in names}
    return {name: item.data for name, item in found.items() if item is not None}
