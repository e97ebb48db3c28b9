"""A company's network on loopback: its own authority, a proxy as the only way out, a store behind another proxy.

Its names exist nowhere else: whatever does not go through the forward proxy does not find them.
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
RESULTS: Final = "cdn.corp.example"  # as long as the API's name, which its replies hold
STORE: Final = "s3.corp.example"


@dataclass
class Company:
    """The proxies, and what is wrong with the one in front of the store. What is wrong can be set right at any time.

    Attributes:
        authority: the certificate of the company's authority, as a file.
        proxy: the address of the forward proxy.
        tunneled, requests: the hosts that the forward proxy was asked for, and the requests that arrived behind it.
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
        """The forward proxy: it alone knows the names."""
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
        """What ends TLS, in front of all servers."""
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
                await reader.readexactly(length)  # it lingers, so that the client comes to read the answer
                return
            body = await reader.readexactly(length)
            writer.write(
                self._changed(host, *await self._asked(host, lines, body), no_body=lines[0].startswith("HEAD"))
            )
            await writer.drain()

    async def _asked(self, host: str, lines: list[str], body: bytes) -> tuple[list[str], bytes]:
        kept = [line for line in lines if not line.lower().startswith(("connection:", "expect:"))]
        address, _, port = self.upstreams[host].partition(":")
        reader, writer = await asyncio.open_connection(address, int(port))
        try:
            writer.write("\r\n".join([*kept, "X-Forwarded-Proto: https", "", ""]).encode("latin-1") + body)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            content = b""
            if "transfer-encoding: chunked" in head.lower():
                content = await _joined(reader)
            elif not lines[0].startswith("HEAD"):
                content = await reader.readexactly(body_length(head))
        finally:
            writer.transport.abort()
        return [line for line in head.split("\r\n") if line], content

    def _changed(self, host: str, lines: list[str], content: bytes, *, no_body: bool) -> bytes:
        """The reply as the client gets it."""
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
    """A network in which these names lead to these endpoints."""
    company = Company(upstreams, make_authority(folder, *upstreams) / "ca.pem")
    async with listening(company.reverse, server_context(folder)) as inside, listening(company.forward) as proxy:
        company.inside = int(inside.rpartition(":")[2])
        company.proxy = f"http://{proxy}"
        yield company


async def _joined(reader: asyncio.StreamReader) -> bytes:
    """A body that is sent in chunks."""
    found = b""
    while True:
        length = int(await reader.readline(), 16)
        found += (await reader.readexactly(length + 2))[:length]
        if not length:
            return found


__all__ = ["API", "RESULTS", "STORE", "Company", "company_network"]
