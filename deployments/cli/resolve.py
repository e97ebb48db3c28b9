"""`sora resolve` and `sora collect`: finish unclear, failed and open generations."""

import asyncio
import sys
from typing import Annotated

import typer
from rich.markup import escape

from deployments.cli.console import ApiName, ArchiveName, Verbose, err, print_table
from deployments.cli.generate import run_and_show
from deployments.cli.records import print_record
from deployments.connection import flush
from flows.collect_videos import Collected, collect_videos
from flows.record.generation import Generation, State
from flows.record.keys import check_key
from flows.resolution import ResolutionError, allow_resubmission, load_generation, resolve_as_task
from flows.resources import Resources, command_options
from flows.wording import counted, utc


def resolve(
    key: Annotated[str, typer.Argument(help="The generation's key.")],
    task_id: Annotated[
        str | None, typer.Option("--task-id", help="APIXO accepted it as this task: continue with it. Pays nothing.")
    ] = None,
    resubmit: Annotated[
        bool, typer.Option("--resubmit", help="APIXO did not accept it, or it failed: submit once more. Pays.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation before paying.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="--no-wait does not wait for the video.")] = True,
    api: ApiName = "default",
    archive: ArchiveName = "default",
    verbose: Verbose = False,
) -> None:
    """Resolve a generation whose payment is unclear, or that failed, and finish it.

    A generation is `unconfirmed` if the request was sent and no clear answer came. It is never resubmitted
    automatically, since it may be paid. On a terminal, `sora resolve KEY` shows what is known and asks. Otherwise, look
    in your APIXO account for a task of that time:

    * there is one: `sora resolve KEY --task-id TASK_ID`
    * there is none: `sora resolve KEY --resubmit`

    A task that was given up, after days without an end or a result, is resumed with its own id.
    """
    if task_id is not None and resubmit:
        raise typer.BadParameter("give either --task-id TASK_ID or --resubmit, not both")
    interactive = task_id is None and not resubmit
    if interactive and not sys.stdin.isatty():
        raise typer.BadParameter("give either --task-id TASK_ID or --resubmit; `sora show KEY` shows what is known")
    seen = asyncio.run(_load(key, api=api, archive=archive))
    if interactive or resubmit:
        print_record(seen, command_options(api, archive))
    if interactive:
        task_id = ask(seen)
    elif resubmit and not yes:
        typer.confirm(
            f"This may pay for {key} once more. Are you sure that APIXO has no task for it?", abort=True, err=True
        )
    if seen.state is State.CLAIMED:
        owner = seen.attempt.claimed_by
        err.print(
            f"It may still be in progress: process {owner.pid} on {escape(owner.host)} has up to "
            f"{seen.attempt.lease_seconds:.0f} s to get an answer.",
            soft_wrap=True,
        )
    generation = asyncio.run(_resolve(seen, task_id, api=api, archive=archive))
    run_and_show(generation.request, key, wait=wait, api=api, archive=archive)


def ask(seen: Generation) -> str | None:
    """Prompts the user for what became of a generation. Returns its task; None: submit it once more."""
    at = utc(seen.attempt.claimed_at)
    if seen.state in (State.UNCONFIRMED, State.CLAIMED):
        err.print(f"\nThe request was sent at {at}, and no clear answer came. Look for it in your APIXO account.")
        if typer.confirm("Is there a task with that time and prompt?", err=True):
            return str(typer.prompt("Its task id", err=True)).strip()
        typer.confirm("Then it was not accepted. Submit it once more, and pay for it?", abort=True, err=True)
    elif seen.state is State.FAILED and not seen.permanently_failed:
        if seen.given_up:
            err.print(f"\nTask {seen.task_id} was given up. Look it up in your APIXO account.")
            if typer.confirm("Does it have a result, or is it in progress?", err=True):
                return seen.task_id
        typer.confirm("\nIt failed. Submit it once more, and pay for another try?", abort=True, err=True)
    else:
        done = "The same request cannot succeed: change it, and use a new key."
        text = done if seen.state is State.FAILED else f"{seen.key} is {seen.state}: there is nothing to resolve."
        raise ResolutionError(text, key=seen.key)
    return None


async def _load(key: str, *, api: str, archive: str) -> Generation:
    async with Resources.of_blocks(api, archive) as resources:
        return await load_generation(check_key(key), resources.ledger)


async def _resolve(seen: Generation, task_id: str | None, *, api: str, archive: str) -> Generation:
    async with Resources.of_blocks(api, archive) as resources:
        if task_id is not None:
            return await resolve_as_task(seen, task_id, resources)
        return await allow_resubmission(seen, resources)


def collect(
    keys: Annotated[list[str] | None, typer.Argument(help="The generations' keys. Default: all that are open.")] = None,
    api: ApiName = "default",
    archive: ArchiveName = "default",
    verbose: Verbose = False,
) -> None:
    """Process everything open: poll once, archive what is finished, list manual decisions. Never submits."""
    try:
        found: list[Collected] = asyncio.run(collect_videos(keys=keys or None, api=api, archive=archive))
    finally:
        flush()
    rows = [
        [item.key, f"{item.what}, expiring" if item.expiring else item.what, item.task_id or "-", item.note]
        for item in found
    ]
    if found:
        print_table(("key", "", "task", ""), rows)
    err.print(f"{counted(len(found), 'generation')} processed.")
