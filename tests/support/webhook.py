"""A web server on loopback that receives POST requests, as users and companies run them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    """Answers with the scripted statuses, then with 200.

    Attributes:
        url: where it listens.
        statuses: the statuses of the next answers.
        bodies, times: what it received, and when.
        lost: the number of incomplete requests. Prefect gives up after five seconds, even mid-request.
    """

    def __init__(self) -> None:
        self.url = ""
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.lost = 0

    def messages(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    def wait_for(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 60
        while len(self.bodies) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.messages()


@contextmanager
def webhook(path: str) -> Iterator[Webhook]:
    """Runs a webhook with this path, and perhaps a query, until the block ends."""
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:
                hook.lost += 1
                return
            hook.bodies.append(body)
            hook.times.append(time.monotonic())
            self.send_response(hook.statuses.pop(0) if hook.statuses else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hook.url = f"http://127.0.0.1:{server.server_port}{path}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield hook
        server.shutdown()
        thread.join()
