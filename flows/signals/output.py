"""Standard output and error that cannot fail, so that a closed pipe or a full disk never stops the work.

A worker that is killed leaves its children running with pipes that nobody reads, and so does `sora … | head -1`.
Prefect's console handler prints with rich, which answers a closed pipe with `SystemExit` in whatever thread or
coroutine logs: that would end a paid call between the provider's answer and its record.
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
        stream: everything but a failure is passed on to it.
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
        # A pipe that is closed stays closed. Without this, what is left in the buffer fails once more when the
        # interpreter exits, which prints an error and makes the exit code 120. A disk may have space again later.
        if isinstance(error, BrokenPipeError):
            with suppress(OSError, ValueError):  # no file behind this stream
                number = self._stream.fileno()
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)


_CONTROLS: Final = dict.fromkeys(map(ord, "\a\b\v\f\r"))
"""What rich leaves out as well."""


class _PlainConsole:
    """What Prefect's handler needs from a rich console, for a stream that is not a terminal: the lines as they are."""

    is_terminal = False

    def __init__(self, stream: TextIO) -> None:
        self.file = stream

    def print(self, message: str, **_: Any) -> None:
        self.file.write(message.translate(_CONTROLS) + "\n")
        self.file.flush()


def protect_standard_streams() -> None:
    """Makes `sys.stdout` and `sys.stderr` of this process safe. Our own programs call it first.

    A stream that was closed before the process started (`>&-`) is None in Python. It is opened on the null device, so
    that no other file or socket gets its number.
    """
    sys.stdout, sys.stderr = _safe(sys.stdout), _safe(sys.stderr)


def protect_log_handlers() -> None:
    """Makes the console handlers safe that Prefect has configured. For flows, which run in any process.

    Prefect makes its handlers once, when it is imported, and setting logging up again changes only their levels. A
    repeated call covers what was added meanwhile. No other handler is changed: those of the standard library catch
    what happens while they write.

    Without a terminal, as under a worker, lines are written without rich, which takes a millisecond for each to
    find that there is nothing to color.
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
