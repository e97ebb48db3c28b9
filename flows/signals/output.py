"""Makes standard output and error safe, so that a closed pipe or a full disk never stops the work.

A killed worker leaves its children running with pipes that no process reads, and so does `sora … | head -1`. Prefect's
console handler prints with rich, which raises `SystemExit` for a closed pipe, in any thread or coroutine that logs.
That would end a paid call between the provider's answer and its record.
"""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console


class _SafeStream:
    """A text stream whose `write` and `flush` never fail. What cannot be written is dropped.

    Args:
        stream: the stream to which everything is passed on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            self.write(text.encode("ascii", "backslashreplace").decode())
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._drop(error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        # A closed pipe stays closed. Without this, writing the rest of the buffer would fail again when the interpreter
        # exits, which prints an error and makes the exit code 120. A full disk, however, may have space again later.
        if isinstance(error, BrokenPipeError):
            with suppress(OSError, ValueError):  # no file behind this stream
                number = self._stream.fileno()
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)


_CONTROLS: Final = dict.fromkeys(map(ord, "\a\b\v\f\r"))
"""The control characters that rich removes too."""


class _PlainConsole:
    """Stands in for a rich console in Prefect's handler if the stream is not a terminal: prints the lines unchanged."""

    is_terminal = False

    def __init__(self, stream: TextIO) -> None:
        self.file = stream

    def print(self, message: str, **_: Any) -> None:
        self.file.write(message.translate(_CONTROLS) + "\n")
        self.file.flush()


def protect_standard_streams() -> None:
    """Makes `sys.stdout` and `sys.stderr` of this process safe. The project's own programs call it first.

    A stream that was closed before the process started (`>&-`) is None in Python. It is opened on the null device, so
    that no other file or socket gets its number.
    """
    sys.stdout, sys.stderr = _safe(sys.stdout), _safe(sys.stderr)


def protect_log_handlers() -> None:
    """Makes Prefect's console handlers safe. For flows, which may run in any process.

    Prefect makes its handlers once, when it is imported; setting up logging again changes only their levels. A repeated
    call covers handlers that were added since. No other handler is changed: those of the standard library catch errors
    while they write.

    Without a terminal, as under a worker, lines are written without rich, which takes a millisecond per line to find
    nothing to color.
    """
    from prefect.logging.handlers import PrefectConsoleHandler  # noqa: PLC0415 - takes a second; `sora --help` needs none
    from prefect.settings import PREFECT_LOGGING_MARKUP  # noqa: PLC0415 - likewise

    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):  # placeholders have none
            if isinstance(handler, PrefectConsoleHandler):
                handler.stream = handler.console.file = _safe(cast("TextIO", handler.console.file))
                if not (handler.console.is_terminal or PREFECT_LOGGING_MARKUP.value()):
                    handler.console = cast("Console", _PlainConsole(handler.stream))


def _safe(stream: TextIO | None) -> TextIO:
    if stream is None:
        stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - open as long as this process
    return stream if isinstance(stream, _SafeStream) else cast("TextIO", _SafeStream(stream))
