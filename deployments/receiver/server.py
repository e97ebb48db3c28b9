"""The web server that the callback receiver runs in: uvicorn, with an end to everything."""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTION_SECONDS: Final = 30.0
"""How long a connection may last: head, body, answer and whoever reads it slowly. Each is used once."""
MOST_ANSWERED: Final = 256
"""Connections that get a real answer at the same time; further ones get 503 at once."""
MOST_CONNECTIONS: Final = 512
"""Beyond these they are cut unheard: half of the file descriptors that Linux gives a process by default."""
STOP_SECONDS: Final = 6
"""How long answers that are under way may take when it stops: a little longer than any answer may."""


class CallbackServer(uvicorn.Server):
    """uvicorn, set up to face the internet: nothing about a request is logged, and no connection lasts."""

    def __init__(self, app: ASGIApp, *, on_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",  # it warns of each junk request, and a flood would fill the disk
                access_log=False,  # paths hold tokens
                headers=[("Connection", "close")],
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MOST_ANSWERED,
                timeout_keep_alive=1,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends it. uvicorn's own would raise the signal once more after the clean end.

        SIGTERM would then end the process before it has sent its events, and a clean stop would look like a crash.
        """
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


class _Connection(H11Protocol):
    """One connection, with an end. uvicorn itself waits for ever for the head of a request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.access_log = False
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._end = self.loop.call_later(CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)
