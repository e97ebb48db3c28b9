"""The local stack: the sandbox of the API, the object store and a Prefect server, as children of this process."""

import fcntl
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self, TextIO

from apixo.network import bypass_proxies
from deployments.local.minio_build import Say
from deployments.local.processes import ProcessError, Server, free_port, wait_until_ready
from deployments.local.services import Service
from deployments.local.stack_info import ServiceInfo, StackInfo, take_lock, write_private

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_LOCK_SECONDS: Final = 1.0
"""Longer than a command holds `stack.lock` that checks whether a stack is running."""


class LocalStack:
    """The services, started together on entry and stopped in reverse order on exit, error, SIGINT, SIGTERM or SIGHUP.

    Enter it in the main thread: other threads cannot set signal handlers. However this process ends, its children end
    too (see `ManagedProcess`).

    Args:
        local_dir: the folder for data, logs, `stack.json` and `stack.lock`.
        services: started in this order. Once all are started, it waits until they are ready.

    Raises (on entry):
        ProcessError: another process runs a stack in this folder, since two would damage the data; or a service could
            not be started, and the services started before it have been stopped.
    """

    def __init__(self, local_dir: Path, *, services: Sequence[Service], say: Say = print) -> None:
        self.local_dir = local_dir.resolve()
        self.servers: dict[str, Server] = {}
        self._services = services
        self._secret_files: dict[str, str] = {}
        self._say = say
        self._lock_file: TextIO | None = None
        self._claims: list[int] = []
        self._reserved: set[int] = set()
        self._handlers: dict[signal.Signals, Any] = {}
        self._stopping = False

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a process needs to use this stack, including secrets, and nothing else."""
        merged = bypass_proxies(os.environ)
        for server in self.servers.values():
            merged |= server.environment
        return merged

    def __enter__(self) -> Self:
        self._acquire()
        try:
            self._handlers = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}
            began = time.monotonic()
            self.add(self._services)
            self._say(f"Everything is running, after {time.monotonic() - began:.0f} s.")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, services: Sequence[Service]) -> None:
        """Starts services and waits until they are ready. They stop before those already running.

        Raises:
            ProcessError: one could not be started.
        """
        environment, began = self.environment, time.monotonic()
        for service in services:
            self._say(f"Starting {service.name}.")
            port = service.preferred_port
            if port not in self._reserved:
                port = self.reserve(port)
            console = {} if service.console_port is None else {"console_port": self.reserve(service.console_port)}
            self.servers[service.name] = service.start(port, environment, **console)
            self._secret_files |= {variable: str(path) for variable, path in service.secret_files.items()}
        for service in services:
            server = self.servers[service.name]

            def answers(server: Server = server) -> bool:
                self._check()
                return server.answers()

            wait_until_ready(answers, process=server.process, timeout_seconds=server.timeout_seconds)
            self._say(f"Ready after {time.monotonic() - began:.0f} s: {service.name}, {server.url}")
        self._write_info()

    def reserve(self, preferred: int) -> int:
        """The port for a service: the preferred one, or another one if that is not free.

        Call it only for URLs that must be known before the service is added. A service with this port as its preferred
        one gets it, or fails.
        """
        port = free_port(preferred if preferred and self._claim_port(preferred) else 0)
        while port in self._reserved:  # a reserved port is free until its service listens
            port = free_port()
        self._reserved.add(port)
        return port

    def wait(self) -> None:
        """Waits until a signal handler raises.

        Raises:
            ProcessError: a service exited unexpectedly.
        """
        while True:
            self._check()
            time.sleep(0.5)

    def stop(self) -> None:
        """Stops everything in reverse order. May be called again. A second signal during that kills what still runs."""
        self._stopping = True
        try:
            if self._lock_file is not None:
                (self.local_dir / "stack.json").unlink(missing_ok=True)  # first: no command starts to use it now
            for name, server in reversed(self.servers.items()):
                self._say(f"Stopping {name}.")
                server.process.stop()
        finally:
            while self._claims:
                os.close(self._claims.pop())  # which unlocks it
            if self._lock_file is not None:
                self._lock_file.close()  # which unlocks it
                self._lock_file = None
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()

    def _claim_port(self, port: int) -> bool:
        """Claims a port among this user's stacks: a server listens only seconds after its port was found free."""
        path = Path(tempfile.gettempdir()) / f"sora-{os.getuid()}-port-{port}.lock"
        try:
            claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError:  # another user's file, or no access: assume that there is no other stack
            return True
        if not take_lock(claim, fcntl.LOCK_EX):
            os.close(claim)
            return False
        self._claims.append(claim)
        return True

    def _acquire(self) -> None:
        self.local_dir.mkdir(parents=True, exist_ok=True)
        file = (self.local_dir / "stack.lock").open("a+")
        deadline = time.monotonic() + _LOCK_SECONDS
        while not take_lock(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                file.close()
                raise ProcessError(
                    f"A stack is already running in {self.local_dir} (process {owner}). Use that one, stop it with "
                    f"Ctrl-C or `kill {owner}`, or choose another folder."
                )
            time.sleep(0.02)
        (self.local_dir / "stack.json").unlink(missing_ok=True)  # its writer is gone: the lock was free
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock_file = file

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping:
            for server in self.servers.values():
                server.process.send(signal.SIGKILL)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    def _check(self) -> None:
        for server in self.servers.values():
            server.process.check("unexpectedly")

    def _write_info(self) -> None:
        info = StackInfo(
            services={
                name: ServiceInfo(server.process.pid, server.url, str(server.process.log_path))
                for name, server in self.servers.items()
            },
            public_environment={
                name: value for name, value in self.environment.items() if name not in self._secret_files
            },
            secret_files=self._secret_files,
        )
        write_private(self.local_dir / "stack.json", json.dumps(asdict(info), indent=2) + "\n")
