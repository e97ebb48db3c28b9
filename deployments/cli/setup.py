"""`sora setup`."""

import asyncio
import os
import sys
from typing import Annotated

import typer

from deployments.cli import local
from deployments.cli.console import err, out
from deployments.connection import connect


def setup(
    name: Annotated[str, typer.Option(help="Name of both blocks.")] = "default",
) -> None:
    """Save the API and archive blocks: from the environment, or by asking.

    Every field of a block can be given as an environment variable: `APIXO_<FIELD>` for the API (`APIXO_API_KEY`,
    `APIXO_BASE_URL`, `APIXO_DEADLINE_SECONDS`, …) and `MINIO_<FIELD>` for the archive (`MINIO_ENDPOINT`,
    `MINIO_ACCESS_KEY`, `MINIO_SECRET_KEY`, `MINIO_BUCKET`, …). What is missing is asked for on a terminal. A second run
    changes nothing.

    The bucket is made where it is missing. The API key goes into the Secret block `apixo-api-key`; it is never a
    parameter of a flow.
    """
    info = connect(local.LOCAL_DIR)
    environ = {**(info.load_environment() if info else {}), **os.environ}
    from blocks import VideoArchive  # noqa: PLC0415 - imports Prefect
    from deployments.setup import make_bucket, save_blocks  # noqa: PLC0415
    from flows.resources import load_block  # noqa: PLC0415

    async def run() -> None:
        for saved in await save_blocks(environ, name=name, ask=_ask if sys.stdin.isatty() else None):
            out.print(f"{saved.slug:14} {saved.name:22} {saved.outcome}")
        bucket = await make_bucket(await load_block(VideoArchive, name))
        out.print(f"{bucket.slug:14} {bucket.name:22} {bucket.outcome}")

    asyncio.run(run())


def _ask(variable: str, description: str, secret: bool) -> str:
    err.print(f"[dim]{variable}[/]  {description}")
    return str(typer.prompt("", prompt_suffix="> ", hide_input=secret, err=True))
