"""A provider whose result URLs point wherever a test wants, and an internal host that must not be contacted."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from apixo.constants import STATUS_PATH, SUBMIT_PATH


@dataclass
class HostileProvider:
    """Accepts every submission, and reports each task as done at once, with the URLs that `results` has for its prompt.

    Attributes:
        video: the content of `/video.mp4`.
        results: result URLs by prompt.
        redirects: the targets of `/to/<name>`, by name.
        posts: the prompts that were submitted, in order.
        requested: the paths that were requested, except those of the API.
    """

    video: bytes
    results: dict[str, list[str]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    posts: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)
    url: str = ""

    def submitted(self, body: bytes) -> dict[str, str]:
        self.posts.append(json.loads(body)["input"]["prompt"])
        return {"taskId": f"task_{len(self.posts)}"}

    def status(self, task_id: str) -> dict[str, str]:
        prompt = self.posts[int(task_id.removeprefix("task_")) - 1]
        result = json.dumps({"resultUrls": self.results[prompt]})
        return {"taskId": task_id, "state": "success", "resultJson": result}


@contextmanager
def hostile_provider(video: bytes) -> Iterator[HostileProvider]:
    """Runs a provider on a free port."""
    provider, lock = HostileProvider(video), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == SUBMIT_PATH.format(model="sora-2")
            with lock:
                data = provider.submitted(body)
            self.reply(200, json.dumps({"code": 200, "message": "success", "data": data}).encode())

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            if parts.path == STATUS_PATH.format(model="sora-2"):
                data = provider.status(parse_qs(parts.query)["taskId"][0])
                self.reply(200, json.dumps({"code": 200, "message": "success", "data": data}).encode())
                return
            with lock:
                provider.requested.append(self.path)
            if parts.path == "/video.mp4":
                self.reply(200, provider.video)
            elif parts.path.startswith("/to/"):
                self.reply(302, location=provider.redirects[parts.path.removeprefix("/to/")])
            else:
                self.reply(404)

        def reply(self, status: int, body: bytes = b"", location: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if location is not None:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Logs nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            """Ignores clients that disconnect early: these tests make them do so."""

    with Server(("127.0.0.1", 0), Handler) as server:
        provider.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()


class InternalHost:
    """Listens on every address of this machine, and records who connects."""

    def __init__(self) -> None:
        self.clients: list[str] = []
        self._listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, client = self._listener.accept()
            except OSError:  # closed
                return
            self.clients.append(str(client[0]))
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
