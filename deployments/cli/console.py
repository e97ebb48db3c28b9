"""What the command line prints, and where."""

import re
import sys
import traceback
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

PIPED_WIDTH: Final = 240
"""Columns where no terminal tells: wide enough that no line of a table is broken in a file."""


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

FORESEEN: Final = {
    "ApixoError", "PipelineError", "StoreError", "MediaError", "ProcessError", "TransitionError", "SetupError",
    "ParameterTypeError", "ValidationError",
}  # fmt: skip
"""Names of the base classes whose messages say what to do next. By name: importing them all would take a second."""


UNAUTHORIZED: Final = 401


def one_line(text: str) -> str:
    """A text from outside as it may stand in a line of ours: no markup, no lines of its own."""
    return escape(" ".join(text.split()))


def foreseen(error: BaseException) -> bool:
    """Whether its message says what to do next."""
    return not FORESEEN.isdisjoint(cls.__name__ for cls in type(error).__mro__)


def fail(error: BaseException) -> int:
    """Prints an error for a person and returns the exit code."""
    if isinstance(error, ValidationError):
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            err.print(f"[red]✗[/] {escape(f'{where}: ' if where else '')}{escape(problem['msg'])}")
        return 2
    if foreseen(error):
        err.print(f"[red]✗[/] {escape(str(error))}", soft_wrap=True)
        return 1
    if _status(error) == UNAUTHORIZED:
        err.print(
            "[red]✗[/] The Prefect server refused the credentials. Set PREFECT_API_AUTH_STRING (for Prefect Cloud: "
            "PREFECT_API_KEY) to what it expects.",
            soft_wrap=True,
        )
        return 1
    unreachable = _unreachable(error)
    if unreachable is not None:
        err.print(f"[red]✗[/] The Prefect server does not answer ({escape(type(unreachable).__name__)}). Is it up?")
        return 1
    traceback.print_exception(error)
    return 1


def _status(error: BaseException) -> int | None:
    """The HTTP status that the Prefect server refused with, in or behind this error."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    return getattr(getattr(error, "response", None), "status_code", None)


def _unreachable(error: BaseException) -> BaseException | None:
    """The network's error in or behind this one: Prefect raises it as it is, or a RuntimeError from it."""
    cause = error.__cause__ if type(error) is RuntimeError and "Failed to reach API" in str(error) else error
    return cause if cause is not None and type(cause).__module__.startswith(("httpx", "httpcore")) else None


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
