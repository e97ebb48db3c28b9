"""Output of the command line, and options that commands share."""

import logging
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from deployments.cli.app import COMMANDS

ApiName = Annotated[str, typer.Option(help="Name of the apixo-api block.")]
ArchiveName = Annotated[str, typer.Option(help="Name of the video-archive block.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of the run.")]
"""Options that several commands have. `Verbose` is read before Prefect is imported: see `app.VERBOSE`."""

LEAST_FLEXIBLE: Final = 16
"""The minimum width in characters of a shortened column; below that, it is useless."""
PIPED_WIDTH: Final = 240
"""The width if the output is not a terminal: wide enough that table rows are not wrapped in a file."""


_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that control a terminal or change the writing direction, except for line feeds and tabs."""


def harmless(text: str) -> str:
    """An external text without terminal control characters."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


_COMMAND: Final = re.compile(
    rf"(?<![\w/.-])(?:sora(?= (?:{'|'.join(COMMANDS)})\b)|prefect(?= (?:worker|deployment|automation|event) ))"
)


class _Console(Console):
    """A console that external text cannot control: a prompt or a provider's text may contain escape sequences.

    On stderr, commands are printed so that they can be pasted into this shell.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """As in rich. Every printed string goes through here, also those in tables."""
        return super().render_str(harmless(pasteable(text) if self.stderr else text), **options)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # No emoji codes: ":fire:" in a prompt is printed as written.
    return _Console(stderr=stderr, highlight=False, emoji=False, width=None if stream.isatty() else PIPED_WIDTH)


out: Final = _console(stderr=False)
"""Results."""
err: Final = _console(stderr=True)
"""Progress and errors, so that results can be piped."""


def say(text: str) -> None:
    """Prints a line of a result, with markup. Only the terminal wraps it, so that copied text has no line breaks."""
    out.print(text, soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning, given as plain text."""
    err.print(f"[yellow]![/] {escape(text)}", soft_wrap=True)


def wrong(text: str) -> None:
    """Prints an error, given as plain text."""
    err.print(f"[red]✗[/] {escape(text)}", soft_wrap=True)


def show_log() -> None:
    """Shows the project's own log on stderr, for code outside of flow runs. It contains keys, never tokens."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log = logging.getLogger("sora")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def as_called() -> str:
    """The command to run `sora` again from the current folder: `sora`, `.venv/bin/sora`, …"""
    path = Path(sys.argv[0])
    found = shutil.which(path.name)
    if path.name != "sora" or (found and Path(found).resolve() == path.resolve()):
        return "sora"
    return shlex.quote(shown_path(path))


def pasteable(text: str) -> str:
    """This project's own text, with its commands changed so that they can be pasted into this shell."""
    command = as_called()
    if command == "sora":
        return text
    programs = {"sora": command, "prefect": shlex.quote(shown_path(Path(sys.executable).with_name("prefect")))}
    return _COMMAND.sub(lambda found: programs[found[0]], text)


def one_line(text: str) -> str:
    """An external text, safe for one line of output: without markup and line breaks."""
    return escape(" ".join(text.split()))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, flexible: str | None = None) -> None:
    """Prints rows as a table if they fit, else each row as several lines. Only the flexible column may be cut.

    Args:
        columns: the column names. The first column identifies the row.
        rows: plain text.
        flexible: the column that may be cut to the remaining width.
    """
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    over = sum(widths) + 2 * (len(columns) - 1) - out.width
    at = columns.index(flexible) if flexible else None
    if over > 0 and at is not None and widths[at] - over >= LEAST_FLEXIBLE:
        rows = [[*row[:at], _cut(row[at], widths[at] - over), *row[at + 1 :]] for row in rows]
        over = 0
    if over <= 0 or not out.is_terminal:
        made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
        for column in columns:
            made.add_column(column, overflow="fold")
        for row in rows:
            made.add_row(*map(escape, row))
        out.print(made)
        return
    indent = max(map(len, columns[1:]))
    for first, *others in rows:
        say(f"[bold]{escape(first)}[/]")
        for name, text in zip(columns[1:], others, strict=True):
            if text.strip("-"):
                say(f"  {name:{indent}}  {escape(text)}")


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def shown_path(path: Path) -> str:
    """The path, relative to the current folder if it is inside."""
    here, path = Path.cwd(), path.absolute()  # not resolved: .venv/bin/python is a link to another folder
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
