"""Messages for errors that end a command. Imported only after an error, since the import takes half a second."""

import sys
import traceback
from typing import Final

import httpx
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from rich.markup import escape

from apixo import SoraError
from apixo.errors import causes, describe_problem
from deployments.cli.console import err, wrong
from deployments.connection import SetupError
from deployments.local.processes import ProcessError

NOT_PREFECTS: Final = frozenset({403, 404, 407, 502, 503, 504})
"""Statuses from a proxy or another server instead of a Prefect server. (Prefect's own 404 has another type.)"""


def end(error: BaseException) -> int:
    """Prints how a command ended, by an error or a signal, and returns the exit code."""
    ended = what_ended(error)
    if ended is None:
        return fail(error)
    if foreseen(error):
        fail(error)  # its message says what to do next
    message, code = ended
    sys.stderr.write(f"{message}\n")
    return code


def what_ended(error: BaseException) -> tuple[str, int] | None:
    """The last line and exit code, if Ctrl-C, or Prefect's error for SIGTERM, is this error or one of its causes.

    A signal raises anywhere, so pydantic or Prefect's engine may wrap it in an error of its own.
    """
    ends: dict[type[BaseException], tuple[str, int]] = {KeyboardInterrupt: ("Interrupted.", 130)}
    if prefect := sys.modules.get("prefect.exceptions"):  # else it was not raised, and importing takes a second
        ends[prefect.TerminationSignal] = ("Ended by SIGTERM.", 143)
    # A serializer in Rust keeps only the name of the error that ended it, in the message.
    text = str(error) if isinstance(error, PydanticSerializationError) else ""
    for found in causes(error):
        for kind, ended in ends.items():
            if isinstance(found, kind) or f": {kind.__name__}" in text:
                return ended
    return None


def foreseen(error: BaseException) -> bool:
    """Whether the error's message says what to do next."""
    if isinstance(error, SoraError | SetupError | ProcessError | ValidationError):
        return True
    prefect = sys.modules.get("prefect.exceptions")  # as above
    return prefect is not None and isinstance(error, prefect.ParameterTypeError)


def fail(error: BaseException) -> int:
    """Prints an error for the user and returns the exit code."""
    if isinstance(error, ValidationError):
        for problem in error.errors():
            wrong(describe_problem(problem))
        return 2
    advice = _advice(error)
    if advice is None:
        traceback.print_exception(error)
    else:
        wrong(advice)
        for note in getattr(error, "__notes__", ()):
            err.print(escape(note), soft_wrap=True)
    return 1


def _advice(error: BaseException) -> str | None:
    """What to do about an error; None: unknown."""
    if foreseen(error):
        return str(error)
    if _status(error) == 401:
        return (
            "The Prefect server rejected the credentials. Set PREFECT_API_AUTH_STRING (for Prefect Cloud: "
            "PREFECT_API_KEY) to what it expects."
        )
    # Prefect raises network errors unchanged, or as the cause of a RuntimeError.
    cause = error.__cause__ if type(error) is RuntimeError and "Failed to reach API" in str(error) else error
    if isinstance(cause, httpx.InvalidURL):  # raised when Prefect's client is created
        return (
            f"Prefect's client cannot read the environment's proxies, or PREFECT_API_URL ({cause}). It does not "
            "support IPv6 networks such as ::1/128 or brackets as in [::1] in NO_PROXY: remove them. This program "
            "reaches ::1 directly without them."
        )
    if type(cause).__module__.startswith(("httpx", "httpcore")):
        return f"The Prefect server does not answer ({type(cause).__name__}). Is it up?"
    if cause is not None and _status(cause) in NOT_PREFECTS and type(cause).__module__.startswith("prefect"):
        text = str(cause).partition(" - For more information")[0]
        return (
            f"What answers at PREFECT_API_URL is not a working Prefect server: {text}. Check the URL, and that the "
            "server is up. If the environment sets a proxy, add the server to NO_PROXY."
        )
    return None


def _status(error: BaseException) -> int | None:
    """The HTTP status of the Prefect server's rejection, from this error or its causes."""
    while error.__cause__ is not None and not hasattr(error, "response"):
        error = error.__cause__
    return getattr(getattr(error, "response", None), "status_code", None)
