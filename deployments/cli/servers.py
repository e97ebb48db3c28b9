"""`sora callbacks`, `sora serve` and `sora metrics`: servers that run until Ctrl-C."""

import asyncio
from typing import Annotated

import typer
from rich.markup import escape

from blocks import ApixoApi, VideoArchive
from deployments.cli.console import ApiName, ArchiveName, err, show_log, warn
from deployments.connection import flush
from deployments.gallery.app import serve as serve_gallery
from deployments.local.processes import GALLERY_PORT, LOOPBACK, RECEIVER_PORT
from deployments.metrics import serve as serve_metrics
from deployments.receiver.app import serve as serve_callbacks

Host = Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: all addresses of this machine.")]


def callbacks(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = RECEIVER_PORT,
    api: ApiName = "default",
    archive: ArchiveName = "default",
) -> None:
    """Receive the provider's callbacks, until Ctrl-C: videos are fetched as soon as they are done.

    APIXO calls `<callback_url>/apixo/<key>/<token>` when a task ends. The receiver checks the token, polls APIXO
    itself, and wakes the waiting run, or the collector. A call is only a reason to poll: nothing in it is trusted. It
    also resolves a generation whose payment was unclear, since its URL contains the key.

    * **Set it up:** `APIXO_CALLBACK_URL=https://callbacks.example.com APIXO_CALLBACK_SECRET=$(openssl rand -hex 32)
      sora setup`
    * **Reach it:** `callback_url` must lead here from the internet. This program speaks plain HTTP, so put
      something that terminates TLS in front (a reverse proxy, an ingress, a tunnel) and let it pass on `/apixo/`. Keep
      those paths out of its log: they contain tokens.
    * **Monitor it:** `GET /health` answers 200. It reads the blocks when it starts: restart it after changing one.
    * **If it is down,** no video is lost: runs and the collector poll anyway. A lost callback only costs time.
    """
    show_log()
    try:
        asyncio.run(serve_callbacks(host, port, api=api, archive=archive, on_ready=_show_receiver))
    finally:
        flush()
    err.print("Stopped.")


def _show_receiver(url: str, block: ApixoApi) -> None:
    url = escape(url)
    err.print(f"Waiting for callbacks at {url}/apixo/ (health: {url}/health). Press Ctrl-C to stop.")
    if block.callback_url:
        err.print(f"APIXO calls {escape(block.callback_url)}/apixo/…, which must lead here.")
    else:
        warn(
            "The block's callback_url is empty, so APIXO will not call. Set APIXO_CALLBACK_URL to the public URL of "
            "this receiver and run `sora setup`."
        )


def serve(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = GALLERY_PORT,
    redirect: Annotated[
        bool | None,
        typer.Option(
            "--redirect/--stream",
            help="Redirect browsers to the store for videos, or stream them. Default: depends on the URLs.",
            show_default=False,
        ),
    ] = None,
    archive: ArchiveName = "default",
) -> None:
    """Serve the gallery: every video in the browser, and permanent links to single videos.

    The bucket stays private. For each visit, the gallery checks access and redirects the browser to a URL of the store
    that works for an hour, or streams the video if browsers cannot reach the store.

    * **On this machine** it needs no configuration: open the URL that it prints. `sora up` runs it as well.
    * **For others,** set a password, a secret that signs links, and the public URL:
      `MINIO_GATEWAY_URL=https://videos.example.com MINIO_GATEWAY_SECRET=$(openssl rand -hex 32)
      MINIO_GATEWAY_PASSWORD=… sora setup`. Artifacts in Prefect then have a player and a link.
      This program speaks plain HTTP: put something that terminates TLS in front, and keep queries, which contain
      tokens, out of its log.
    * **Programs** send the password, or the token of one video, as `Authorization: Bearer …`.
    * **Monitor it:** `GET /health` answers 200. It reads the block when it starts: restart it after changing it.
    """
    show_log()
    asyncio.run(serve_gallery(host, port, archive=archive, redirect=redirect, on_ready=_show_gallery))
    err.print("Stopped.")


def _show_gallery(url: str, block: VideoArchive) -> None:
    url = escape(url)
    err.print(f"The gallery is at {url}/ (health: {url}/health). Press Ctrl-C to stop.")
    if block.gateway_url:
        err.print(f"Links point to {escape(block.gateway_url)}, which must lead here.")


def metrics(
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8730,
    archive: ArchiveName = "default",
) -> None:
    """Serve metrics for Prometheus, until Ctrl-C: what is open, unclear and spent, the lag, the bytes.

    One process covers all machines, since it reads the bucket. The metrics contain no keys or prompts; whoever reaches
    the port sees what is spent. Alert rules: docs/operations.md
    """
    asyncio.run(serve_metrics(host, port, archive=archive, on_ready=_show_metrics))
    err.print("Stopped.")


def _show_metrics(url: str) -> None:
    err.print(f"Metrics for Prometheus are at {escape(url)}/metrics. Press Ctrl-C to stop.")
