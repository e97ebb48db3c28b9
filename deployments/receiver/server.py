"""The web server that the callback receiver runs in: with an end to everything."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.web_server import QuietServer

CONNECTION_SECONDS: Final = 30.0
"""How long a connection may last: head, body, answer and whoever reads it slowly. Each is used once."""
MOST_ANSWERED: Final = 256
"""Connections that get a real answer at the same time; further ones get 503 at once."""
MOST_CONNECTIONS: Final = 512
"""Beyond these they are cut unheard: half of the file descriptors that Linux gives a process by default."""
STOP_SECONDS: Final = 6
"""How long answers that are under way may take when it stops. The provider calls again for those that are cut."""


class CallbackServer(QuietServer):
    """The web server, set up to face the internet: no connection lasts, and too many are refused."""

    def __init__(self, app: ASGIApp, *, on_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            app,
            on_started=on_started,
            http=_Connection,
            headers=[("Connection", "close")],
            limit_concurrency=MOST_ANSWERED,
            timeout_keep_alive=1,
            timeout_graceful_shutdown=STOP_SECONDS,
        )


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
