"""`sora callbacks`."""

import asyncio
import logging
from typing import Annotated

import typer
from rich.markup import escape

from blocks import ApixoApi
from deployments.cli.console import err
from deployments.connection import flush
from deployments.receiver.calls import serve


def callbacks(
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8710,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block.")] = "default",
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
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
    _show_log()
    try:
        asyncio.run(serve(host, port, api=api, archive=archive, on_ready=_show))
    finally:
        flush()
    err.print("Stopped.")


def _show(url: str, block: ApixoApi) -> None:
    err.print(f"Waiting for callbacks at {url}/apixo/ (health: {url}/health). Ctrl-C stops.")
    if block.callback_url:
        err.print(f"APIXO calls {escape(block.callback_url)}/apixo/…, which must lead here.")
    else:
        err.print(
            "[yellow]![/] The block's callback_url is empty, so APIXO is not asked to call. Set APIXO_CALLBACK_URL to "
            "the public address of this receiver and run `sora setup`."
        )


def _show_log() -> None:
    """The receiver's own log on stderr, for it runs outside of any flow run. It names keys, never tokens."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log = logging.getLogger("sora")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
