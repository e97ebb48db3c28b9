"""The command line `sora`."""

import sys
from typing import Final

ENDS: Final = {"KeyboardInterrupt": ("Interrupted.", 130), "TerminationSignal": ("Ended by SIGTERM.", 143)}
"""What ends a command from outside: Ctrl-C, and Prefect's error for SIGTERM. By name: importing it takes a second."""


def main() -> None:
    """Runs the command line. Foreseen errors end with one clear message and code 1, Ctrl-C with 130, SIGTERM 143.

    All that takes time is imported inside, for a person may end it meanwhile too.
    """
    try:
        from flows.signals.output import protect_standard_streams  # noqa: PLC0415

        protect_standard_streams()
        from deployments.cli.app import app  # noqa: PLC0415

        app()
    except BaseException as error:
        ended = _what_ended(error)
        if ended is None and not isinstance(error, Exception):
            raise
        from deployments.cli.console import fail, foreseen  # noqa: PLC0415

        if ended is None:
            sys.exit(fail(error))  # foreseen errors become one line, others a traceback
        if foreseen(error):
            fail(error)  # it says what to do next
        told, code = ENDS[ended]
        sys.stderr.write(f"{told}\n")
        sys.exit(code)


def _what_ended(error: BaseException) -> str | None:
    """Which of `ENDS` is this error, or behind it: raised anywhere, it has pydantic or Prefect's engine fail too."""
    if isinstance(error, SystemExit):
        return None
    found: BaseException | None = error
    while found is not None and type(found).__name__ not in ENDS:
        found = found.__cause__ or found.__context__
    if found is not None:
        return type(found).__name__
    # A serializer in Rust keeps of the error that ended it the name only, in its text.
    serializing = type(error).__name__ == "PydanticSerializationError"
    return next((name for name in ENDS if serializing and f": {name}" in str(error)), None)


__all__ = ["main"]
