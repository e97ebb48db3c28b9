"""`sora serve`."""

import asyncio
import logging
from typing import Annotated

import typer
from rich.markup import escape

from blocks import VideoArchive
from deployments.cli.console import err
from deployments.gallery.serving import serve as serve_gallery


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8720,
    redirect: Annotated[
        bool | None,
        typer.Option(
            "--redirect/--stream",
            help="Send browsers to the store for videos, or pass the bytes on. Default: what the addresses allow.",
            show_default=False,
        ),
    ] = None,
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """Serve the gallery: every video in the browser, and links to single videos that last.

    The bucket stays private. For each visit the gallery checks who asks, and sends the browser to an address of the
    store that works for an hour, or passes the video on where browsers cannot reach the store.

    * **On this machine** it needs nothing: open the address that it prints. `sora up` runs it as well.
    * **For others** set a password, a secret that signs links, and the public address:
      `MINIO_GATEWAY_URL=https://videos.example.com MINIO_GATEWAY_SECRET=$(openssl rand -hex 32)
      MINIO_GATEWAY_PASSWORD=… sora setup`. Artifacts in Prefect then have a player and a link.
      This program speaks plain HTTP: put what ends TLS in front, and keep its log free of queries, which hold tokens.
    * **Programs** send the password, or the token of one video, as `Authorization: Bearer …`.
    * **Watch it:** `GET /health` answers 200. It reads the block when it starts: restart it when that was changed.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log = logging.getLogger("sora")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    asyncio.run(serve_gallery(host, port, archive=archive, redirect=redirect, on_ready=_show))
    err.print("Stopped.")


def _show(url: str, block: VideoArchive) -> None:
    err.print(f"The gallery is at {url}/ (health: {url}/health). Ctrl-C stops.")
    if block.gateway_url:
        err.print(f"Links lead to {escape(block.gateway_url)}, which must lead here.")
