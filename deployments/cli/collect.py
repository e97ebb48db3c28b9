"""`sora collect`: archives what is open."""

import asyncio
from typing import Annotated

import typer
from rich.markup import escape

from deployments.cli.console import err, out, table
from deployments.connection import flush
from flows.collect_videos import Collected, collect_videos


def collect(
    keys: Annotated[list[str] | None, typer.Argument(help="The generations; none means all that are open.")] = None,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block.")] = "default",
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of the run.")] = False,
) -> None:
    """Process everything open: ask once, archive what is finished, say what needs a person. Never submits."""
    del verbose  # read before Prefect was imported

    async def run() -> list[Collected]:
        found: list[Collected] = await collect_videos(keys=keys or None, api=api, archive=archive)
        return found

    try:
        found = asyncio.run(run())
    finally:
        flush()
    rows = table("key", "", "task", "")
    for item in found:
        what = f"{item.what}, expiring" if item.expiring else item.what
        rows.add_row(escape(item.key), what, escape(item.task_id or "-"), escape(item.note))
    if found:
        out.print(rows)
    err.print(f"{len(found)} generation(s) processed.")
