"""Chooses the Prefect server for a command, before Prefect is imported and reads its settings."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apixo.network import bypass_proxies, named_certificates
from deployments.local.stack_info import StackInfo


class SetupError(RuntimeError):
    """The setup is incomplete or wrong. The message says what to do."""


def setup_command(block: str) -> str:
    """The command that changes the blocks of this name."""
    return "sora setup" if block == "default" else f"sora setup --name {block}"


CLI_QUIET: Final = {
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}
"""The command line shows progress itself. The log still goes to the Prefect server."""


FLUSH_SECONDS: Final = 10.0
"""Logs and events that are not sent by then are dropped: what matters is in the ledger."""


def check_certificates() -> None:
    """Checks the environment's certificates. Prefect reads them too when it is imported, but its error names no file.

    Raises:
        SetupError: `SSL_CERT_FILE` or `SSL_CERT_DIR` names nothing usable.
    """
    try:
        named_certificates()
    except (ValueError, OSError) as error:
        raise SetupError(str(error)) from error


def set_environment(environment: dict[str, str], *, verbose: bool = False) -> None:
    """Sets this process's environment, for Prefect and for child processes.

    Raises:
        RuntimeError: Prefect is already imported and would ignore it.
    """
    chosen = environment.get("PREFECT_API_URL")
    if chosen is not None and "prefect" in sys.modules and os.environ.get("PREFECT_API_URL") != chosen:
        raise RuntimeError("the server must be chosen before Prefect is imported")
    for name, value in CLI_QUIET.items():
        if not (verbose and "CONSOLE" in name):
            os.environ.setdefault(name, value)
    os.environ.update(bypass_proxies(os.environ) | environment)


@dataclass(frozen=True)
class Connection:
    """The context of a command.

    Attributes:
        local_dir: where the local stack keeps its data and logs.
        stack: the local stack, if its server was chosen.
    """

    local_dir: Path
    stack: StackInfo | None = None


def connect(local_dir: Path, *, verbose: bool = False) -> Connection:
    """Chooses the server: `PREFECT_API_URL`, else the local stack that runs in `local_dir`, else the Prefect profile.

    Of a stack's variables, only those of its Prefect server are set: see `setup.variables` for the others.

    Raises:
        SetupError: there is no server.
    """
    is_named = bool(os.environ.get("PREFECT_API_URL"))
    stack = None if is_named else StackInfo.read(local_dir)
    known = stack.public_environment if stack else {}
    server = {name: value for name, value in known.items() if name.startswith("PREFECT_") or name == "DO_NOT_TRACK"}
    set_environment(server, verbose=verbose)
    if stack is None and not is_named:
        from prefect.settings import get_current_settings  # noqa: PLC0415 - reads the environment that was just set

        if not get_current_settings().api.url:  # an empty value counts as unset
            raise SetupError(
                "No Prefect server is configured. Run `sora up` in another terminal, or set PREFECT_API_URL (for your "
                "own server: http://HOST:4200/api)."
            )
    return Connection(local_dir, stack)


def flush() -> None:
    """Sends what Prefect has not sent yet: logs and events.

    If this process started the server, call it before the server stops. Otherwise Prefect retries for a minute.
    """
    from prefect.events.worker import EventsWorker  # noqa: PLC0415 - after the server was chosen
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=FLUSH_SECONDS, at_exit=False)
