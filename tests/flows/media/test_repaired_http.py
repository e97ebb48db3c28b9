"""The repair of HTTP responses: valid ones stay unchanged, broken ones are fixed, whatever pieces they arrive in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.media.guarded_client import guarded_client
from flows.media.media_errors import DownloadError, ForbiddenUrlError
from flows.media.repaired_http import MAX_HEAD_BYTES, Repair
from tests.flows.media.wire import get, serving

BODY = bytes(range(256)) * 3

ANSWERS = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 768\r\n\r\n" + BODY, None),
    (b"HTTP/1.0 404 Not Found\r\nServer: x\r\n\r\n" + BODY, None),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n300\r\n" + BODY + b"\r\n0\r\n\r\n", None),
    (b"HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n", None),
    (
        b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked, chunked\n\n300 ;x\n" + BODY + b"\n0\nNo trailer\n\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n300\r\n" + BODY + b"\r\n0\r\n\r\n",
    ),
    (
        b"HTTP/2 200\r\nX Id: 5\r\nETag : \"1\0\"\r\nContent-Length: 1.0\r\n\r\n" + BODY,
        b"HTTP/1.1 200\r\nETag: \"1 \"\r\n\r\n" + BODY,
    ),
]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
@pytest.mark.parametrize(("sent", "repaired"), ANSWERS)
def test_response_is_repaired_whatever_pieces_it_arrives_in(sent: bytes, repaired: bytes | None, size: int) -> None:
    repair = Repair()
    out = b"".join(repair.feed(sent[at : at + size]) for at in range(0, len(sent), size)) + repair.feed(b"")
    assert out == (sent if repaired is None else repaired)


@given(st.binary(max_size=300) | st.binary(max_size=100).map(lambda data: ANSWERS[4][0][:50] + data))
def test_any_bytes_are_processed_to_the_end(data: bytes) -> None:
    repair = Repair()
    repair.feed(data)
    repair.feed(b"")
    assert repair.feed(b"") == b""


async def test_endless_header_is_not_buffered() -> None:
    repair = Repair()
    kept = b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES
    assert repair.feed(kept) == kept
    assert repair.feed(b"a") == b"a"
    async with serving(b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 200_000) as server:
        with pytest.raises(DownloadError):
            await get(guarded_client(allow_private_hosts=True), server.url())


async def test_response_that_is_not_http_is_rejected() -> None:
    async with serving(b"220 mail.example ESMTP\r\n\r\nhello") as server:
        with pytest.raises(DownloadError):
            await get(guarded_client(allow_private_hosts=True), server.url())


async def test_a_malformed_redirect_is_checked_like_any_other() -> None:
    async with serving(b"HTTP/2 302\r\nLocation : http://169.254.169.254/\r\nX Id: 5\r\n\r\n") as server:
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(guarded_client(allow_private_hosts=True), server.url())


async def test_each_request_sends_connection_close() -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as server:
        client = guarded_client(allow_private_hosts=True)
        assert await get(client, server.url()) == b"hello"
        assert "\r\nConnection: close\r\n" in server.requests[0]
