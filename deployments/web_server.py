"""The web server for the gallery, the receiver and the metrics: uvicorn without any log of requests."""

import asyncio
import hmac
import signal
import socket
from collections.abc import Callable
from http import HTTPStatus
from types import FrameType
from typing import Any
from urllib.parse import unquote, urlsplit

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.connection import SetupError


class QuietConnection(H11Protocol):
    """A connection that does not log its requests, even if uvicorn's loggers are configured after the start."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.access_log = False


class QuietServer(uvicorn.Server):
    """A uvicorn server that ends cleanly and does not log requests, since their paths may contain tokens."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        http: type[QuietConnection] = QuietConnection,
        on_started: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=http,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",  # warnings about junk requests could fill the disk
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
        """Stops the server. uvicorn's own handler would raise the signal again after the clean end.

        SIGTERM would then end the process before it has sent its events, and a clean stop would look like a crash.
        """
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def listen(host: str, port: int, who: str) -> tuple[socket.socket, str]:
    """A listening socket and its URL to show; port 0 picks a free one.

    Raises:
        SetupError: the address is not available. Its message begins with `who`, such as "The gallery".
    """
    family, shown = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise SetupError(f"{who} cannot listen on {host}, port {port} ({error}). Choose another one.") from error
    return listener, f"http://{shown}:{listener.getsockname()[1]}"


def served_paths(public_url: str | None) -> list[str]:
    """The decoded path prefixes for a server with this public URL: its path, and none if a proxy removes it."""
    return list(dict.fromkeys([unquote(urlsplit(public_url or "").path).rstrip("/"), ""]))


async def read_body(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """The body of a request, limited in size and time.

    Raises:
        HTTPException: 413, 408; 400 if the caller hung up.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most_bytes:
        raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    except TimeoutError:
        raise HTTPException(HTTPStatus.REQUEST_TIMEOUT) from None
    except ClientDisconnect:  # the caller does not read the answer
        raise HTTPException(HTTPStatus.BAD_REQUEST) from None
    return bytes(body)


def is_same(given: str, secret: str) -> bool:
    """Whether a caller's text is the secret, compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode("utf-8", "replace"))
