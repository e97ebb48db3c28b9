"""`sora show` and `sora resolve`: what the ledger knows, and what a person can do about it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from blocks import ApixoApi, VideoArchive
from deployments.cli.console import err, one_line, out, shown_path
from deployments.cli.generate import run_and_show, summary
from deployments.connection import SetupError
from flows.record.generation import Generation
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.resolution import ResolutionError, allow_resubmission, look, resolve_as_task
from flows.resources import Resources, command_options, load_block, open_resources

LINK_SECONDS = 3600
"""How long a link made by `sora show --link` works. It is shown to a person and stored nowhere."""


def show(
    key: Annotated[str, typer.Argument(help="The generation's key.")],
    link: Annotated[bool, typer.Option("--link", help="Print an address that plays the video for an hour.")] = False,
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
    for it may be paid. Look at your APIXO account for a task of that time:

    * there is one: `sora resolve KEY --task-id TASK_ID`
    * there is none: `sora resolve KEY --resubmit`
    """
    if (task_id is None) is not resubmit:
        raise typer.BadParameter("give either --task-id TASK_ID or --resubmit; `sora show KEY` says what is known")
    del verbose  # read before Prefect was imported
    seen = asyncio.run(_look(key, api=api, archive=archive))
    if resubmit:
        _print(seen)
        if not yes:
            typer.confirm(f"This may pay for {key} once more. Is there no task of it in APIXO?", abort=True, err=True)
    generation = asyncio.run(_resolve(seen, task_id, api=api, archive=archive))
    run_and_show(generation.request, key, wait=wait, api=api, archive=archive)


async def _look(key: str, *, api: str, archive: str) -> Generation:
    async with _opened(api, archive) as resources:
        return await look(check_key(key), resources)


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
        if as_json:
            out.print_json(generation.model_dump_json())
        elif not link:
            _print(generation)
        video = generation.video
        if video is None and (link or save):
            raise ResolutionError(f"{key} is {generation.state}: there is no video to see yet.", key=key)
        if video is not None and link:
            if await store.read(video.name, max_bytes=1) is None:
                raise _gone(key, video.name, store.bucket)
            out.print(store.signed_url(video.name, seconds=LINK_SECONDS), soft_wrap=True)
        if video is not None and save is not None:
            try:
                if not await store.get_file(video.name, save):
                    raise _gone(key, video.name, store.bucket)
            except (OSError, ValueError) as error:
                raise SetupError(f"{save} cannot be written ({error}). Give --save the name of a new file.") from error
            err.print(f"Saved {shown_path(save)}, {video.size_bytes:,} bytes.")
    finally:
        await store.aclose()


def _gone(key: str, name: str, bucket: str) -> Exception:
    return ResolutionError(
        f"The ledger has {key} as archived, but {name} is not in the bucket {bucket} any more: somebody deleted it, or "
        "a retention rule did. It is not paid for again under this key.",
        key=key,
    )


def _print(generation: Generation) -> None:
    request = generation.request
    out.print(f"[bold]{escape(generation.key)}[/]  {generation.state}")
    out.print(f"  request    {escape(summary(request))}")
    if request.tags:
        out.print(f"  tags       {escape(', '.join(request.tags))}")
    out.print(f"  prompt     {one_line(request.prompt[:300])}")
    for url in request.image_urls:
        out.print(f"  image      {escape(url)}")
    for attempt in generation.attempts:
        owner = attempt.claimed_by
        out.print(
            f"  attempt {attempt.number}  {attempt.state}, {escape(attempt.model)}, task "
            f"{escape(attempt.task_id or 'unknown')}, claimed {attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC by process "
            f"{owner.pid} on {escape(owner.host)}"
        )
        if attempt.problem:
            out.print(f"             {escape(attempt.problem.kind)}: {one_line(attempt.problem.message)}")
        if attempt.note:
            out.print(f"             {one_line(attempt.note)}")
    for item in generation.objects:
        out.print(f"  {item.kind:9}  {escape(f'{item.bucket}/{item.name}')}  {item.size_bytes:,} bytes")
    for warning in generation.warnings:
        out.print(f"  [yellow]warning[/]    {one_line(warning)}")
    advice = {
        "unconfirmed": f"sora resolve {generation.key} --task-id TASK_ID, or --resubmit; see sora resolve --help",
        "submitted": "sora generate with this key and prompt, or a rerun of its run, goes on",
        "succeeded": "sora generate with this key and prompt, or a rerun of its run, fetches it",
        "archived": f"sora show {generation.key} --link",
    }.get(generation.state.value)
    if advice:
        out.print(f"  next       {escape(advice)}")
