"""`sora doctor`: what is missing or wrong, before a video is paid for."""

import asyncio
import json
from typing import Annotated, Final

import typer
from rich.markup import escape

from deployments.cli.console import err, out
from deployments.setup.surroundings import check_server
from flows.checks import Finding, check_setup
from flows.record.wording import counted

MARKS: Final = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead: name, outcome, detail.")] = False,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block.")] = "default",
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """Check everything that a video needs, and say what to do about what is missing. It pays nothing.

    The Prefect server, a worker with its code, and what is deployed; the blocks; the archive, with a race of 32
    writers, an upload of 5 MiB and its lifecycle rules; the clock against the store's; the API and its key; the ways
    that results and pictures take; the balance, and what it buys; the callback address; the disk.

    All of it is tried from this machine. For a worker elsewhere, run the deployment `check-setup` there.

    Exit code 1 where something would keep a video from being made or archived.
    """
    findings = asyncio.run(_all(api, archive))
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        for finding in findings:
            out.print(f"{MARKS[finding.outcome]} {escape(finding.name):22} {escape(finding.detail)}", soft_wrap=True)
    wrong = sum(finding.outcome == "error" for finding in findings)
    if wrong:
        err.print(f"{counted(wrong, 'thing')} to put right.")
        raise typer.Exit(1)


async def _all(api: str, archive: str) -> list[Finding]:
    server = await check_server()
    if server[0].outcome == "error":  # the blocks are there
        return server
    return [*server, *await check_setup(api, archive)]
