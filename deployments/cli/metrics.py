"""`sora metrics`."""

import asyncio
from typing import Annotated

import typer
import uvicorn

from blocks import VideoArchive
from deployments.cli.console import err
from deployments.metrics import create_app
from flows.resources import load_block


def metrics(
    host: Annotated[str, typer.Option(help="Address to listen on. 0.0.0.0: all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8730,
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """Serve numbers for Prometheus, until Ctrl-C: what is open, unclear and spent, the lag, the bytes.

    One process tells of all machines, for it reads the bucket. The numbers name no key and no prompt; whoever reaches
    the port sees what is spent. Alert rules: docs/operations.md
    """
    app = create_app(asyncio.run(load_block(VideoArchive, archive)).store())
    err.print(f"Numbers for Prometheus are at http://{host}:{port}/metrics. Ctrl-C stops.")
    uvicorn.run(app, host=host, port=port, log_level="error", access_log=False, server_header=False, ws="none")
