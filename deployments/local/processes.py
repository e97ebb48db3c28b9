"""Child processes of the local stack: started with a log, waited for, and never left behind.

This file is also a program: every child runs under a small guard, `python processes.py FD command…`, see `_guard`.
It therefore imports the standard library only.
"""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Self, TypeVar

LOOPBACK = "127.0.0.1"

GRACE_SECONDS = 10.0
"""How long a child may take to end by itself. Measured: a Prefect server needs 0.2 s, with subscribers 1.2 s."""

ORPHAN_GRACE_SECONDS = 5.0
"""The same for a child whose parent was killed: nobody waits for it, so it is shorter."""

_LOG_TAIL_LINES = 25

# The words of uvicorn and Go ("address already in use"), MinIO ("Specified port is already in use") and Prefect.
_PORT_TAKEN = re.compile(r"address (?:is )?already in use|port\b[^\n]*\bin use|EADDRINUSE", re.IGNORECASE)

T = TypeVar("T")


class ProcessError(RuntimeError):
    """A child process could not be brought up. The message says what to do next."""


class PortTakenError(ProcessError):
    """The port that was asked for already has a listener."""


class ProcessDiedError(ProcessError):
    """The child ended before it was ready. `exit_code` is its code, or 128 + the signal that ended it."""

    def __init__(self, message: str, *, exit_code: int | None = None, log_tail: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.log_tail = log_tail

    @property
    def port_was_taken(self) -> bool:
        """Whether its last words say that another program listens on its port."""
        return _PORT_TAKEN.search(self.log_tail) is not None


class ProcessNotReadyError(ProcessError):
    """The child lives, but was not ready in time."""


class LauncherClosedError(ProcessError):
    """The launcher was closed: what is being started is no longer wanted."""


class ManagedProcess:
    """A running command in a session and process group of its own, its output in a log file.

    It starts when the object is made. Ctrl-C in the terminal reaches only the parent, which then stops its children in
    its own order; and the whole group ends when the parent dies, even by SIGKILL (see `_guard`).

    Args:
        command: program and arguments; no shell is involved.
        name: what messages call it.
        log_path: receives stdout and stderr, mode 0600. The log of the start before is kept beside it, ending in `.1`.
        environment: the whole environment of the child; by default this process's.
        cwd: its working folder; by default this process's.
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
        self._lock = threading.RLock()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            log_path.replace(log_path.with_name(log_path.name + ".1"))
        read_end, self._lifeline = os.pipe()  # neither is inherited by other children (PEP 446)
        log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        guard = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(read_end), *command]
        try:
            self._popen = subprocess.Popen(  # noqa: S603 - the commands are this project's own
                guard,
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
        """The id of the process group, which is its guard's; the command is the guard's child."""
        return self._popen.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; 128 + the signal when one ended the command."""
        with self._lock:
            already_swept = self._popen.returncode is not None
            if self._popen.poll() is not None and not already_swept:
                self._sweep()
            return self._popen.returncode

    def is_alive(self) -> bool:
        """Whether the command still runs."""
        return self.exit_code is None

    def log_tail(self, lines: int = _LOG_TAIL_LINES) -> str:
        """The last lines of its log."""
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> int:
        """Asks the whole group to end (SIGTERM), kills what is left after `grace_seconds`. May be called again.

        Returns:
            Its exit code, see `exit_code`.
        """
        if self.is_alive():
            self._signal_group(signal.SIGTERM)
            self._wait(grace_seconds)
        return self.kill()

    def kill(self) -> int:
        """Ends the whole group at once (SIGKILL) and reaps it. Callable again, and while another thread stops it."""
        if self.is_alive():
            self._signal_group(signal.SIGKILL)
            while self._wait(60.0) is None:  # pragma: no cover - only a child stuck inside the kernel gets here
                self._signal_group(signal.SIGKILL)
        code = self.exit_code
        return code if code is not None else -signal.SIGKILL

    def _wait(self, seconds: float) -> int | None:
        # By polling: another thread may wait for, kill or look at the same child meanwhile.
        deadline = time.monotonic() + seconds
        pause = 0.005
        while (code := self.exit_code) is None and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
        return code

    def _sweep(self) -> None:
        # Right after the reaping, never later: the group's id may belong to a stranger one day.
        self._signal_group(signal.SIGKILL)
        os.close(self._lifeline)

    def _signal_group(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self._popen.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Launcher:
    """Starts processes and remembers them, so that its owner can end all of them, also from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._started: list[ManagedProcess] = []

    def start(
        self,
        command: Sequence[str],
        *,
        name: str,
        log_path: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> ManagedProcess:
        """Starts a `ManagedProcess` with these arguments.

        Raises:
            LauncherClosedError: it was closed.
        """
        with self._lock:
            self._check_open()
            process = ManagedProcess(command, name=name, log_path=log_path, environment=environment, cwd=cwd)
            self._started.append(process)
            return process

    def check_open(self) -> None:
        """Raises `LauncherClosedError` when it was closed: long waits that start nothing ask it now and then."""
        with self._lock:
            self._check_open()

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Closes it and stops what it started, the newest first."""
        for process in self._close():
            process.stop(grace_seconds)

    def kill(self) -> None:
        """Closes it and kills what it started."""
        for process in self._close():
            process.kill()

    def _close(self) -> list[ManagedProcess]:
        with self._lock:
            self._closed = True
            return self._started[::-1]

    def _check_open(self) -> None:
        if self._closed:
            raise LauncherClosedError("not started: the local stack is being stopped")


def wait_until_ready(
    check: Callable[[], bool], *, process: ManagedProcess, timeout_seconds: float, what: str, poll_seconds: float = 0.1
) -> None:
    """Waits until `check` says yes. `what` names the service in the errors.

    Raises:
        ProcessDiedError: the process ended; at once, with the end of its log.
        ProcessNotReadyError: it lives, and `timeout_seconds` have passed.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        # Asked before and after: a stranger on the same port may answer for a child that is already dead.
        if process.is_alive() and check() and process.is_alive():
            return
        if (exit_code := process.exit_code) is not None:
            tail = process.log_tail()
            message = f"{what} ended while starting (exit code {exit_code}). Its log, {process.log_path}, ends with:\n"
            raise ProcessDiedError(message + (tail or "(nothing)"), exit_code=exit_code, log_tail=tail)
        if time.monotonic() >= deadline:
            raise ProcessNotReadyError(
                f"{what} runs (process {process.pid}) but was not ready after {timeout_seconds:.0f} s. Look into "
                f"{process.log_path}; on a slow or busy machine, try again. It ends with:\n{process.log_tail()}"
            )
        time.sleep(poll_seconds)


def http_get(port: int, path: str, *, timeout_seconds: float = 2.0) -> tuple[int, bytes] | None:
    """Status and body of a GET on loopback, or None without an answer. Goes round any proxy of the environment."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port() -> int:
    """A port on loopback where nobody listens now. Somebody may a moment later: see `start_on_free_port`."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of loopback now."""
    with socket.socket() as probe:
        # As servers do: without it, the closed connections of the server before would count as taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return not port_answers(port)  # macOS lets a second socket bind beside one that listens on all addresses


def port_answers(port: int) -> bool:
    """Whether somebody accepts connections on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def require_free(port: int, what: str) -> int:
    """The port itself when it is free.

    Raises:
        PortTakenError: somebody listens there.
    """
    if not port_is_free(port):
        raise PortTakenError(
            f"{what} cannot use port {port}: another program listens there. Stop it or choose another."
        )
    return port


def start_on_free_port(start: Callable[[int], T], *, preferred: int = 0) -> T:
    """Calls `start` with the preferred port when that is free, else with any free one.

    Between the choice and the child's bind another program may take the port. `start` then raises a `ProcessDiedError`
    that says so or a `PortTakenError`, and is called once more with another port.
    """
    try:
        return start(preferred if preferred and port_is_free(preferred) else free_port())
    except ProcessDiedError as error:
        if not error.port_was_taken:
            raise
    except PortTakenError:
        pass
    return start(free_port())


def _guard(lifeline: int, command: Sequence[str]) -> int:
    """Runs the command, and ends its process group when the parent is gone.

    `lifeline` is the read end of a pipe whose write end only the parent holds: it reads as closed however the parent
    ended. Linux's PR_SET_PDEATHSIG looks simpler and is wrong here: it fires when the *thread* that started the child
    ends (services start in threads), reaches no grandchildren, needs preexec_fn, and does not exist on macOS.
    """
    asked_to_end: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked_to_end.append(number)

    # A handler, not SIG_IGN: the command would inherit that. It gets the group's signals itself and decides.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    try:
        child = subprocess.Popen(command)  # noqa: S603
    except OSError as error:
        print(f"{command[0]} could not be started: {error}", file=sys.stderr, flush=True)
        return 127
    if asked_to_end:  # it came before the command existed
        child.terminate()
    orphaned = threading.Event()

    def end_with_the_parent() -> None:
        os.read(lifeline, 1)
        orphaned.set()
        os.killpg(0, signal.SIGTERM)
        time.sleep(ORPHAN_GRACE_SECONDS)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    code = child.wait()
    if orphaned.is_set():
        os.killpg(0, signal.SIGKILL)  # grandchildren, and this guard
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # No clean-up of the interpreter: it would wait for nothing useful, and the thread above blocks in a read.
    os._exit(_guard(int(sys.argv[1]), sys.argv[2:]))
