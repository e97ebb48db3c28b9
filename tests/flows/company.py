"""A company's network on loopback: its own certificate authority, a forward proxy as the only way out, and a store
behind a reverse proxy.

Its host names resolve only in the forward proxy: a client that does not use the proxy cannot reach them.
"""

import asyncio
import datetime as dt
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import format_datetime
from pathlib import Path
from typing import Final

from tests.blocks.wire import body_length, http, listening
from tests.flows.media.wire import tunnel
from tests.support.authority import make_authority, server_context

API: Final = "api.corp.example"
RESULTS: Final = "cdn.corp.example"  # as long as the API's name, which it replaces in replies
STORE: Final = "s3.corp.example"


@dataclass
class Company:
    """The proxies, and the misconfiguration of the one in front of the store, which a test can change at any time.

    Attributes:
        authority: the file with the certificate of the company's authority.
        proxy: the URL of the forward proxy.
        tunneled, requests: the hosts that clients requested from the forward proxy, and the requests that the reverse
            proxy received.
    """

    upstreams: dict[str, str]
    authority: Path
    compresses: bool = False
    max_bytes: int = 1_000_000_000
    ahead_seconds: float = 0
    proxy: str = ""
    tunneled: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    inside: int = 0

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The forward proxy: only it resolves the host names."""
        method, target, _ = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ", 2)
        host = target.partition(":")[0]
        self.tunneled.add(host)
        if method != "CONNECT" or host not in self.upstreams:
            writer.write(http(502))
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await tunnel(reader, writer, self.inside)

    async def reverse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The reverse proxy: terminates TLS in front of all servers."""
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = [line for line in head.split("\r\n") if line]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
            host = headers["host"].partition(":")[0]
            self.requests.append(f"{host} {lines[0]}")
            length = body_length(head)
            if host == STORE and length > self.max_bytes:
                writer.write(http(413, b"<h1>413 Request Entity Too Large</h1>", connection="close"))
                await writer.drain()
                await reader.readexactly(length)  # drained, so that the client gets to read the reply
                return
            body = await reader.readexactly(length)
            writer.write(
                self._changed(host, *await self._forwarded(host, lines, body), no_body=lines[0].startswith("HEAD"))
            )
            await writer.drain()

    async def _forwarded(self, host: str, lines: list[str], body: bytes) -> tuple[list[str], bytes]:
        kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
        address, _, port = self.upstreams[host].partition(":")
        reader, writer = await asyncio.open_connection(address, int(port))
        try:
            writer.write("\r\n".join([*kept, "X-Forwarded-Proto: https", "", ""]).encode("latin-1") + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            content = b""
            if "transfer-encoding: chunked" in head.lower():
                content = await _read_chunks(reader)
            elif not lines[0].startswith("HEAD"):
                content = await reader.readexactly(body_length(head))
        finally:
            writer.transport.abort()
        return [line for line in head.split("\r\n") if line], content

    def _changed(self, host: str, lines: list[str], content: bytes, *, no_body: bool) -> bytes:
        """The reply as the client receives it."""
        status, *rest = lines
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        headers.pop("transfer-encoding", "")
        if host == API:
            content = content.replace(f"https://{API}/".encode(), f"https://{RESULTS}/".encode())
        if host == STORE:
            if self.compresses and content and "json" in headers.get("content-type", ""):
                content = gzip.compress(content)
                headers |= {"content-encoding": "gzip", "etag": f"W/{headers.get('etag', '')}"}
            now = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=self.ahead_seconds)
            headers["date"] = format_datetime(now, usegmt=True)
        headers.pop("connection", None)
        if not no_body and not status.split(" ")[1].startswith(("1", "204", "304")):
            headers["content-length"] = str(len(content))
        return "\r\n".join([status, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode("latin-1") + content


@asynccontextmanager
async def company_network(folder: Path, upstreams: dict[str, str]) -> AsyncIterator[Company]:
    """A network in which these host names lead to these endpoints."""
    company = Company(upstreams, make_authority(folder, *upstreams) / "ca.pem")
    async with listening(company.reverse, server_context(folder)) as inside, listening(company.forward) as proxy:
        company.inside = int(inside.rpartition(":")[2])
        company.proxy = f"http://{proxy}"
        yield company


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Reads a chunked body."""
    found = b""
    while True:
        length = int(await reader.readline(), 16)
        found += (await reader.readexactly(length + 2))[:length]
        if not length:
            return found


__all__ = ["API", "RESULTS", "STORE", "Company", "company_network"]
