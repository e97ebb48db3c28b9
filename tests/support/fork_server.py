"""Forks a process for each command: the imports of `sora` take two seconds of processor, a fork takes milliseconds.

The forked process is one of its own, with its own environment, folder, standard streams, exit code and signals. It has
imported Prefect already, so it can only talk to the Prefect server that this process was started for.
As a program, `serve SOCKET` listens until its standard input ends; `run SOCKET MODULE ARGUMENT…` is what a shell or a
worker starts: it has a process forked that runs the module as `python -m` does, and stands for it until it ends.
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
"""Stands for the module of the command line, whose messages call it so."""
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
"""Of an order: arguments and environment."""
START_SECONDS: Final = 120.0
"""It imports for three seconds, and longer where others work too."""
CHECK_SECONDS: Final = 0.02


class Forked:
    """A forked command; what the tests use of `subprocess.Popen`."""

    def __init__(
        self, address: Path, module: str, arguments: list[str], environment: Mapping[str, str], folder: Path
    ) -> None:
        self.returncode: int | None = None
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        self._channel, self.pid = _forked(address, module, arguments, environment, folder, [null, its_out, its_err])
        for its_own in (null, its_out, its_err):
            os.close(its_own)
        self.stdout: IO[str] = os.fdopen(out)
        self.stderr: IO[str] = os.fdopen(err)

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
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
        """What it still has to say, once it has ended."""
        said: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name, stream: said.update({name: stream.read()}), args=item, daemon=True)
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
        return said["out"], said["err"]


class ForkServer:
    """The forking process.

    Args:
        address: where its socket goes.
        environment: with the Prefect server that all its commands talk to.
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
        """Whether a command with this environment can be forked: to Prefect, it is that of this process."""
        return _for_prefect(environment) == _for_prefect(self._environment)

    def start(
        self, arguments: list[str], environment: Mapping[str, str], folder: Path, *, module: str = SORA
    ) -> Forked:
        return Forked(self._address, module, arguments, environment, folder)

    def command(self, module: str = SORA) -> list[str]:
        """What a shell or a worker starts instead of `python -m MODULE`. It takes 40 ms."""
        return [sys.executable, "-I", "-S", __file__, "run", str(self._address), module]


def _for_prefect(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith("PREFECT_")}


def _forked(
    address: Path, module: str, arguments: list[str], environment: Mapping[str, str], folder: Path, streams: list[int]
) -> tuple[socket.socket, int]:
    """Has a process forked. Returns where its exit code will be told, and its id."""
    order = {"module": module, "arguments": arguments, "environment": dict(environment), "folder": str(folder)}
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel.connect(str(address))
    socket.send_fds(channel, [json.dumps(order).encode()], streams)
    return channel, int(channel.recv(MOST_BYTES))


def run(address: Path, module: str, arguments: list[str]) -> int:
    """Stands for a forked process: the same streams, signals that are passed on, and the same end."""
    passed_on = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)  # until somebody is there to get them
    channel, pid = _forked(address, module, arguments, os.environ, Path.cwd(), [0, 1, 2])

    def pass_on(number: int, _: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in passed_on:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, passed_on)
    for stream in range(3):  # who reads them waits for the end of the forked process alone
        os.close(stream)
    code = int(channel.recv(MOST_BYTES) or -signal.SIGKILL)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def serve(address: Path) -> tuple[str, list[str]]:
    """Forks until standard input ends. Comes back in each forked process, with its module and arguments."""
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
        for pid, asked_by in running.items():
            if asked_by.fileno() in ready:  # whoever stood for it was killed, or is not interested any more
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if listener.fileno() in ready:
            channel = listener.accept()[0]
            data, streams, _, _ = socket.recv_fds(channel, MOST_BYTES, 3)
            assert threading.active_count() == 1
            pid = os.fork()
            if pid == 0:
                order = json.loads(data)
                for its_own, stream in enumerate(streams):
                    os.dup2(stream, its_own)
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
        with contextlib.suppress(OSError):  # whoever asked for it has gone
            running[pid].send(str(os.waitstatus_to_exitcode(status)).encode())
        running.pop(pid).close()


def main() -> None:
    """Forks, and in each forked process runs what it was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in PRELOADED:
        import_module(name)
    gc.freeze()  # else each fork, looking for garbage, copies all of it: 0.4 s of processor
    module, arguments = serve(Path(sys.argv[2]))
    sys.argv = [module, *arguments]
    if module == SORA:
        import_module("deployments.cli").main()
    else:
        if module == "prefect.engine":  # as Prefect itself does before it runs a module that it has imported
            del sys.modules[module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(Path(sys.argv[2]), sys.argv[3], sys.argv[4:]))
    main()
