"""`sora list`, `sora show` and `sora costs`: show what is in the ledger."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from blocks import VideoArchive
from deployments.cli.console import ArchiveName, err, one_line, out, pasteable, print_table, say, shown_path
from deployments.connection import SetupError
from flows.record.advice import advice
from flows.record.costs import Group
from flows.record.generation import Generation
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.report_costs import HEADINGS, amounts, notes, read_costs, sentence
from flows.resolution import ResolutionError, load_generation
from flows.resources import command_options, load_block
from flows.wording import counted, utc

LINK_SECONDS: Final = 3600
"""How long a link from `sora show --link` works. It is shown to the user and stored nowhere."""


def list_(
    open_: Annotated[bool, typer.Option("--open", help="Only unfinished ones. Reads nothing else.")] = False,
    unconfirmed: Annotated[bool, typer.Option("--unconfirmed", help="Only those that need a manual decision.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that failed or were rejected.")] = False,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only those with this tag. Repeatable: with all of them.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Without other options: how many of the newest to list.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="All of them. With 100,000, that takes minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the records as a JSON list instead.")] = False,
    archive: ArchiveName = "default",
) -> None:
    """List the newest generations of the ledger: key, state, task, when claimed, prompt.

    `--failed`, `--tag` and `--all` read every record; `--open` and `--unconfirmed` only the unfinished ones.
    """
    if failed and (open_ or unconfirmed):
        raise typer.BadParameter("give --failed alone: what failed is neither open nor unconfirmed")
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
        ledger = Ledger(store, retry_timeout_seconds=5)
        if newest is not None:
            return await ledger.newest(newest)
        keys = await (ledger.open_keys() if open_only else ledger.keys())
        return list((await ledger.read_all(keys)).values())


def show(
    key: Annotated[str, typer.Argument(help="The generation's key.")],
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Print a URL that plays the video: through the block's gallery URL or public URL, else one that works "
            "for an hour.",
        ),
    ] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Download the video to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger's record as JSON.")] = False,
    archive: ArchiveName = "default",
) -> None:
    """Show what the ledger knows about one generation: state, every attempt, objects, problems."""
    asyncio.run(_show(key, link=link, save=save, as_json=as_json, archive=archive))


async def _show(key: str, *, link: bool, save: Path | None, as_json: bool, archive: str) -> None:
    block = await load_block(VideoArchive, archive)
    async with aclosing(block.store()) as store:
        generation = await load_generation(check_key(key), Ledger(store, retry_timeout_seconds=5))
        if not (as_json or link):
            print_record(generation, command_options("default", archive))
        record = generation.model_dump(mode="json")
        video = generation.video
        if video is None and (link or save):
            raise ResolutionError(f"{key} is {generation.state}: there is no video yet.", key=key)
        if video is not None and link:
            if await store.read(video.name, max_bytes=1) is None:
                raise _gone(key, video.name, store.bucket)
            video_url = block.gateway_link(key, video.name) or block.public_link(video.name)
            video_url = video_url or store.signed_url(video.name, seconds=LINK_SECONDS)
            if not as_json:
                typer.echo(video_url)
            record["link"] = video_url
        if video is not None and save is not None:
            try:
                if not await store.get_file(video.name, save):
                    raise _gone(key, video.name, store.bucket)
            except (OSError, ValueError) as error:
                raise SetupError(f"{save} cannot be written ({error}). Use another file name with --save.") from error
            err.print(f"Saved {escape(shown_path(save))}, {video.size_bytes:,} bytes.")
        if as_json:
            typer.echo(json.dumps(record, indent=2))


def _gone(key: str, name: str, bucket: str) -> Exception:
    return ResolutionError(
        f"{key} is archived according to the ledger, but {name} is no longer in the bucket {bucket}: someone or a "
        "lifecycle rule deleted it. It is not paid for again under this key.",
        key=key,
    )


def print_record(generation: Generation, options: str) -> None:
    """Prints a record, with the next command. `options` are the command's options that name the blocks."""
    request = generation.request
    say(f"[bold]{escape(generation.key)}[/]  {generation.state}")
    say(f"  request    {escape(request.summary)}")
    if request.tags:
        say(f"  tags       {escape(', '.join(request.tags))}")
    say(f"  prompt     {one_line(request.prompt[:300])}")
    for url in request.image_urls:
        say(f"  image      {escape(url)}")
    for attempt in generation.attempts:
        owner = attempt.claimed_by
        say(
            f"  attempt {attempt.number}  {attempt.state}, {escape(attempt.model)}, task "
            f"{escape(attempt.task_id or 'unknown')}, claimed {utc(attempt.claimed_at)} by process "
            f"{owner.pid} on {escape(owner.host)}"
        )
        if attempt.problem:
            say(f"             {escape(attempt.problem.kind)}: {one_line(attempt.problem.message)}")
        if attempt.note:
            say(f"             {one_line(attempt.note)}")
    for item in generation.objects:
        say(f"  {item.kind:9}  {escape(f'{item.bucket}/{item.name}')}  {item.size_bytes:,} bytes")
    for warning in generation.warnings:
        say(f"  [yellow]warning[/]    {one_line(warning)}")
    for number, step in enumerate(advice(generation, options).steps):
        say(f"  {'' if number else 'next':9}  {one_line(pasteable(step))}")


def costs(
    month: Annotated[str | None, typer.Option(help="The month, such as 2026-11 (UTC). Default: this month.")] = None,
    by: Annotated[Group, typer.Option(help="What the rows are grouped by.")] = "model",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block, for its spending limits.")] = "default",
    archive: ArchiveName = "default",
) -> None:
    """Show what was spent in a month, at the prices of that time, and what the spending limits leave.

    *archived* was paid for archived videos, *open* for videos in progress. *unclear* may have been paid: see
    `sora list --unconfirmed`. *failed* was for tasks that failed, if APIXO charges for those.
    """
    report = asyncio.run(read_costs(month, by, api=api, archive=archive))
    if as_json:
        typer.echo(json.dumps(report.model_dump(mode="json"), indent=2))
        return
    if report.rows:
        print_table((by, *HEADINGS), [(row.group, *amounts(row)) for row in (*report.rows, *report.totals)])
    for use in report.ceilings:
        out.print(sentence(use))
    for note in notes(report):
        err.print(note)
