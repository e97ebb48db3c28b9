"""`sora collect`: archives what is open."""

import asyncio
from typing import Annotated

import typer

from deployments.cli.console import err, print_table
from deployments.connection import flush
from flows.collect_videos import Collected, collect_videos
from flows.record.wording import counted


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
    rows = [
        [item.key, f"{item.what}, expiring" if item.expiring else item.what, item.task_id or "-", item.note]
        for item in found
    ]
    if found:
        print_table(("key", "", "task", ""), rows)
    err.print(f"{counted(len(found), 'generation')} processed.")
