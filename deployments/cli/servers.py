"""`sora callbacks`, `sora serve` and `sora metrics`: what runs until Ctrl-C."""

import asyncio
from typing import Annotated

import typer
import uvicorn
from rich.markup import escape

from blocks import ApixoApi, VideoArchive
from deployments.cli.console import ApiName, ArchiveName, err, show_log
from deployments.connection import flush
from deployments.gallery.app import serve as serve_gallery
from deployments.local.processes import LOOPBACK
from deployments.metrics import create_app
from deployments.receiver.calls import serve as serve_callbacks
from flows.resources import load_block

Host = Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: all of this machine.")]


def callbacks(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8710,
    api: ApiName = "default",
    archive: ArchiveName = "default",
) -> None:
    """Receive the provider's callbacks, until Ctrl-C: videos are fetched as soon as they are done.

    APIXO calls `<callback_url>/apixo/<key>/<token>` when a task ends. The receiver checks the token, asks APIXO itself,
    and wakes the run that waits, or the collector. A call only says that somebody should look: nothing in it is
    believed. It also settles a generation whose payment was unclear, for its address names the generation.

    * **Set it up:** `APIXO_CALLBACK_URL=https://callbacks.example.com APIXO_CALLBACK_SECRET=$(openssl rand -hex 32)
      sora setup`
    * **Reach it:** `callback_url` must lead here from the internet. This program speaks plain HTTP, so put what ends
      TLS in front (a reverse proxy, an ingress, a tunnel) and have it pass on `/apixo/`. Keep its log free of
      those paths: they hold tokens.
    * **Watch it:** `GET /health` answers 200. It reads the blocks when it starts: restart it when one was changed.
    * **If it is down,** no video is lost: runs and the collector ask by themselves. A lost callback only costs time.
    """
    show_log()
    try:
        asyncio.run(serve_callbacks(host, port, api=api, archive=archive, on_ready=_show_receiver))
    finally:
        flush()
    err.print("Stopped.")


def _show_receiver(url: str, block: ApixoApi) -> None:
    err.print(f"Waiting for callbacks at {url}/apixo/ (health: {url}/health). Ctrl-C stops.")
    if block.callback_url:
        err.print(f"APIXO calls {escape(block.callback_url)}/apixo/…, which must lead here.")
    else:
        err.print(
            "[yellow]![/] The block's callback_url is empty, so APIXO is not asked to call. Set APIXO_CALLBACK_URL to "
            "the public address of this receiver and run `sora setup`."
        )


def serve(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8720,
    redirect: Annotated[
        bool | None,
        typer.Option(
            "--redirect/--stream",
            help="Send browsers to the store for videos, or pass the bytes on. Default: what the addresses allow.",
            show_default=False,
        ),
    ] = None,
    archive: ArchiveName = "default",
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
    show_log()
    asyncio.run(serve_gallery(host, port, archive=archive, redirect=redirect, on_ready=_show_gallery))
    err.print("Stopped.")


def _show_gallery(url: str, block: VideoArchive) -> None:
    err.print(f"The gallery is at {url}/ (health: {url}/health). Ctrl-C stops.")
    if block.gateway_url:
        err.print(f"Links lead to {escape(block.gateway_url)}, which must lead here.")


def metrics(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8730,
    archive: ArchiveName = "default",
) -> None:
    """Serve numbers for Prometheus, until Ctrl-C: what is open, unclear and spent, the lag, the bytes.

    One process tells of all machines, for it reads the bucket. The numbers name no key and no prompt; whoever reaches
    the port sees what is spent. Alert rules: docs/operations.md
    """
    app = create_app(asyncio.run(load_block(VideoArchive, archive)).store())
    err.print(f"Numbers for Prometheus are at http://{host}:{port}/metrics. Ctrl-C stops.")
    uvicorn.run(app, host=host, port=port, log_level="error", access_log=False, server_header=False, ws="none")
