"""`sora show`: what the ledger knows of one generation."""

import asyncio
import json
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from blocks import VideoArchive
from deployments.cli.console import err, one_line, out, pasteable, shown_path
from deployments.cli.generate import summary
from deployments.connection import SetupError
from flows.record.generation import Generation
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.resolution import ResolutionError
from flows.resources import load_block

LINK_SECONDS = 3600
"""How long a link made by `sora show --link` works. It is shown to a person and stored nowhere."""


def show(
    key: Annotated[str, typer.Argument(help="The generation's key.")],
    link: Annotated[
        bool,
        typer.Option(
            "--link",
            help="Print an address that plays the video: through the block's gallery URL or public URL, else one that "
            "works for an hour.",
        ),
    ] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Download the video to this file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the ledger's record as JSON.")] = False,
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """Show what the ledger knows of one generation: state, every attempt, objects, problems."""
    asyncio.run(_show(key, link=link, save=save, as_json=as_json, archive=archive))


async def _show(key: str, *, link: bool, save: Path | None, as_json: bool, archive: str) -> None:
    block = await load_block(VideoArchive, archive)
    async with aclosing(block.store()) as store:
        entry = await Ledger(store, patience_seconds=5).read(check_key(key))
        if entry is None:
            raise ResolutionError(f"The ledger has no record of {key}. Nothing was ever submitted under it.", key=key)
        generation = entry.generation
        if not (as_json or link):
            print_record(generation)
        record = generation.model_dump(mode="json")
        video = generation.video
        if video is None and (link or save):
            raise ResolutionError(f"{key} is {generation.state}: there is no video to see yet.", key=key)
        if video is not None and link:
            if await store.read(video.name, max_bytes=1) is None:
                raise _gone(key, video.name, store.bucket)
            address = block.gateway_link(key, video.name) or block.public_link(video.name)
            address = address or store.signed_url(video.name, seconds=LINK_SECONDS)
            if not as_json:
                typer.echo(address)
            record["link"] = address
        if video is not None and save is not None:
            try:
                if not await store.get_file(video.name, save):
                    raise _gone(key, video.name, store.bucket)
            except (OSError, ValueError) as error:
                raise SetupError(f"{save} cannot be written ({error}). Give --save the name of a new file.") from error
            err.print(f"Saved {shown_path(save)}, {video.size_bytes:,} bytes.")
        if as_json:
            typer.echo(json.dumps(record, indent=2))


def _gone(key: str, name: str, bucket: str) -> Exception:
    return ResolutionError(
        f"The ledger has {key} as archived, but {name} is not in the bucket {bucket} any more: somebody deleted it, or "
        "a retention rule did. It is not paid for again under this key.",
        key=key,
    )


def print_record(generation: Generation) -> None:
    """Shows a record to a person, with the next command."""
    say = partial(out.print, soft_wrap=True)  # the terminal breaks lines, and nothing that is copied
    request = generation.request
    say(f"[bold]{escape(generation.key)}[/]  {generation.state}")
    say(f"  request    {escape(summary(request))}")
    if request.tags:
        say(f"  tags       {escape(', '.join(request.tags))}")
    say(f"  prompt     {one_line(request.prompt[:300])}")
    for url in request.image_urls:
        say(f"  image      {escape(url)}")
    for attempt in generation.attempts:
        owner = attempt.claimed_by
        say(
            f"  attempt {attempt.number}  {attempt.state}, {escape(attempt.model)}, task "
            f"{escape(attempt.task_id or 'unknown')}, claimed {attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC by process "
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
    advice = {
        "unconfirmed": f"sora resolve {generation.key}",
        "failed": f"sora resolve {generation.key}" if not generation.permanently_failed else None,
        "submitted": "sora generate with this key and prompt, or a rerun of its run, goes on",
        "succeeded": "sora generate with this key and prompt, or a rerun of its run, fetches it",
        "archived": f"sora show {generation.key} --link",
    }.get(generation.state.value)
    if advice:
        say(f"  next       {escape(pasteable(advice))}")
