"""`sora setup`, `sora deploy` and `sora doctor`."""

import asyncio
import json
import os
import sys
from typing import Annotated, Final

import typer
from rich.markup import escape

from blocks import VideoArchive
from deployments.cli.console import ApiName, ArchiveName, err, out
from deployments.connection import Connection
from deployments.setup.blocks import Saved, check_blocks, make_bucket, save_blocks
from deployments.setup.deploy import MAIN, POOL, delete_examples_commands
from deployments.setup.deploy import deploy as deploy_files
from deployments.setup.notify import notify as make_notifications
from deployments.setup.surroundings import check_server
from flows.checks import Finding, check_setup
from flows.record.wording import counted
from flows.resources import load_block

MARKS: Final = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def setup(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of both blocks.")] = "default",
    deploy: Annotated[
        bool, typer.Option("--deploy/--no-deploy", help="Whether to deploy prefect.yaml. --no-deploy: blocks only.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether API and archive are tried before anything is saved.")
    ] = True,
    unset: Annotated[
        list[str] | None,
        typer.Option(help="Field that goes back to its default, such as callback_url. May be given several times."),
    ] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Where to send a word when a video failed, is unconfirmed or expires, APIXO takes no more, or 80 % of "
                "a budget are spent: slack:URL, discord:URL, webhook:URL, email:ADDRESS. May be given several times."
            )
        ),
    ] = None,
) -> None:
    """Save the API and archive blocks, from the environment or by asking, and deploy prefect.yaml.

    Every field of a block can be given as an environment variable: `APIXO_<FIELD>` for the API (`APIXO_API_KEY`,
    `APIXO_BASE_URL`, `APIXO_DEADLINE_SECONDS`, …) and `MINIO_<FIELD>` for the archive (`MINIO_ENDPOINT`,
    `MINIO_ACCESS_KEY`, `MINIO_SECRET_KEY`, `MINIO_BUCKET`, …). What is missing is asked for on a terminal. A second run
    changes nothing.

    Nothing is saved before the API has taken the key and the store the keys; `--no-check` saves without asking them.
    The bucket is made where it is missing. The API key goes into the Secret block `apixo-api-key`; it is never a
    parameter of a flow.

    Then the work pool `sora` and the deployments of prefect.yaml are made, or brought up to this version of the code.
    A worker runs them: `prefect worker start --pool sora`

    `--notify slack` without an address takes that of SORA_NOTIFY_URL, so that it is in no shell history. A block of
    Prefect keeps it, masked. E-mail goes through SendGrid (SENDGRID_API_KEY, SENDGRID_SENDER).
    """
    connection: Connection = context.obj
    environ = {**(connection.stack.load_environment() if connection.stack else {}), **os.environ}

    async def run() -> None:
        ask = _ask if sys.stdin.isatty() else None
        tried = check_blocks if check else None
        for saved in await save_blocks(environ, name=name, ask=ask, reset=unset or (), check=tried):
            show(saved)
        show(await make_bucket(await load_block(VideoArchive, name)))
        for wanted in notify or ():
            for saved in await make_notifications(wanted, environ):
                show(saved)
        if deploy:
            await _deploy(connection)

    asyncio.run(run())
    blocks = "" if name == "default" else f" --api {name} --archive {name}"
    if connection.stack is None and deploy:
        err.print(
            "\nNext, a worker, in a terminal of its own: it runs what is started in the Prefect UI and on schedules"
        )
        err.print(f"  prefect worker start --pool {POOL}")
    err.print("\nNext, see what a video would cost, and pay nothing")
    err.print(f'  sora generate "A red kite over dunes, golden hour" --key kite-01 --dry-run{blocks}', soft_wrap=True)


def deploy(context: typer.Context) -> None:
    """Deploy prefect.yaml to the Prefect server: the work pool, its queues, the deployments with their triggers.

    What is deployed already from this version of the code stays as it is. `sora setup` does this too, after the blocks.
    A worker runs the deployments: `prefect worker start --pool sora`
    """
    asyncio.run(_deploy(context.obj))


def show(saved: Saved) -> None:
    """One line for one thing that was made."""
    out.print(f"{saved.slug:14} {escape(saved.name):22} {saved.outcome}")


async def _deploy(connection: Connection) -> None:
    for saved in await deploy_files(MAIN):
        show(saved)
    if connection.stack is not None:
        return
    # How to delete what an earlier version left on a real server. A person may have made use of it.
    if commands := await delete_examples_commands():
        err.print(
            "[yellow]![/] This server has example deployments of an earlier version; their runs pay. To delete them:"
        )
        for command in commands:
            err.print(f"  {command}")


def _ask(variable: str, description: str, secret: bool) -> str:
    err.print(f"[dim]{variable}[/]  {description}")
    return str(typer.prompt("", prompt_suffix="> ", hide_input=secret, err=True))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead: name, outcome, detail.")] = False,
    api: ApiName = "default",
    archive: ArchiveName = "default",
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
