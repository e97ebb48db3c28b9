"""The commands of `sora`: what each is for, and where it is.

Prefect takes more than a second to import and reads its settings while it is imported. So a command's module is
imported only when that command is given, after its server was chosen; `sora --help` imports none of them.
"""

import gc
import re
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

from deployments.connection import Connection, SetupError, connect
from deployments.local.stack_info import LOCAL_DIR

MARKUP: Final = "markdown"


@dataclass(frozen=True)
class Command:
    """Where a command is.

    Attributes:
        module, function: in `deployments.cli`.
        summary: the first sentence of its help.
        connects: whether it talks to a Prefect server that is already there.
    """

    module: str
    function: str
    summary: str
    connects: bool = True


COMMANDS: Final = {
    "demo": Command(
        "demo", "demo",
        "Generate three videos with the sandbox, a fake of the API on this machine: no account, no cost.",
        connects=False,
    ),
    "up": Command(
        "demo", "up",
        "Start everything, and keep it up until Ctrl-C: sandbox, MinIO, Prefect with its UI, worker, "
        "receiver, gallery.", connects=False,
    ),
    "sandbox": Command(
        "sandbox", "sandbox",
        "Start the sandbox, a fake of the APIXO Sora-2 API for trying and testing, with playable videos.",
        connects=False,
    ),
    "init": Command(
        "init", "init",
        "Write a calendar, a prefect.yaml and a README into an empty folder, to start from.", connects=False,
    ),
    "setup": Command(
        "setup", "setup", "Save the API and archive blocks, from the environment or by asking, and deploy prefect.yaml."
    ),
    "deploy": Command(
        "setup", "deploy",
        "Deploy prefect.yaml to the Prefect server: the work pool, its queues, the deployments with their triggers.",
    ),
    "doctor": Command(
        "doctor", "doctor",
        "Check everything that a video needs, and say what to do about what is missing. It pays nothing.",
    ),
    "generate": Command("generate", "generate", "Generate one video and archive it."),
    "batch": Command("batch", "batch", "Generate the videos of a content calendar."),
    "models": Command(
        "models", "models", "List the video models that the catalogue knows, or show what one of them takes.",
        connects=False,
    ),
    "list": Command(
        "listing", "list_", "List the newest generations of the ledger: key, state, task, when claimed, prompt."
    ),
    "costs": Command(
        "costs", "costs_",
        "Show what was spent in a month, by the prices at the time, and what the ceilings leave.",
    ),
    "collect": Command(
        "collect", "collect",
        "Process everything open: ask once, archive what is finished, say what needs a person. Never submits.",
    ),
    "callbacks": Command(
        "callbacks", "callbacks",
        "Receive the provider's callbacks, until Ctrl-C: videos are fetched as soon as they are done.",
    ),
    "serve": Command(
        "serve", "serve", "Serve the gallery: every video in the browser, and links to single videos that last."
    ),
    "metrics": Command(
        "metrics", "metrics",
        "Serve numbers for Prometheus, until Ctrl-C: what is open, unclear and spent, the lag, the bytes.",
    ),
    "show": Command(
        "show", "show", "Show what the ledger knows of one generation: state, every attempt, objects, problems."
    ),
    "resolve": Command(
        "resolve", "resolve", "Resolve a generation whose payment is unclear, or that failed, and finish it."
    ),
}  # fmt: skip

VERBOSE: Final = re.compile("--verbose|-[a-z]*v[a-z]*")
"""The option that shows the log, alone or among others. To be known before Prefect is imported, as the server is."""


class LazyCommand(TyperCommand):
    """A command that is imported when it is given."""

    def __init__(self, name: str, command: Command) -> None:
        super().__init__(name, help=command.summary, rich_markup_mode=MARKUP)
        self._command = command

    def load(self) -> TyperCommand:
        """The command itself."""
        made = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        module = import_module(f"deployments.cli.{self._command.module}")
        # What is imported stays. To look through it for garbage, again and again and at the end, took a third of the
        # processor of a short command.
        gc.freeze()
        gc.enable()
        made.command(self.name)(getattr(module, self._command.function))
        return cast("TyperCommand", typer.main.get_command(made))  # a group only where there are several

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Chooses the server, imports the command, and has it read its arguments."""
        local_dir: Path = parent.obj
        parent.obj, no_server = Connection(local_dir), None
        try:
            if self._command.connects and not extra.get("resilient_parsing"):  # the shell completes a word
                parent.obj = connect(local_dir, verbose=any(VERBOSE.fullmatch(arg) for arg in args))
        except SetupError as error:
            no_server = error  # wrong usage, and --help, come first
        context = self.load().make_context(info_name, args, parent=parent, **extra)
        if no_server is not None:
            raise no_server
        return context


class LazyGroup(TyperGroup):
    """All commands by their names."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order in which a person needs them."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> LazyCommand | None:
        """The command of this name; None: there is none."""
        del ctx
        return LazyCommand(cmd_name, COMMANDS[cmd_name]) if cmd_name in COMMANDS else None


app = typer.Typer(
    name="sora",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,
    help="""Generates videos with the APIXO Sora-2 API and archives them in MinIO.

One key is one video: a generation is paid once, whatever crashes, and a paid video is never lost.

**Try it, without an account:** `sora demo`

**First real video:** `sora setup`, then
`sora generate "A red kite over dunes, slow dolly in, golden hour" --key kite-01`

Commands find the Prefect server by `PREFECT_API_URL`, else by the stack that `sora up` runs in this folder, else by
your Prefect profile.
""",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sora-pipeline {version('sora-pipeline')}, Prefect {version('prefect')}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
    local_dir: Annotated[
        Path,
        typer.Option("--local-dir", envvar="SORA_LOCAL_DIR", help="Where the local stack keeps its data and logs."),
    ] = LOCAL_DIR,
) -> None:
    del show_version
    context.obj = local_dir
