"""Repairs malformed HTTP answers before a strict parser rejects them.

A header that a proxy duplicated, or a length that is not a number, is no reason to lose a paid video, and browsers
accept it. Only answers of external hosts are repaired, where a connection serves one request, so nothing can be
smuggled into a second one. Well-formed answers stay as they are. What cannot be understood is passed on unchanged, and
the parser rejects it.
"""

import re
import ssl
from collections.abc import Callable
from typing import Any, Final

import httpcore
import httpx

MAX_HEAD_BYTES: Final = 100 * 1024
"""As much as httpcore accepts. A longer head is passed on unchanged."""

_MAX_CHUNK_LINE_BYTES: Final = 4096

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
_STATUS_LINE: Final = re.compile(rb"HTTP/\d\.\d \d{3}(?: [\t -~\x80-\xff]*)?")
_STATUS: Final = re.compile(rb"[!-~]+[ \t]+(\d{3})(?!\d)")  # also `HTTP/2 200` and `ICY 200 OK`
_NAME: Final = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_LENGTH: Final = re.compile(rb"\d{1,18}")
_CHUNK_LINE: Final = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]*)?\r?\n")
_LINE_END: Final = re.compile(rb"\r?\n")
_WITHOUT_BODY: Final = frozenset({204, 304})


class Repair:
    """Takes an answer from the network, piece by piece, and returns it repaired."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._ended = False
        self._step: Callable[[], bytes | None] = self._read_head
        self._head = self._length = b""
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Returns what can be passed on so far. Empty data means that the host has closed the connection."""
        self._buffer += data
        self._ended = not data
        out = bytearray()
        while (piece := self._step()) is not None:
            out += piece
        return bytes(out)

    def _read_head(self) -> bytes | None:
        del self._buffer[: len(self._buffer) - len(self._buffer.lstrip(b"\r\n"))]
        end = _HEAD_END.search(self._buffer)
        if end is None:
            if len(self._buffer) <= MAX_HEAD_BYTES and not self._ended:
                return None
            self._step = self._pass_on
            return b""
        status = _STATUS.match(self._buffer)
        if status is None:
            self._step = self._pass_on
            return b""
        code = int(status[1])
        self._head, self._length, is_chunked = _repaired(self._take(end.end()), code)
        if 100 <= code < 200:  # the actual answer is yet to come
            return self._head + b"\r\n"
        if is_chunked and code not in _WITHOUT_BODY:
            self._step = self._read_first_chunk
            return b""
        self._step = self._pass_on
        return self._head + self._length + b"\r\n"

    def _read_first_chunk(self) -> bytes | None:
        """Checks for a chunk: some proxies remove the chunking, but leave the header that announces it."""
        if self._lacks_line():
            return None
        if _CHUNK_LINE.match(self._buffer) or not self._buffer:
            self._step = self._read_chunk_line
            return self._head + b"Transfer-Encoding: chunked\r\n\r\n"
        self._step = self._pass_on
        return self._head + self._length + b"\r\n"

    def _read_chunk_line(self) -> bytes | None:
        if self._lacks_line():
            return None
        line = _CHUNK_LINE.match(self._buffer)
        if line is None:
            self._step = self._pass_on
            return b""
        self._left = int(line[1], 16)
        if self._left == 0:  # trailers follow, which are not used
            self._step = self._drop
            return b"0\r\n\r\n"
        self._take(line.end())
        self._step = self._read_chunk
        return b"%x\r\n" % self._left

    def _read_chunk(self) -> bytes | None:
        if not self._buffer:
            return None
        data = self._take(self._left)
        self._left -= len(data)
        if self._left == 0:
            self._step = self._read_chunk_end
        return data

    def _read_chunk_end(self) -> bytes | None:
        if bytes(self._buffer) in (b"", b"\r") and not self._ended:
            return None
        end = _LINE_END.match(self._buffer)
        if end is None:
            self._step = self._pass_on
            return b""
        self._take(end.end())
        self._step = self._read_chunk_line
        return b"\r\n"

    def _pass_on(self) -> bytes | None:
        return self._take(len(self._buffer)) or None

    def _drop(self) -> None:
        self._buffer.clear()

    def _lacks_line(self) -> bool:
        return not self._ended and b"\n" not in self._buffer and len(self._buffer) < _MAX_CHUNK_LINE_BYTES

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def _repaired(head: bytes, code: int) -> tuple[bytes, bytes, bool]:
    """The head without its blank line and framing headers; the Content-Length line; whether the body is chunked."""
    first, *lines = re.split(rb"\r?\n", _FOLD.sub(b" ", head))
    kept = [first if _STATUS_LINE.fullmatch(first) else b"HTTP/1.1 %03d" % code]
    lengths: set[bytes] = set()
    is_chunked = False
    for line in lines:
        name, colon, rest = line.partition(b":")
        name, value = name.rstrip(b" \t"), _CONTROLS.sub(b" ", rest).strip(b" \t")
        if not colon or not _NAME.fullmatch(name):
            continue
        if name.lower() == b"content-length":
            lengths |= {length.strip() for length in value.split(b",")}
        elif name.lower() == b"transfer-encoding":
            # Other codings in it, such as gzip, are detected from the bytes.
            is_chunked |= b"chunked" in value.lower()
        else:
            kept.append(name + b": " + value)
    length = lengths.pop() if len(lengths) == 1 else b""
    # An unclear length counts as none: the body then ends with the connection.
    line = b"Content-Length: " + length + b"\r\n" if _LENGTH.fullmatch(length) else b""
    return b"\r\n".join(kept) + b"\r\n", line, is_chunked


class RepairingTransport(httpx.AsyncHTTPTransport):
    """httpx's transport with every answer repaired. It keeps no connections open: a `Repair` handles one answer."""

    def __init__(self, *, verify: ssl.SSLContext, proxy: str | None = None) -> None:
        # No limit on connections: no request must wait because another's host is slow.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        super().__init__(verify=verify, trust_env=False, limits=limits, proxy=proxy)
        # httpcore accepts a backend, but httpx has no way to pass one.
        self._pool._network_backend = _Backend()  # noqa: SLF001


class _Backend(httpcore.AnyIOBackend):
    async def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await super().connect_tcp(*arguments, **options))


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._repair = Repair()
        self._is_tunnel = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        while True:
            data = await self._inner.read(max_bytes, timeout)
            passed_on = data if self._is_tunnel else self._repair.feed(data)
            if passed_on or not data:
                return passed_on

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        # A proxy's reply to CONNECT has no body, whatever its headers say; the answer comes inside the tunnel's TLS.
        self._is_tunnel = self._is_tunnel or buffer.startswith(b"CONNECT ")
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
