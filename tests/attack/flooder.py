"""A program that floods a server: `python flooder.py PORT REQUESTS_PER_SECOND SECONDS < requests.json`.

The requests are base64-encoded. Each uses a new connection and does not wait for the answers to others; otherwise it
would not be a flood. Prints as JSON how many were sent, how long that took, and how many got which status (0 means
none). It imports only the standard library, so it starts at once.
"""

import asyncio
import base64
import collections
import json
import random
import resource
import sys
import time

MAX_CONNECTIONS = 15_000
"""Open connections. With more, this machine would run out of file descriptors before the server does."""
TIMEOUT_SECONDS = 15.0


class _Caller(asyncio.Protocol):
    """Sends one request and keeps the status of the answer."""

    def __init__(self, request: bytes, ended: "asyncio.Future[int]") -> None:
        self._request, self._ended = request, ended
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._status and data.startswith(b"HTTP/1.1 "):
            self._status = int(data[9:12])

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(self._status)


async def flood(port: int, requests: list[bytes], requests_per_second: float, seconds: float) -> dict[str, object]:
    """Floods the server, and returns what happened."""
    rng, statuses = random.Random(1), collections.Counter[str]()
    under_way: set[asyncio.Task[None]] = set()
    skipped = 0

    async def one(request: bytes) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                transport, _ = await loop.create_connection(lambda: _Caller(request, ended), "127.0.0.1", port)
                try:
                    statuses[str(await ended)] += 1
                finally:
                    transport.abort()
        except TimeoutError:
            statuses["timeout"] += 1
        except OSError:
            statuses["refused"] += 1

    began = time.monotonic()
    sent = 0
    while (passed := time.monotonic() - began) < seconds:
        due = int(passed * requests_per_second) - sent - skipped
        for _ in range(due):
            if len(under_way) >= MAX_CONNECTIONS:
                skipped += 1
                continue
            task = asyncio.create_task(one(rng.choice(requests)))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            sent += 1
        await asyncio.sleep(0.002)
    took = time.monotonic() - began
    answered = sum(number for status, number in statuses.items() if status.isdecimal() and status != "0")
    await asyncio.gather(*under_way)
    return {"sent": sent, "skipped": skipped, "seconds": took, "answered": answered, "statuses": dict(statuses)}


def main() -> None:
    port, requests_per_second, seconds = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    requests = [base64.b64decode(text) for text in json.load(sys.stdin)]
    print(json.dumps(asyncio.run(flood(port, requests, requests_per_second, seconds))))


if __name__ == "__main__":
    main()
