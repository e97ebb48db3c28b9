"""Runs the gallery: uvicorn, with nothing about a request in its log."""

import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from blocks import VideoArchive
from deployments.connection import SetupError
from deployments.gallery.app import create_app
from deployments.gallery.delivery import is_loopback
from flows.resources import command_options, load_block

MOST_REQUESTS: Final = 256
"""Requests under way at the same time; further ones get 503 at once."""
STOP_SECONDS: Final = 3
"""How long answers that are under way may take when it stops."""


async def serve(
    host: str,
    port: int,
    *,
    archive: str = "default",
    redirect: bool | None = None,
    on_ready: Callable[[str, VideoArchive], None],
) -> None:
    """Runs the gallery until SIGTERM or Ctrl-C.

    Args:
        host, port: where to listen; port 0 takes a free one.
        archive: name of the block.
        redirect: see `create_app`.
        on_ready: called once it listens, with its address and the block.

    Raises:
        SetupError: others than this machine could look without a password, or the address cannot be had.
        PipelineError: the block is missing or cannot be used.
    """
    block = await load_block(VideoArchive, archive)
    check_password(host, block, archive)
    with _listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        store = block.store()
        try:
            if block.gateway_url is None and redirect is None and not is_loopback(host):
                redirect = not is_loopback(store.url.partition("://")[2].rpartition(":")[0])
            app = create_app(block, store, options=command_options("default", archive), redirect=redirect)
            await GalleryServer(app, on_started=lambda: on_ready(url, block)).serve([listener])
        finally:
            await store.aclose()


def check_password(host: str, block: VideoArchive, name: str) -> None:
    """Makes sure that only this machine can look without a password.

    Raises:
        SetupError: others could.
    """
    public = block.gateway_url is not None and not is_loopback(urlsplit(block.gateway_url).hostname)
    if block.gateway_password is None and (public or not is_loopback(host)):
        command = "sora setup" if name == "default" else f"sora setup --name {name}"
        raise SetupError(
            f"Others could see every video: the video-archive block {name!r} has no gateway_password, which is needed "
            f"beyond this machine. Set MINIO_GATEWAY_PASSWORD to 12 characters or more and run `{command}`."
        )


class GalleryServer(uvicorn.Server):
    """uvicorn without a log of addresses, some of which hold tokens."""

    def __init__(self, app: ASGIApp, *, on_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=MOST_REQUESTS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends it. uvicorn's own would raise the signal once more after the clean end."""
        del frame
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise SetupError(f"The gallery cannot listen on {host}, port {port} ({error}). Choose another.") from error
