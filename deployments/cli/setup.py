"""`sora setup`, `sora deploy` and `sora doctor`."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from typing import Annotated, Final

import typer
from rich.markup import escape

from blocks import ApixoApi, VideoArchive
from blocks.store_errors import StoreError
from deployments.cli.console import ApiName, ArchiveName, err, out, pasteable, say, warn
from deployments.connection import Connection
from deployments.local.stack_info import StackInfo
from deployments.setup.blocks import Saved, make_bucket, save_blocks
from deployments.setup.deploy import MAIN, POOL
from deployments.setup.deploy import deploy as deploy_files
from deployments.setup.notify import notify as make_notifications
from deployments.setup.server_checks import check_server
from flows.checks import Finding, check_prices, check_setup
from flows.resources import load_block
from flows.wording import counted

MARKS: Final = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "error": "[red]✗[/]"}


def setup(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of both blocks.")] = "default",
    deploy: Annotated[
        bool, typer.Option("--deploy/--no-deploy", help="Deploy prefect.yaml. --no-deploy: blocks only.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Test the API and the archive before anything is saved.")
    ] = True,
    unset: Annotated[
        list[str] | None,
        typer.Option(help="A field to reset to its default, such as callback_url. Repeatable."),
    ] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Where to send notifications: a video failed, is unconfirmed or expires, APIXO accepts no further "
                "videos, 80 % of a budget is spent. slack:URL, discord:URL, webhook:URL or email:ADDRESS. Repeatable."
            )
        ),
    ] = None,
) -> None:
    """Save the API and archive blocks, from the environment or by asking, and deploy prefect.yaml.

    Every field of a block can be given as an environment variable: `APIXO_<FIELD>` for the API (`APIXO_API_KEY`,
    `APIXO_BASE_URL`, `APIXO_DEADLINE_SECONDS`, …) and `MINIO_<FIELD>` for the archive (`MINIO_ENDPOINT`,
    `MINIO_ACCESS_KEY`, `MINIO_SECRET_KEY`, `MINIO_BUCKET`, …). On a terminal you are asked for what is missing. A
    second run changes nothing.

    Nothing is saved before the API and the store have accepted the keys; `--no-check` saves without testing them.
    The bucket is created if it is missing. The API key goes into the Secret block `apixo-api-key`; it is never a
    parameter of a flow.

    Then the work pool `sora` and the deployments of prefect.yaml are created, or updated to this version of the code.
    A worker runs them: `prefect worker start --pool sora`

    `--notify slack` without an address uses SORA_NOTIFY_URL, which keeps the address out of the shell history. It is
    stored in a Prefect block, masked. Email goes through SendGrid (SENDGRID_API_KEY, SENDGRID_SENDER).
    """
    connection: Connection = context.obj
    environ = variables(connection.stack, os.environ)

    async def run() -> None:
        ask = _ask if sys.stdin.isatty() else None
        for saved in await save_blocks(environ, name=name, ask=ask, reset=unset or (), check=check):
            show(saved)
        try:
            show(await make_bucket(await load_block(VideoArchive, name)))
        except StoreError as error:
            if check:
                raise
            warn(f"The bucket was not checked: {error}")
        for finding in check_prices(await load_block(ApixoApi, name)):
            warn(finding.detail)
        for wanted in notify or ():
            for saved in await make_notifications(wanted, environ):
                show(saved)
        if deploy:
            await _deploy()

    asyncio.run(run())
    blocks = "" if name == "default" else f" --api {name} --archive {name}"
    if connection.stack is None and deploy:
        err.print(
            "\nNext, start a worker in another terminal: it runs what is started in the Prefect UI and on schedules"
        )
        err.print(f"  prefect worker start --pool {POOL}")
    err.print("\nNext, see what a video would cost, without paying")
    err.print(f'  sora generate "A red kite over dunes, golden hour" --key kite-01 --dry-run{blocks}', soft_wrap=True)


def deploy() -> None:
    """Deploy prefect.yaml to the Prefect server: the work pool, its queues, the deployments with their triggers.

    What is already deployed from this version of the code stays as it is. `sora setup` does this too, after the blocks.
    A worker runs the deployments: `prefect worker start --pool sora`
    """
    asyncio.run(_deploy())


def variables(stack: StackInfo | None, own: Mapping[str, str]) -> dict[str, str]:
    """The variables for the blocks: this process's, and for those that are not set or empty, the local stack's.

    If this process names another store or API, the stack's keys and settings for its own are left out.
    """
    known = stack.load_environment() if stack else {}
    given = {name: value for name, value in own.items() if value.strip()}
    for address in ("MINIO_ENDPOINT", "APIXO_BASE_URL"):
        if given.get(address, known.get(address)) != known.get(address):
            prefix = address.partition("_")[0]
            known = {name: value for name, value in known.items() if not name.startswith(f"{prefix}_")}
    return known | given


def show(saved: Saved) -> None:
    """Prints one line about a saved object."""
    out.print(f"{saved.slug:14} {escape(saved.name):22} {saved.outcome}")


async def _deploy() -> None:
    for saved in await deploy_files(MAIN):
        show(saved)


def _ask(variable: str, description: str, secret: bool) -> str:
    err.print(f"[dim]{variable}[/]  {description}")
    return str(typer.prompt("", prompt_suffix="> ", hide_input=secret, err=True))


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead: name, outcome, detail.")] = False,
    api: ApiName = "default",
    archive: ArchiveName = "default",
) -> None:
    """Check everything that a video needs, and say how to fix what is missing. Pays nothing.

    The Prefect server, a worker with its code, and what is deployed; the blocks; the archive, with a race of 32
    writers, an upload of 5 MiB and its lifecycle rules; the clock against the store's; the API and its key; the routes
    of results and images; the balance, and what it buys; the callback URL; the disk.

    Everything is tested from this machine. For a worker elsewhere, run the deployment `check-setup` there.

    Exit code 1 if something would keep a video from being generated or archived.
    """
    findings = asyncio.run(_all(api, archive))
    if as_json:
        typer.echo(json.dumps([finding.model_dump() for finding in findings], indent=2))
    else:
        for finding in findings:
            say(f"{MARKS[finding.outcome]} {escape(finding.name):22} {escape(pasteable(finding.detail))}")
    wrong = sum(finding.outcome == "error" for finding in findings)
    if wrong:
        err.print(f"{counted(wrong, 'problem')} to fix.")
        raise typer.Exit(1)


async def _all(api: str, archive: str) -> list[Finding]:
    server = await check_server()
    if server[0].outcome == "error":  # without the server, the blocks cannot be read
        return server
    return [*server, *await check_setup(api, archive)]
