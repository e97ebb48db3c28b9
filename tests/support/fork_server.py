"""Forks a process for each command: importing `sora` takes two seconds of processor time, forking takes milliseconds.

Each forked process has its own environment, working directory, standard streams, exit code and signals. It has already
imported Prefect, so it can only use the Prefect server that the fork server was started for.

This file is also a program. `serve SOCKET` runs the fork server until standard input ends. `run SOCKET MODULE
ARGUMENT…` is what a shell or a worker starts: it requests a forked process that runs the module as `python -m` would,
and represents that process until it ends.
"""

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO, Final, Self

ROOT: Final = Path(__file__).parents[2]
SORA: Final = "sora"
"""Used in place of the name of the command line's module, because the program's messages use this name."""
PRELOADED: Final = (
    "prefect.cli.automation",
    "prefect.cli.deploy",
    "prefect.cli.deployment",
    "prefect.cli.work_pool",
    "prefect.engine",
    "prefect.flow_engine",
    "prefect.task_engine",
    *(f"deployments.cli.{name}" for name in ("batch", "generate", "records", "resolve", "servers", "setup")),
)
MOST_BYTES: Final = 200_000
"""The maximum size of an order: arguments and environment."""
START_SECONDS: Final = 120.0
"""The imports take three seconds, and longer on a busy machine."""
CHECK_SECONDS: Final = 0.02


class Forked:
    """A forked command. It has those methods of `subprocess.Popen` that the tests use."""

    def __init__(
        self, address: Path, module: str, arguments: list[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.returncode: int | None = None
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        self._channel, self.pid = _request_fork(
            address, module, arguments, environment, folder, [null, its_out, its_err]
        )
        for descriptor in (null, its_out, its_err):
            os.close(descriptor)
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] = os.fdopen(err)

    def poll(self) -> int | None:
        """Its exit code; None if it is still running."""
        if self.returncode is None and select.select([self._channel], [], [], 0)[0]:
            self.returncode = int(self._channel.recv(MOST_BYTES))
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits until it ends. Returns its standard output and standard error."""
        output: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name, stream: output.update({name: stream.read()}), args=item, daemon=True)
            for item in (("out", self.stdout), ("err", self.stderr))
        ]
        for reader in readers:
            reader.start()
        if not select.select([self._channel], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        self.poll()
        for reader in readers:
            reader.join()
        for closing in (self.stdout, self.stderr, self._channel):
            closing.close()
        return output["out"], output["err"]


class ForkServer:
    """The forking process.

    Args:
        address: the path of its socket.
        environment: names the Prefect server that all its commands use.
    """

    def __init__(self, address: Path, environment: Mapping[str, str]) -> None:
        self._address, self._environment = address, environment

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "serve", str(self._address)],
            cwd=ROOT,
            env={**self._environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._address.exists():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(CHECK_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a command with this environment can be forked: its Prefect settings must be those of the server."""
        return _for_prefect(environment) == _for_prefect(self._environment)

    def start(
        self, arguments: list[str], environment: Mapping[str, str], folder: Path, *, module: str = SORA
    ) -> Forked:
        return Forked(self._address, module, arguments, environment, folder)

    def command(self, module: str = SORA) -> list[str]:
        """The command that a shell or a worker runs instead of `python -m MODULE`. It starts in 40 ms."""
        return [sys.executable, "-I", "-S", __file__, "run", str(self._address), module]


def _for_prefect(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PREFECT_")}


def _request_fork(
    address: Path, module: str, arguments: list[str], environment: Mapping[str, str], folder: Path, streams: list[int]
) -> tuple[socket.socket, int]:
    """Requests a forked process. Returns the socket that will receive its exit code, and its process id."""
    order = {"module": module, "arguments": arguments, "environment": dict(environment), "folder": str(folder)}
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(str(address))
    socket.send_fds(channel, [json.dumps(order).encode()], streams)
    return channel, int(channel.recv(MOST_BYTES))


def run(address: Path, module: str, arguments: list[str]) -> int:
    """Represents a forked process: it shares its streams, forwards signals to it, and ends the same way."""
    forwarded = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)  # until there is a process to forward them to
    channel, pid = _request_fork(address, module, arguments, os.environ, Path.cwd(), [0, 1, 2])

    def forward(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in forwarded:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    for stream in range(3):  # so readers wait only for the end of the forked process
        os.close(stream)
    code = int(channel.recv(MOST_BYTES) or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(address: Path) -> tuple[str, list[str]]:
    """Forks until standard input ends. Returns only in each forked process, with its module and arguments."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{address}.draft")
    listener.listen(64)
    Path(f"{address}.draft").rename(address)
    running: dict[int, socket.socket] = {}
    while True:
        watched = [0, listener.fileno(), *(channel.fileno() for channel in running.values())]
        ready = select.select(watched, [], [], CHECK_SECONDS if running else None)[0]
        if 0 in ready:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            sys.exit(0)
        for pid, requester in running.items():
            if requester.fileno() in ready:  # the requester was killed or has closed the socket
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if listener.fileno() in ready:
            channel = listener.accept()[0]
            data, streams, _, _ = socket.recv_fds(channel, MOST_BYTES, 3)
            assert threading.active_count() == 1
            pid = os.fork()
            if pid == 0:
                order = json.loads(data)
                for descriptor, stream in enumerate(streams):
                    os.dup2(stream, descriptor)
                for inherited in (
                    *streams,
                    channel.detach(),
                    listener.detach(),
                    *map(socket.socket.detach, running.values()),
                ):
                    os.close(inherited)
                os.environ.clear()
                os.environ.update(order["environment"])
                os.chdir(order["folder"])
                return str(order["module"]), list(order["arguments"])
            for stream in streams:
                os.close(stream)
            channel.send(str(pid).encode())
            running[pid] = channel
        _report_ended(running)


def _report_ended(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            break
        with contextlib.suppress(OSError):  # the requester has gone
            running[pid].send(str(os.waitstatus_to_exitcode(status)).encode())
        running.pop(pid).close()


def main() -> None:
    """Runs the fork server, and in each forked process the requested module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in PRELOADED:
        import_module(name)
    gc.freeze()  # otherwise, garbage collection in each fork would copy all memory: 0.4 s of processor time
    module, arguments = serve(Path(sys.argv[2]))
    sys.argv = [module, *arguments]
    if module == SORA:
        import_module("deployments.cli").main()
    else:
        if module == "prefect.engine":  # Prefect does the same before it runs an imported module
            del sys.modules[module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
    main()
