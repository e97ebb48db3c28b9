"""One HTTP exchange as raw ASGI: access to what web frameworks hide, but faults need."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Json = dict[str, Any]

#: The number of bytes that are sent at a time.
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply, in memory."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; an empty dict if it is anything else."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


class Exchange:
    """One request, and the means to answer its caller."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        self.scope, self.body = scope, body
        self._receive, self._send = receive, send

    async def pass_on(self, app: ASGIApp) -> None:
        """Lets the app answer as if nothing were in between."""
        await app(self.scope, self._replay(self._receive), self._send)

    async def run_app(self, app: ASGIApp, *, without: tuple[str, ...] = ()) -> Reply:
        """Runs the app and returns its reply instead of sending it. `without`: headers to hide from the app."""
        headers = [(name, value) for name, value in self.scope["headers"] if name.decode("latin-1") not in without]
        status = 500
        answer: dict[str, str] = {}
        body = bytearray()

        async def never() -> Message:
            # The app runs to its end, even if the caller disconnects.
            await asyncio.Event().wait()
            raise AssertionError

        async def keep(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer.update({n.decode("latin-1"): v.decode("latin-1") for n, v in message.get("headers", [])})
            else:
                body.extend(message.get("body", b""))

        await app({**self.scope, "headers": headers}, self._replay(never), keep)
        return Reply(status, answer, bytes(body))

    async def answer(
        self, status: int, body: bytes | str | Mapping[str, Any] = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends a complete reply: a mapping as JSON, text as HTML. Content-Length is right unless `headers` sets it."""
        kind = "application/octet-stream"
        if isinstance(body, Mapping):
            body, kind = json.dumps(body).encode(), "application/json"
        elif isinstance(body, str):
            body, kind = body.encode(), "text/html; charset=utf-8"
        await self.begin(status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})
        for start in range(0, len(body), CHUNK_BYTES):
            await self.send_chunk(body[start : start + CHUNK_BYTES])
        await self.end()

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Sends status and headers. Without a Content-Length, the body is chunked."""
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send_chunk(self, content: bytes) -> None:
        await self._send({"type": "http.response.body", "body": content, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def disconnected_within(self, seconds: float | None) -> bool:
        """Waits until the caller disconnects (true) or the time is over (false); None: no time limit."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while (await self._receive())["type"] != "http.disconnect":
                    pass
                return True
        return False

    async def reset(self) -> None:
        """Cuts the connection with a TCP reset. Bytes that were not sent yet are lost."""
        transport = self._transport()
        connection = transport.get_extra_info("socket")
        if connection is not None:
            # Lingering for 0 s makes the close a reset (RST) instead of a regular end (FIN).
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await self.disconnected_within(1)

    async def break_off(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Sends this body, then closes the connection, whatever length was declared."""
        await self.begin(status, headers)
        await self.send_chunk(body)
        self._transport().close()
        await self.disconnected_within(1)

    def _transport(self) -> asyncio.Transport:
        # ASGI has no message for cutting the connection: if an app returns early or raises, the server sends a 500.
        # In both of uvicorn's HTTP protocols, `receive` is a method of the request's cycle, which has the transport.
        transport = getattr(getattr(self._receive, "__self__", None), "transport", None)
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("connections can be cut only under uvicorn: run the app with SandboxServer or serve()")
        return transport

    def _replay(self, then: Receive) -> Receive:
        first: list[Message] = [{"type": "http.request", "body": self.body, "more_body": False}]

        async def receive() -> Message:
            return first.pop() if first else await then()

        return receive


async def read_body(receive: Receive, most_bytes: int) -> bytes | None:
    """The request's body, or only its beginning if it exceeds `most_bytes`; None if the caller disconnected."""
    body, more = bytearray(), True
    while more and len(body) <= most_bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


def success(data: Mapping[str, Any]) -> Json:
    """The envelope of a successful reply."""
    return {"code": 200, "message": "success", "data": dict(data)}


def failure(code: int, message: str) -> Json:
    """The envelope of an error."""
    return {"code": code, "message": message, "data": None}
