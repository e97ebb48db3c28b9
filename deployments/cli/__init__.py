"""The command line `sora`."""

import atexit
import gc
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Final

INTERRUPT_AGAIN_SECONDS: Final = 0.05


def main() -> None:
    """The program `sora`: runs the command line, and exits without shutting down the interpreter."""
    code = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # the stream is closed, or its reader is gone
                stream.flush()
        os._exit(code)

    # Registered first, so it runs last. The store's client has Rust threads: one that needs the interpreter while it is
    # shutting down aborts the process.
    atexit.register(leave)
    try:
        run()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    code = 0


def run() -> None:
    """Runs the command line. Expected errors end with one clear message and code 1, Ctrl-C with 130, SIGTERM 143.

    Everything slow is imported in here, since the user may interrupt the import too.
    """
    sys.unraisablehook = _raise_again
    gc.disable()  # turned on again once the command is imported
    try:
        from flows.signals.output import protect_standard_streams  # noqa: PLC0415

        protect_standard_streams()
        from deployments.cli.app import app  # noqa: PLC0415

        app()
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        from deployments.cli.failures import end  # noqa: PLC0415

        sys.exit(end(error))


def _raise_again(unraisable: "sys.UnraisableHookArgs") -> None:
    """Makes Ctrl-C end the command even in code that cannot raise: a destructor, or a callback from Rust.

    Python would print a traceback there and continue. An exception from this hook would be lost too, so SIGINT is sent
    again a moment later.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        main_thread = threading.main_thread().ident or 0
        again = threading.Timer(INTERRUPT_AGAIN_SECONDS, signal.pthread_kill, (main_thread, signal.SIGINT))
        again.daemon = True
        again.start()
    else:
        sys.__unraisablehook__(unraisable)


__all__ = ["main", "run"]
