"""The commands of `sora`, and the module of each.

Prefect takes more than a second to import, and reads its settings during the import. So a command's module is imported
only when that command is run, after its server was chosen; `sora --help` imports none of them.
"""

import ast
import gc
import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperCommand, TyperGroup

from deployments.connection import Connection, SetupError, check_certificates, connect
from deployments.local.stack_info import LOCAL_DIR

MARKUP: Final = "markdown"

COMMANDS: Final = {
    "demo": "demo:demo",
    "up": "demo:up",
    "sandbox": "sandbox:sandbox",
    "init": "init:init",
    "setup": "setup:setup",
    "deploy": "setup:deploy",
    "doctor": "setup:doctor",
    "generate": "generate:generate",
    "batch": "batch:batch",
    "models": "models:models",
    "list": "records:list_",
    "costs": "records:costs",
    "collect": "resolve:collect",
    "callbacks": "servers:callbacks",
    "serve": "servers:serve",
    "metrics": "servers:metrics",
    "show": "records:show",
    "resolve": "resolve:resolve",
}
"""Every command, in the order in which users need them, with its module in `deployments.cli` and its function."""

WITHOUT_SERVER: Final = frozenset({"demo", "up", "sandbox", "init", "models"})
"""Commands that do not use an existing Prefect server."""

VERBOSE: Final = re.compile("--verbose|-y*v.*")
"""The option that shows the log, alone or combined with -y. Like the server, it must be known before Prefect is
imported."""


def summary(name: str) -> str:
    """The first paragraph of a command's docstring, read without importing it."""
    module, _, function = COMMANDS[name].partition(":")
    code = ast.parse(Path(__file__).with_name(f"{module}.py").read_bytes())
    found = next(node for node in code.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(found) or "").partition("\n\n")[0].replace("\n", " ")


class LazyCommand(TyperCommand):
    """A command that is imported when it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name, help=summary(name), rich_markup_mode=MARKUP)
        self._name = name

    def load(self) -> TyperCommand:
        """The command itself."""
        made = typer.Typer(add_completion=False, rich_markup_mode=MARKUP)
        module, _, function = COMMANDS[self._name].partition(":")
        imported = import_module(f"deployments.cli.{module}")
        # Imported modules stay in memory. Repeatedly searching them for garbage took a third of the processor time of a
        # short command.
        gc.freeze()
        gc.enable()
        made.command(self._name)(getattr(imported, function))
        return cast("TyperCommand", typer.main.get_command(made))  # a group only if there are several commands

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Chooses the server, imports the command, and parses its arguments."""
        check_certificates()
        no_server = None
        try:
            if self._name not in WITHOUT_SERVER and not extra.get("resilient_parsing"):  # the shell completes a word
                parent.obj = connect(parent.obj.local_dir, verbose=any(VERBOSE.fullmatch(arg) for arg in args))
        except SetupError as error:
            no_server = error  # raised later: usage errors and --help come first
        context = self.load().make_context(info_name, args, parent=parent, **extra)
        if no_server is not None:
            raise no_server
        return context


class LazyGroup(TyperGroup):
    """All commands by their names."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of `COMMANDS`, not alphabetically."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> LazyCommand | None:
        """The command with this name; None: there is none."""
        return LazyCommand(cmd_name) if cmd_name in COMMANDS else None


app = typer.Typer(
    name="sora",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,
    help="""Generates videos with the APIXO Sora-2 API and archives them in MinIO.

One key is one video: a generation is paid for once, whatever crashes, and a paid video is never lost.

**Try it, without an account:** `sora demo`

**First real video:** `sora setup`, then
`sora generate "A red kite over dunes, slow dolly in, golden hour" --key kite-01`

Commands use the Prefect server of `PREFECT_API_URL`, else of the stack that `sora up` runs in this folder, else of
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
    context.obj = Connection(local_dir)
