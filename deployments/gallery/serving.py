"""Runs the gallery."""

from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from apixo.routes import is_loopback
from blocks import VideoArchive
from deployments.connection import SetupError
from deployments.gallery.app import create_app
from deployments.web_server import QuietServer, listen
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
    with listen(host, port, "The gallery") as listener:
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        store = block.store()
        try:
            if block.gateway_url is None and redirect is None and not is_loopback(host):
                redirect = not is_loopback(store.url.partition("://")[2].rpartition(":")[0])
            app = create_app(block, store, options=command_options("default", archive), redirect=redirect)
            server = QuietServer(
                app,
                on_started=lambda: on_ready(url, block),
                limit_concurrency=MOST_REQUESTS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
            await server.serve([listener])
        finally:
            await store.aclose()


def check_password(host: str, block: VideoArchive, name: str) -> None:
    """Makes sure that only this machine can look without a password.

    Raises:
        SetupError: others could.
    """
    public = block.gateway_url is not None and not is_loopback(urlsplit(block.gateway_url).hostname or "")
    if block.gateway_password is None and (public or not is_loopback(host)):
        command = "sora setup" if name == "default" else f"sora setup --name {name}"
        raise SetupError(
            f"Others could see every video: the video-archive block {name!r} has no gateway_password, which is needed "
            f"beyond this machine. Set MINIO_GATEWAY_PASSWORD to 12 characters or more and run `{command}`."
        )
