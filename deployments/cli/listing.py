"""`sora list`: what the ledger holds."""

import asyncio
import json
from contextlib import aclosing
from typing import Annotated

import typer

from blocks import VideoArchive
from deployments.cli.console import err, print_table
from flows.record.generation import Generation
from flows.record.ledger import Ledger
from flows.record.wording import counted
from flows.resources import load_block


def list_(
    open_: Annotated[bool, typer.Option("--open", help="Only what is not finished. Reads nothing else.")] = False,
    unconfirmed: Annotated[bool, typer.Option("--unconfirmed", help="Only what a person has to resolve.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed or was refused.")] = False,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only what has this tag. Repeatable: all of them.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Without other options: how many of the newest.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="All there are. Of 100,000, that takes minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as a JSON list instead.")] = False,
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """List the newest generations of the ledger: key, state, task, when claimed, prompt.

    `--failed`, `--tag` and `--all` read every record; `--open` and `--unconfirmed` those that are not finished.
    """
    newest = None if open_ or unconfirmed or failed or tag or everything else limit
    found = asyncio.run(_records(open_only=open_ or unconfirmed, newest=newest, archive=archive))
    wanted = {"unconfirmed"} if unconfirmed else {"failed", "rejected"} if failed else None
    tags = set(tag or [])
    shown = [
        item for item in found if (wanted is None or item.state.value in wanted) and tags <= set(item.request.tags)
    ]
    shown.sort(key=lambda item: item.attempt.claimed_at)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in shown], indent=2))
        return
    rows = [
        [
            item.key,
            item.state.value,
            item.task_id or "-",
            f"{item.attempt.claimed_at:%Y-%m-%d %H:%M}",
            " ".join(item.request.prompt[:60].split()),
        ]
        for item in shown
    ]
    if shown:
        print_table(("key", "state", "task", "claimed (UTC)", "prompt"), rows, flexible="prompt")
    more = " There may be more: --limit N, or --all." if newest is not None and len(shown) >= newest else ""
    err.print(f"{counted(len(shown), 'generation')}.{more}")


async def _records(*, open_only: bool, newest: int | None, archive: str) -> list[Generation]:
    async with aclosing((await load_block(VideoArchive, archive)).store()) as store:
        ledger = Ledger(store, patience_seconds=5)
        if newest is not None:
            return await ledger.newest(newest)
        keys = await (ledger.open_keys() if open_only else ledger.keys())
        entries = await ledger.read_all(keys)
    return [entry.generation for entry in entries if entry is not None]
