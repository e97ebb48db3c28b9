"""What the command line prints, and where."""

import re
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

PIPED_WIDTH: Final = 240
"""Columns where the output is no terminal: wide enough that no line of a table is broken in a file."""


_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that a terminal obeys, and those that turn the direction of writing; but no line feed and no tab."""


def harmless(text: str) -> str:
    """A text from outside without what a terminal obeys."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


class _Console(Console):
    """A console that obeys nothing in a text from outside: a prompt or a provider's words may hold escape sequences."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich has it; every string that is printed, also in a table, comes through here."""
        return super().render_str(harmless(text), **options)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # No emoji codes: ":fire:" in a prompt stays what was written.
    return _Console(stderr=stderr, highlight=False, emoji=False, width=None if stream.isatty() else PIPED_WIDTH)


out: Final = _console(stderr=False)
"""Results."""
err: Final = _console(stderr=True)
"""Progress and errors, so that results can be piped."""


def one_line(text: str) -> str:
    """A text from outside as it may stand in a line of ours: no markup, no lines of its own."""
    return escape(" ".join(text.split()))


def table(*columns: str) -> Table:
    """An unadorned table."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def shown_path(path: Path) -> str:
    """A path as short as it can be typed from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
