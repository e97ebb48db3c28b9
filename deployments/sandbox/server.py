"""Runs the sandbox: in a thread of a test, or in the foreground of a terminal."""

import asyncio
import contextlib
import socket
import threading
import time
from types import FrameType
from typing import Self

import uvicorn
from starlette.types import ASGIApp

from deployments.sandbox.app import create_app
from deployments.sandbox.settings import SandboxSettings
from deployments.sandbox.tasks import SandboxState

#: How long answers in progress may take when the sandbox stops, in seconds. Then their connections are cut.
GRACE_SECONDS = 0.05
#: How long a start may take, in seconds. It usually takes 0.1, but longer on an overloaded machine.
START_SECONDS = 30.0


class _Server(uvicorn.Server):
    """A uvicorn server that does not wait for requests that hang on purpose, and whose clean end is no crash."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def main_loop(self) -> None:
        # uvicorn's own loop checks only ten times per second whether it should end.
        waiting = {asyncio.create_task(super().main_loop()), asyncio.create_task(self._ending.wait())}
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    def end(self) -> None:
        """Ends the server at once. Called from another thread."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has already ended
                self._loop.call_soon_threadsafe(self._ending.set)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Unlike uvicorn's own handler, does not raise the signal again after the end.
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Not uvicorn's own, which always takes a tenth of a second, and a whole second if a request hangs.
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        connections = [getattr(connection, "transport", None) for connection in self.server_state.connections]
        transports = [transport for transport in connections if transport is not None]
        if self.server_state.tasks or any(transport.get_write_buffer_size() for transport in transports):
            await asyncio.sleep(GRACE_SECONDS)
        for transport in transports:
            transport.abort()
        if hanging := list(self.server_state.tasks):
            for task in hanging:
                task.cancel()
            await asyncio.wait(hanging, timeout=GRACE_SECONDS)
        await self.lifespan.shutdown()


class SandboxServer(SandboxState):
    """The sandbox on a free port of 127.0.0.1, in a background thread.

    ```python
    with SandboxServer(SandboxSettings(speed=600, video_height=90)) as sandbox:
        sandbox.faults.add(Fault(call="submit", kind="reset_after"))
        ...  # talk to sandbox.base_url
        assert len(sandbox.record.charged()) == 1
    ```
    """

    def __init__(self, settings: SandboxSettings | None = None, *, port: int = 0) -> None:
        """`port` 0 takes a free one."""
        super().__init__(settings)
        self._port = port
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """The URL where it listens, without a trailing slash."""
        if self._server is None:
            raise RuntimeError("the sandbox is not running: use it in a with statement, or call start()")
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Returns once the sandbox answers."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=2048)
        self._port = listener.getsockname()[1]
        self._server = server = _Server(_config(create_app(self)))
        self._thread = threading.Thread(target=server.run, args=([listener],), name="apixo-sandbox", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not server.started:
            time.sleep(0.01)
            if not self._thread.is_alive() or time.monotonic() > deadline:
                listener.close()
                self.stop()
                raise RuntimeError("the sandbox did not start; its log says why")
        return self

    def stop(self) -> None:
        """Stops within a second, whatever is in progress. May be called again."""
        if self._server is not None and self._thread is not None:
            self._server.end()
            self._thread.join()
        self._server = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve(settings: SandboxSettings, listener: socket.socket) -> None:
    """Runs the sandbox in the foreground until SIGINT or SIGTERM, then returns."""
    server = _Server(_config(create_app(SandboxState(settings))))
    server.run([listener])


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        # For uvicorn, a connection that is cut half-way is an error; here it is intended.
        log_level="critical",
        access_log=False,
        lifespan="on",
        server_header=False,
    )
