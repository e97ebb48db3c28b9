"""`sora show` and `sora resolve`: what the ledger knows, and what a person can do about it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from blocks import ApixoApi, VideoArchive
from deployments.cli.console import err, one_line, out, pasteable, shown_path
from deployments.cli.generate import run_and_show, summary
from deployments.connection import SetupError
from flows.record.generation import Generation, State
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.resolution import ResolutionError, allow_resubmission, look, resolve_as_task
from flows.resources import Resources, command_options, load_block, open_resources

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


def resolve(
    key: Annotated[str, typer.Argument(help="The generation's key.")],
    task_id: Annotated[
        str | None, typer.Option("--task-id", help="APIXO took it, as this task: go on with it. Pays nothing.")
    ] = None,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="APIXO did not take it, or it failed: submit once more. Pays.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before paying.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="--no-wait does not wait for the video.")] = True,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block.")] = "default",
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of the run.")] = False,
) -> None:
    """Resolve a generation whose payment is unclear, or that failed, and finish it.

    A generation is `unconfirmed` when the request was sent and no clear answer came. It is never sent again by itself,
    for it may be paid. On a terminal `sora resolve KEY` shows what is known and asks. Without questions, look at your
    APIXO account for a task of that time:

    * there is one: `sora resolve KEY --task-id TASK_ID`
    * there is none: `sora resolve KEY --resubmit`

    A task that was given up, after days without an end or a result, is taken up again by its own id.
    """
    if task_id is not None and resubmit:
        raise typer.BadParameter("give either --task-id TASK_ID or --resubmit, not both")
    asks = task_id is None and not resubmit
    if asks and not sys.stdin.isatty():
        raise typer.BadParameter("give either --task-id TASK_ID or --resubmit; `sora show KEY` says what is known")
    del verbose  # read before Prefect was imported
    seen = asyncio.run(_look(key, api=api, archive=archive))
    if asks or resubmit:
        _print(seen)
    if asks:
        task_id = ask(seen)
    elif resubmit and not yes:
        typer.confirm(f"This may pay for {key} once more. Is there no task of it in APIXO?", abort=True, err=True)
    generation = asyncio.run(_resolve(seen, task_id, api=api, archive=archive))
    run_and_show(generation.request, key, wait=wait, api=api, archive=archive)


def ask(seen: Generation) -> str | None:
    """Asks a person what became of a generation. The task that it is; None: it is to be submitted once more."""
    at = f"{seen.attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC"
    if seen.state in (State.UNCONFIRMED, State.CLAIMED):
        err.print(f"\nThe request was sent at {at}, and no clear answer came. Look for it in your APIXO account.")
        if typer.confirm("Is there a task of that time and prompt?", err=True):
            return str(typer.prompt("Its task id", err=True)).strip()
        typer.confirm("Then it was not taken. Submit it once more, and pay for it?", abort=True, err=True)
    elif seen.state is State.FAILED and not seen.permanently_failed:
        if seen.given_up:
            err.print(f"\nTask {seen.task_id} was given up. Look at it in your APIXO account.")
            if typer.confirm("Has it a result, or is it under way?", err=True):
                return seen.task_id
        typer.confirm("\nIt failed. Submit it once more, and pay for another try?", abort=True, err=True)
    else:
        done = "The same request cannot succeed: change it, and give it a new key."
        said = done if seen.state is State.FAILED else f"{seen.key} is {seen.state}: there is nothing to resolve."
        raise ResolutionError(said, key=seen.key)
    return None


async def _look(key: str, *, api: str, archive: str) -> Generation:
    async with _opened(api, archive) as resources:
        return await look(check_key(key), resources.ledger)


async def _resolve(seen: Generation, task_id: str | None, *, api: str, archive: str) -> Generation:
    async with _opened(api, archive) as resources:
        if task_id is not None:
            return await resolve_as_task(seen, task_id, resources)
        return await allow_resubmission(seen, resources)


@asynccontextmanager
async def _opened(api: str, archive: str) -> AsyncIterator[Resources]:
    blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    async with open_resources(*blocks, options=command_options(api, archive)) as resources:
        yield resources


async def _show(key: str, *, link: bool, save: Path | None, as_json: bool, archive: str) -> None:
    block = await load_block(VideoArchive, archive)
    store = block.store()
    try:
        entry = await Ledger(store, patience_seconds=5).read(check_key(key))
        if entry is None:
            raise ResolutionError(f"The ledger has no record of {key}. Nothing was ever submitted under it.", key=key)
        generation = entry.generation
        if not (as_json or link):
            _print(generation)
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
    finally:
        await store.aclose()


def _gone(key: str, name: str, bucket: str) -> Exception:
    return ResolutionError(
        f"The ledger has {key} as archived, but {name} is not in the bucket {bucket} any more: somebody deleted it, or "
        "a retention rule did. It is not paid for again under this key.",
        key=key,
    )


def _print(generation: Generation) -> None:
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
