"""Child processes of the local stack: started with a log, waited for, and never left behind."""

import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from deployments.local import guard

LOOPBACK: Final = "127.0.0.1"

SANDBOX_PORT: Final = 8700
RECEIVER_PORT: Final = 8710
GALLERY_PORT: Final = 8720
"""Where these three listen by default, in a local stack and on their own."""

GRACE_SECONDS: Final = 10.0
"""How long a child may take to exit. Measured: a Prefect server needs 0.2 s, with subscribers 1.2 s."""

FREE_PORTS: Final = range(20_000, 32_768)
"""The range for free ports. Linux and macOS use higher ports for outgoing connections, so no connection takes a chosen
port before the server binds it, which may be seconds later."""

_LOG_TAIL_LINES: Final = 25


class ProcessError(RuntimeError):
    """A child process could not be started, or exited unexpectedly. The message says what to do next."""


class ManagedProcess:
    """A running command with its own session and process group, and its output in a log file.

    It starts when the object is created. Ctrl-C in the terminal reaches only the parent, which then stops its children
    in its own order. The whole group ends when the parent dies, even by SIGKILL (see `guard.py`).

    Args:
        name: its name in messages.
        log_path: receives stdout and stderr, mode 0600. The previous log is kept next to it, ending in `.1`.
        environment: the child's complete environment. Default: this process's.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = name
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            log_path.replace(log_path.with_name(log_path.name + ".1"))
        read_end, self._lifeline = os.pipe()  # neither is inherited by other children (PEP 446)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - the commands are this project's own
                [sys.executable, "-I", "-S", guard.__file__, str(read_end), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                cwd=cwd,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)
            os.close(log)

    @property
    def pid(self) -> int:
        """The id of the guard process and of the process group; the command is the guard's child."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + the signal's number if a signal ended the command."""
        if self._popen.returncode is None and self._popen.poll() is not None:
            # Kills what the command left behind. Only right after reaping: later, the group's id may belong to another
            # process.
            self._signal_group(signal.SIGKILL)
            os.close(self._lifeline)
        return self._popen.returncode

    def is_alive(self) -> bool:
        """Whether the command is still running."""
        return self.exit_code is None

    def check(self, doing: str) -> None:
        """Raises a `ProcessError` with the end of its log if the command has exited; `doing` says when or how."""
        if not self.is_alive():
            raise ProcessError(
                f"{self.name} exited {doing} (exit code {self.exit_code}). Its log, {self.log_path}, ends with:"
                f"\n{self.log_tail() or '(nothing)'}"
            )

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of its log."""
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to the whole group, unless it is known to have ended. Never waits, for signal handlers."""
        if self._popen.returncode is None:
            self._signal_group(number)

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Stops the whole group (SIGTERM), then kills what is left. May be called again. Returns its exit code."""
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.kill()

    def kill(self) -> int:
        """Ends the whole group at once (SIGKILL) and reaps it. May be called again."""
        self.send(signal.SIGKILL)
        while (code := self.exit_code) is None:
            time.sleep(0.005)
        return code

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self._popen.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that was started and may not be ready yet.

    Attributes:
        url: its URL, `http://127.0.0.1:port`.
        console_url: its web console, if that has another URL.
        environment: the variables that other processes need to use it, including secrets.
        answers: checks whether it works.
        timeout_seconds: how long a start may take.
    """

    process: ManagedProcess
    url: str
    console_url: str | None = None
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    answers: Callable[[], bool] = field(repr=False)
    timeout_seconds: float = 60.0

    def ready(self) -> Self:
        """Waits until the server answers, and stops it if it does not.

        Raises:
            ProcessError: see `wait_until_ready`.
        """
        try:
            wait_until_ready(self.answers, process=self.process, timeout_seconds=self.timeout_seconds)
        except BaseException:
            self.process.stop()
            raise
        return self


def wait_until_ready(check: Callable[[], bool], *, process: ManagedProcess, timeout_seconds: float) -> None:
    """Waits until `check` returns true.

    Raises:
        ProcessError: the process ended, which is noticed at once, or was not ready after `timeout_seconds`. The message
            contains the end of its log.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        # Before and after: another process on the same port may answer for a child that is already dead.
        if process.is_alive() and check() and process.is_alive():
            return
        process.check("while starting")
        if time.monotonic() >= deadline:
            raise ProcessError(
                f"{process.name} is running (process {process.pid}) but was not ready after {timeout_seconds:.0f} s. "
                f"See {process.log_path}; on a slow or busy machine, try again. It ends with:\n{process.log_tail()}"
            )
        time.sleep(0.1)


def http_get(port: int, path: str, *, timeout_seconds: float = 2.0) -> tuple[int, bytes] | None:
    """Status and body of a GET on loopback, or None without an answer. Bypasses any proxy of the environment."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port(preferred: int = 0) -> int:
    """The preferred port if it is free, else a random free one from `FREE_PORTS`."""
    port = preferred or secrets.choice(FREE_PORTS)
    while not port_is_free(port):
        port = secrets.choice(FREE_PORTS)
    return port


def free_ports(count: int) -> list[int]:
    """`count` different free ports."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        # Servers set this too. Without it, closed connections of a previous server would block the port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return not port_answers(port)  # on macOS, bind succeeds although another socket listens on all addresses


def port_answers(port: int) -> bool:
    """Whether a process accepts connections on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
