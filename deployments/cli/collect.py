"""`sora list` and `sora collect`: what there is, and bringing home what is open."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from deployments.cli import local
from deployments.cli.console import err, one_line, out, table
from deployments.connection import connect, flush

if TYPE_CHECKING:
    from flows.collect_videos import Collected
    from flows.record.generation import Generation


def list_(
    open_: Annotated[bool, typer.Option("--open", help="Only what is not finished. Reads nothing else.")] = False,
    unconfirmed: Annotated[bool, typer.Option("--unconfirmed", help="Only what a person has to resolve.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only what failed or was refused.")] = False,
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """List the generations of the ledger: key, state, task, when it was claimed, prompt."""
    connect(local.LOCAL_DIR)
    found = asyncio.run(_records(open_only=open_ or unconfirmed, archive=archive))
    wanted = {"unconfirmed"} if unconfirmed else {"failed", "rejected"} if failed else None
    rows = table("key", "state", "task", "claimed (UTC)", "prompt")
    shown = [item for item in found if wanted is None or item.state.value in wanted]
    for item in sorted(shown, key=lambda item: item.attempt.claimed_at):
        rows.add_row(
            escape(item.key),
            item.state.value,
            escape(item.task_id or "-"),
            f"{item.attempt.claimed_at:%Y-%m-%d %H:%M}",
            one_line(item.request.prompt[:60]),
        )
    if shown:
        out.print(rows)
    err.print(f"{len(shown)} generation(s).")


def collect(
    keys: Annotated[list[str] | None, typer.Argument(help="The generations; none means all that are open.")] = None,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block.")] = "default",
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of the run.")] = False,
) -> None:
    """process everything open: ask once, archive what is finished, say what needs a person. Never submits."""
    connect(local.LOCAL_DIR, verbose=verbose)
    from flows.collect_videos import collect_videos  # noqa: PLC0415 - after the server was chosen

    async def run() -> "list[Collected]":
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


async def _records(*, open_only: bool, archive: str) -> "list[Generation]":
    from blocks import VideoArchive  # noqa: PLC0415 - after the server was chosen
    from flows.record.ledger import Ledger  # noqa: PLC0415
    from flows.resources import load_block  # noqa: PLC0415

    store = (await load_block(VideoArchive, archive)).store()
    try:
        ledger = Ledger(store, patience_seconds=5)
        keys = await (ledger.open_keys() if open_only else ledger.keys())
        entries = await ledger.read_all(keys)
    finally:
        await store.aclose()
    return [entry.generation for entry in entries if entry is not None]
