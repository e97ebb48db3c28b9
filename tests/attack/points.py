"""Where a process can be killed: just before and just after each of its effects on the outside world.

`Tap.install` patches what carries requests: httpx (the API client, the result hosts, Prefect's own client), websockets
(Prefect's events, which carry task-run states), `ObjectStore._call`, through which every call of the store goes,
because its clients are written in Rust, and `os.replace`, which gives a download its final name, because that outlives
the process too. The patches exist only in a forked child, which is never used again.
"""

import functools
import os
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import httpx
from pydantic import BaseModel, ConfigDict
from websockets.asyncio.client import ClientConnection

from blocks.object_store import ObjectStore
from tests.attack.labels import Places, label_of_message, label_of_rename, label_of_request, label_of_store_call

Moment = Literal["before", "sent", "after"]
"""`before`: nothing has left the process. `sent`: the whole request has left it, but no reply was read. `after`: the
whole reply has arrived, but the process has not used it."""

COUNTED: Final = {"GET status": 2}
"""Labels of which only this many effects count, the first ones: how often a run polls depends on timing."""
SENT: Final = ("POST generation",)
"""Labels for which it matters that the process never read the reply. A write to the store has the same effect whether
it was only sent or also answered, because the recovery starts after it has arrived."""


class Point(BaseModel):
    """One moment of one effect. It is the same in every run: the n-th of its kind, not the n-th of all."""

    model_config = ConfigDict(frozen=True)

    label: str
    number: int
    moment: Moment

    def __str__(self) -> str:
        return f"{self.moment} {self.label} #{self.number}"

    @classmethod
    def parse(cls, line: str) -> "Point":
        """The inverse of `str`."""
        moment, _, rest = line.partition(" ")
        label, _, number = rest.rpartition(" #")
        return cls.model_validate({"label": label, "number": int(number), "moment": moment})


class Tap:
    """Counts the effects of this process, records each point that it passes, and kills it at one of them.

    Args:
        places: host and port of the provider, the store and Prefect.
        trace: gets a line for each point, before the process continues or is killed.
        die_at: where to kill it; None: nowhere.
    """

    def __init__(self, places: Places, trace: Path, die_at: Point | None) -> None:
        self._places, self._die_at = places, die_at
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()  # the paid call and the events run on their own threads
        self._trace = os.open(trace, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)

    def install(self) -> None:
        """Patches the libraries of this process."""
        self._tap_httpx()
        self._tap_httpx_sync()
        self._tap_store()
        self._tap_websockets()
        self._tap_disk()

    def enter(self, label: str | None) -> "Passing":
        """An effect is about to happen."""
        if label is None:
            return Passing(self, None, 0)
        with self._lock:
            self._counts[label] += 1
            number = self._counts[label]
        if number > COUNTED.get(label, number):
            return Passing(self, None, 0)
        passing = Passing(self, label, number)
        passing.at("before")
        return passing

    def passes(self, point: Point) -> None:
        """Records the point, and kills the process if it is the chosen one."""
        os.write(self._trace, f"{point}\n".encode())
        if point == self._die_at:
            die()

    def is_chosen(self, point: Point) -> bool:
        """Whether the process is to be killed there."""
        return point == self._die_at

    def _tap_httpx(self) -> None:
        original = httpx.AsyncHTTPTransport.handle_async_request

        async def handle(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            passing = self.enter(label_of_request(self._places, request.method, str(request.url), _content(request)))
            request.extensions = {**request.extensions, **passing.extensions()}
            response = await original(transport, request)
            if passing.dies("after"):
                assert isinstance(response.stream, httpx.AsyncByteStream)
                async for _ in response.stream:
                    pass
            passing.at("after")
            return response

        _replace(httpx.AsyncHTTPTransport, original, handle)

    def _tap_httpx_sync(self) -> None:
        original = httpx.HTTPTransport.handle_request

        def handle(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
            passing = self.enter(label_of_request(self._places, request.method, str(request.url), _content(request)))
            response = original(transport, request)
            passing.at("after")
            return response

        _replace(httpx.HTTPTransport, original, handle)

    def _tap_store(self) -> None:
        original = ObjectStore._call

        async def call(store: ObjectStore, method: str, name: str, send: Callable[[], Awaitable[Any]]) -> Any:
            passing = self.enter(label_of_store_call(method, name))
            try:
                reply = await original(store, method, name, send)
            except Exception:  # a rejection is an answer as well
                passing.at("after")
                raise
            passing.at("after")
            return reply

        _replace(ObjectStore, original, call)

    def _tap_websockets(self) -> None:
        original: Callable[..., Awaitable[None]] = ClientConnection.send

        async def send(connection: ClientConnection, message: Any, *arguments: Any, **options: Any) -> None:
            passing = self.enter(label_of_message(message))
            await original(connection, message, *arguments, **options)
            passing.at("after")

        _replace(ClientConnection, original, send)

    def _tap_disk(self) -> None:
        original = os.replace

        def replace(source: Any, target: Any, **options: Any) -> None:
            passing = self.enter(label_of_rename(str(target)))
            original(source, target, **options)
            passing.at("after")

        _replace(os, original, replace)


def _replace(owner: object, original: Any, ours: Callable[..., Any]) -> None:
    setattr(owner, original.__name__, functools.wraps(original)(ours))


class Passing:
    """One effect in progress. Without a label, it does not count."""

    def __init__(self, tap: Tap, label: str | None, number: int) -> None:
        self._tap, self._label, self._number = tap, label, number

    def at(self, moment: Moment) -> None:
        """The effect has reached this moment."""
        if self._label is not None:
            self._tap.passes(self._point(self._label, moment))

    def dies(self, moment: Moment) -> bool:
        """Whether the process is to be killed at this moment of the effect."""
        return self._label is not None and self._tap.is_chosen(self._point(self._label, moment))

    def extensions(self) -> dict[str, Any]:
        """The httpx extension that reports when the request has been sent."""
        if self._label not in SENT:
            return {}

        async def trace(event: str, _: dict[str, Any]) -> None:
            if event == "http11.send_request_body.complete":
                self.at("sent")

        return {"trace": trace}

    def _point(self, label: str, moment: Moment) -> Point:
        return Point(label=label, number=self._number, moment=moment)


def die() -> NoReturn:
    """Like kill -9: no handlers, no flushed buffers, no cleanup of any thread."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not kill")


def _content(request: httpx.Request) -> bytes:
    try:
        return request.content
    except httpx.RequestNotRead:
        return b""
