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

    The API key goes into the Secret block `apixo-api-key`. It is never a parameter of a flow.
    """
    info = connect(local.LOCAL_DIR)
    environ = {**(info.load_environment() if info else {}), **os.environ}
    from deployments.setup import save_blocks  # noqa: PLC0415 - imports Prefect

    for saved in asyncio.run(save_blocks(environ, name=name, ask=_ask if sys.stdin.isatty() else None)):
        out.print(f"{saved.slug:14} {saved.name:22} {saved.outcome}")


def _ask(variable: str, description: str, secret: bool) -> str:
    err.print(f"[dim]{variable}[/]  {description}")
    return str(typer.prompt("", prompt_suffix="> ", hide_input=secret, err=True))
