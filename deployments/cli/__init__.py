"""The command line `sora`."""

import atexit
import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

INTERRUPT_AGAIN_SECONDS: Final = 0.05


def main() -> None:
    """The process `sora`: runs the command line, and exits without shutting the interpreter down."""
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(code)

    # Registered first, so it runs last. The store's client has threads in Rust: one that needs the interpreter while it
    # is shutting down aborts the process. It happened once, on a busy machine, after an error had been printed.
    atexit.register(leave)
    try:
        run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    code = 0


def run() -> None:
    """Runs the command line. Expected errors end with one clear message and code 1, Ctrl-C with 130, SIGTERM 143.

    Everything slow is imported inside, since the user may interrupt that too.
    """
    sys.unraisablehook = _raise_again
    gc.disable()  # until the command is imported
    try:
        from flows.signals.output import protect_standard_streams  # noqa: PLC0415

        protect_standard_streams()
        from deployments.cli.app import app  # noqa: PLC0415

        app()
    except BaseException as error:
        ended = _what_ended(error)
        if ended is None and not isinstance(error, Exception):
            raise
        from deployments.cli.failures import fail, foreseen  # noqa: PLC0415

        if ended is None:
            sys.exit(fail(error))  # foreseen errors become one line, others a traceback
        if foreseen(error):
            fail(error)  # it says what to do next
        message, code = ended
        sys.stderr.write(f"{message}\n")
        sys.exit(code)


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Makes Ctrl-C end the command even where nothing can be raised: in a destructor, or a callback in Rust.

    Python would print a traceback there and continue. Raised here, it would be lost as well, hence a moment later.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        main_thread = threading.main_thread().ident or 0
        again = threading.Timer(INTERRUPT_AGAIN_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


def _ends() -> Iterator[tuple[type[BaseException], str, int]]:
    """What ends a command from outside: Ctrl-C, and Prefect's error for SIGTERM."""
    yield KeyboardInterrupt, "Interrupted.", 130
    if prefect := sys.modules.get("prefect.exceptions"):  # else nobody can have raised it, and importing takes a second
        yield prefect.TerminationSignal, "Ended by SIGTERM.", 143


def _what_ended(error: BaseException) -> tuple[str, int] | None:
    """The last line and exit code, if something from outside is this error or its cause.

    Raised anywhere, it makes pydantic or Prefect's engine fail too.
    """
    if isinstance(error, SystemExit):
        return None
    core = sys.modules.get("pydantic_core")  # as above
    # A serializer in Rust keeps only the name of the error that ended it, in its text.
    serializing = core is not None and isinstance(error, core.PydanticSerializationError)
    found: BaseException | None = error
    while found is not None:
        for end, message, code in _ends():
            if isinstance(found, end) or (serializing and f": {end.__name__}" in str(error)):
                return message, code
        found = found.__cause__ or found.__context__
    return None


__all__ = ["main", "run"]
