"""A TCP proxy in front of a server, usually MinIO, that a test can shut for all requests or some."""

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from typing import Self

Shut = Callable[[bytes], bool]
"""Whether the request that begins with these bytes is cut off."""


def nothing(_: bytes) -> bool:
    """Cuts off nothing: the gate is open."""
    return False


class StoreGate:
    """Forwards bytes to `target`, and cuts the connection if `shut` returns true for the first bytes of a request.

    If `lose_reply` returns true, it forwards the request, and cuts the connection before the reply gets back.
    """

    def __init__(self, target: str) -> None:
        host, port = target.split(":")
        self.shut: Shut = nothing
        self.lose_reply: Shut = nothing
        self.cut = 0
        gate = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with socket.create_connection((host, int(port))) as upstream:
                    gate._serve(self.request, upstream)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 256

            def handle_error(self, request: object, client_address: object) -> None:
                """Ignores cut connections, because cutting them is the purpose of the gate."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def _serve(self, client: socket.socket, upstream: socket.socket) -> None:
        lost = threading.Event()

        def back() -> None:
            with contextlib.suppress(OSError):
                while data := upstream.recv(65_536):
                    if lost.is_set():
                        break
                    client.sendall(data)
            _hang_up(client)

        returning = threading.Thread(target=back, daemon=True)
        returning.start()
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                if self.shut(data):
                    self.cut += 1
                    break
                if self.lose_reply(data):
                    self.cut += 1
                    lost.set()
                upstream.sendall(data)
        _hang_up(upstream)
        returning.join(10)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
