"""`sora init`: a folder to start from."""

import os
import shlex
import sys
from pathlib import Path
from string import Template
from typing import Annotated, Final

import typer

from deployments.cli.console import called, err, out, shown_path
from deployments.connection import Connection, SetupError
from deployments.local.stack_info import StackInfo

NEAR: Final = "http://127.0.0.1:4200/api"
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
    # From that folder a relative path would lead elsewhere.
    bin_ = "" if called() == "sora" else f"{shlex.quote(str(Path(sys.executable).parent))}/"
    connection: Connection = context.obj
    stack = StackInfo.read(connection.local_dir)
    server = {"PREFECT_API_URL": NEAR, **(stack.public_environment if stack else {}), **os.environ}["PREFECT_API_URL"]
    values = {"server": server, "folder": folder, "sora": f"{bin_}sora", "prefect": f"{bin_}prefect"}
    for path in sorted(STARTER.iterdir()):
        (folder / path.name).write_text(Template(path.read_text()).substitute(values))
        out.print(shown_path(folder / path.name))
    err.print(f"Next: read {shown_path(folder / 'README.md')}. It begins with a dry run, which pays nothing.")
