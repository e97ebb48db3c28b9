"""The web server of what faces people and the provider: uvicorn, with nothing about a request in its log."""

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from deployments.connection import SetupError


class QuietServer(uvicorn.Server):
    """uvicorn that logs no request, whose path may hold a token, and that ends cleanly.

    Args:
        app: what it serves.
        on_started: called once it listens.
        options: of `uvicorn.Config`, beyond those that are the same for every server.
    """

    def __init__(self, app: ASGIApp, *, on_started: Callable[[], None] = lambda: None, **options: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",  # it warns of each junk request, and a flood would fill the disk
                access_log=False,
                server_header=False,
                proxy_headers=False,
                **options,
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


def listen(host: str, port: int, who: str) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        SetupError: the address cannot be had; `who` is its subject ("The gallery").
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise SetupError(f"{who} cannot listen on {host}, port {port} ({error}). Choose another.") from error
