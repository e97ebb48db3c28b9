"""The local stack: the sandbox of the API, the object store and a Prefect server, as children of this process."""

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self, TextIO

from deployments.local.object_store import ObjectStoreServer, Say
from deployments.local.prefect_server import PrefectServer
from deployments.local.processes import (
    LOOPBACK,
    Launcher,
    LauncherClosedError,
    ProcessDiedError,
    ProcessError,
    start_on_free_port,
)
from deployments.local.services import RunningServer, Service, Start, default_services
from deployments.local.stack_info import LOCAL_DIR, ServiceInfo, StackInfo

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackRunningError(ProcessError):
    """A stack already runs on this folder: two on the same data would damage it."""


class LocalStack:
    """The services, started together on entry and stopped in reverse order on exit, error, SIGINT, SIGTERM or SIGHUP.

    Enter it in the main thread: elsewhere Python allows no signal handlers, and only SIGINT stops it cleanly. However
    this process ends, its children end too (see `ManagedProcess`).

    Args:
        local_dir: data, logs, `stack.json` and `stack.lock`.
        services: by default `default_services(local_dir)`. In their order they are listed; those without `needs` start
            at once, in parallel.
        say: gets one line a step.

    Raises (on entry):
        StackRunningError: another process runs a stack on this folder.
        ProcessError: a service could not be started; what was started before has been stopped.
    """

    def __init__(
        self, local_dir: Path = LOCAL_DIR, *, services: Sequence[Service] | None = None, say: Say = print
    ) -> None:
        self.local_dir = local_dir.resolve()
        self.services = list(default_services(self.local_dir) if services is None else services)
        self.servers: dict[str, RunningServer] = {}
        self._say = say
        self._launchers = {service.name: Launcher() for service in self.services}
        self._lock_file: TextIO | None = None
        self._handlers: dict[signal.Signals, Any] = {}
        self._stopping = False

    @property
    def sandbox_url(self) -> str:
        """The base URL of the sandbox."""
        return self.servers["sandbox"].url

    @property
    def object_store(self) -> ObjectStoreServer:
        """The object store."""
        server = self.servers["object store"]
        assert isinstance(server, ObjectStoreServer)  # noqa: S101 - for the type checker
        return server

    @property
    def prefect(self) -> PrefectServer:
        """The Prefect server."""
        server = self.servers["prefect"]
        assert isinstance(server, PrefectServer)  # noqa: S101 - for the type checker
        return server

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a process needs to use this stack, secrets included; nothing else of the environment."""
        return _environment_of(self.servers.values())

    def __enter__(self) -> Self:
        self._acquire()
        try:
            self._catch_signals()
            began = time.monotonic()
            self._start_all(self.services)
            self._write_info()
            self._say(f"Everything runs, after {time.monotonic() - began:.0f} s.")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, services: Sequence[Service]) -> None:
        """Starts further services, once what they work with has been set up. They stop before those already running.

        Raises:
            ProcessError: one could not be started. The stack itself goes on.
        """
        self.services += services
        self._launchers |= {service.name: Launcher() for service in services}
        self._start_all(services)
        self._write_info()

    def wait(self) -> None:
        """Waits until a signal comes, which raises here.

        Raises:
            ProcessDiedError: a service ended by itself.
        """
        while True:
            self._check_alive()
            time.sleep(0.5)

    def stop(self) -> None:
        """Stops everything in reverse order. May be called again. A second signal meanwhile kills what still runs."""
        self._stopping = True
        try:
            for service in reversed(self.services):
                if service.name in self.servers:
                    self._say(f"Stopping {service.name}.")
                self._launchers[service.name].stop()
        finally:
            if self._lock_file is not None:
                (self.local_dir / "stack.json").unlink(missing_ok=True)
                self._lock_file.close()  # and so unlocks
                self._lock_file = None
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()

    def _acquire(self) -> None:
        self.local_dir.mkdir(parents=True, exist_ok=True)
        file = (self.local_dir / "stack.lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise StackRunningError(
                f"A stack already runs on {self.local_dir} (process {owner}). Use that one, stop it with Ctrl-C or "
                f"`kill {owner}`, or choose another folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._lock_file = file
        (self.local_dir / "stack.json").unlink(missing_ok=True)  # whoever wrote it is gone: the lock was free

    def _catch_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in _STOP_SIGNALS}

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stopping:
            for launcher in self._launchers.values():
                launcher.kill()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    def _start_all(self, services: Sequence[Service]) -> None:
        with ThreadPoolExecutor(max_workers=len(services) or 1, thread_name_prefix="stack") as pool:
            futures: dict[str, Future[RunningServer]] = {}
            for service in services:
                needed = [futures[name] for name in service.needs if name not in self.servers]
                running = [self.servers[name] for name in service.needs if name in self.servers]
                futures[service.name] = pool.submit(self._start_one, service, running, needed)
            try:
                finished, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            except BaseException:
                self._stop_launchers()  # else the pool would wait for its threads, and they for their time-outs
                raise
            errors = [error for future in finished if (error := future.exception()) is not None]
            if errors:
                self._stop_launchers()
                # A service whose need failed repeats that error or says that it was stopped: the cause is another's.
                raise next((error for error in errors if not isinstance(error, LauncherClosedError)), errors[0])
        self._check_alive()

    def _check_alive(self) -> None:
        for name, server in self.servers.items():
            if not server.process.is_alive():
                tail = server.process.log_tail()
                message = f"{name} has ended by itself. Its log, {server.process.log_path}, ends with:\n{tail}"
                raise ProcessDiedError(message, exit_code=server.process.exit_code, log_tail=tail)

    def _start_one(
        self, service: Service, running: Sequence[RunningServer], needed: Sequence[Future[RunningServer]]
    ) -> RunningServer:
        environment = _environment_of([*running, *(future.result() for future in needed)])
        launcher = self._launchers[service.name]
        launcher.check_open()
        self._say(f"Starting {service.name}.")
        began = time.monotonic()
        server = start_on_free_port(
            lambda port: service.start(Start(port, self.local_dir, environment, launcher, self._say)),
            preferred=service.preferred_port,
        )
        self.servers[service.name] = server
        self._say(f"Ready after {time.monotonic() - began:.0f} s: {service.name}, {server.url}")
        return server

    def _stop_launchers(self) -> None:
        self._stopping = True
        for service in reversed(self.services):
            self._launchers[service.name].stop()

    def _write_info(self) -> None:
        secret_files = {
            variable: str(path) for service in self.services for variable, path in service.secret_files.items()
        }
        info = StackInfo(
            pid=os.getpid(),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            services={
                service.name: ServiceInfo(server.process.pid, server.url, str(server.process.log_path))
                for service in self.services
                for server in [self.servers[service.name]]
            },
            public_environment={name: value for name, value in self.environment.items() if name not in secret_files},
            secret_files=secret_files,
        )
        draft = self.local_dir / ".stack.json"
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(asdict(info), indent=2) + "\n")
        draft.replace(self.local_dir / "stack.json")


def _environment_of(servers: Iterable[RunningServer]) -> dict[str, str]:
    merged: dict[str, str] = {}
    if any(name.lower() in ("http_proxy", "all_proxy") for name in os.environ):
        # A proxy cannot reach this machine's loopback. httpx and curl read the small name first, others the large one.
        for name in ("no_proxy", "NO_PROXY"):
            merged[name] = ",".join(filter(None, [os.environ.get(name), LOOPBACK, "localhost"]))
    for server in servers:
        merged.update(server.environment)
    return merged
