"""`sora init`: creates a folder to start from."""

import json
import os
import shlex
import sys
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer
from rich.markup import escape

from deployments.cli.console import as_called, err, say, shown_path
from deployments.connection import Connection, SetupError
from deployments.local.stack_info import StackInfo

README_API_URL: Final = "http://127.0.0.1:4200/api"
"""The URL of a server that was started as the README says."""
STARTER: Final = Path(__file__).resolve().parent.parent / "starter"


def init(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="An empty or new folder.")] = Path(),
) -> None:
    """Write a calendar, a prefect.yaml and a README into an empty folder, as a starting point.

    The calendar is a CSV file with three videos. prefect.yaml deploys it, with its schedule turned off. The README has
    the steps from a dry run to a video every day. Nothing is started, and nothing is paid.

    Example: `sora init spring`, then `cd spring`
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{shown_path(folder)} is not empty, so nothing was written. Use a new folder: sora init NAME")
    folder.mkdir(parents=True, exist_ok=True)
    # Absolute, since the README's commands are run in that folder.
    bin_ = "" if as_called() == "sora" else f"{shlex.quote(str(Path(sys.executable).parent))}/"
    connection: Connection = context.obj
    stack = StackInfo.read(connection.local_dir)
    local = stack.public_environment["PREFECT_API_URL"] if stack else README_API_URL
    values = {
        "server": os.environ.get("PREFECT_API_URL") or local,
        "calendar": json.dumps(str(folder / "calendar.csv"), ensure_ascii=False),  # JSON is also valid YAML
        "sora": f"{bin_}sora",
        "prefect": f"{bin_}prefect",
    }
    for path in sorted(STARTER.iterdir()):
        (folder / path.name).write_text(Template(path.read_text()).substitute(values))
        say(escape(shown_path(folder / path.name)))
    err.print(f"Next: read {escape(shown_path(folder / 'README.md'))}. It begins with a dry run, which pays nothing.")
