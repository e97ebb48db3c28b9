"""HTTP responses as hosts and proxies really send them, byte by byte: no protocol error costs a paid video."""

import base64
import gzip
import zlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.fetching import FetchedVideo, fetch_videos
from flows.media.downloads import download
from flows.media.guarded_client import guarded_client
from flows.media.media_errors import CutDownloadError, DamagedVideoError, DownloadError
from tests.flows.media.test_wrappings import zipped
from tests.flows.media.wire import serving
from tests.flows.record.changes import claimed
from tests.support import KITE

SUCCEEDED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON, A_DAY_LATER = SUCCEEDED_AT + timedelta(hours=2), SUCCEEDED_AT + timedelta(hours=24)


async def fetch(folder: Path, *answers: bytes, now: datetime = SOON, last_try: bool = False) -> FetchedVideo:
    """Fetches from a host that sends these responses in turn."""
    found = claimed().model_copy(update={"succeeded_at": SUCCEEDED_AT})
    async with serving(*answers) as server, guarded_client(allow_private_hosts=True) as web:
        urls = (server.url("/v.mp4"),)
        (video,) = await fetch_videos(found, urls, folder, web, requested=KITE, fresh=True, last_try=last_try, now=now)
    return video


def chunked(body: bytes, line: bytes = b"%x\r\n") -> bytes:
    half = len(body) // 2
    return b"".join(line % len(piece) + piece + b"\r\n" for piece in (body[:half], body[half:])) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: Chunked\r\nContent-Length: 12",
        "Transfer-Encoding:\r\n chunked",
    ],
)
@pytest.mark.parametrize("line", [b"%x\r\n", b"%X ; a=b\r\n", b" %x;name=\x01\r\n", b"%08x \r\n", b"%x\n"])
async def test_chunked_body_is_read_despite_malformed_headers_and_size_lines(
    tmp_path: Path, whole: bytes, headers: str, line: bytes
) -> None:
    answer = f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + chunked(whole, line)
    video = await fetch(tmp_path, answer)
    assert video.path.read_bytes() == whole
    assert video.warnings == ()


async def test_plain_body_labeled_as_chunked_is_read(tmp_path: Path, whole: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: {len(whole)}\r\n\r\n"
    assert (await fetch(tmp_path, head.encode() + whole)).path.read_bytes() == whole


async def test_chunked_body_that_ends_too_early_counts_as_cut(tmp_path: Path, whole: bytes) -> None:
    """Otherwise half a video would count as complete."""
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(whole)
    for end in (len(answer) // 2, len(answer) - 5):
        with pytest.raises(CutDownloadError):
            await fetch(tmp_path, answer[:end])


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: {0}.0",
        "Content-Length: {0:,}",
        "Content-Length: ",
        "Content-Length: -1",
        "Content-Length: undefined",
        "Content-Length: {0}\r\nContent-Length: 12",
        "Content-Length: {0}, 12",
        "Content-Length: {0}\r\nContent-Length: {0}",
        "Transfer-Encoding: identity\r\nContent-Length: {0}",
    ],
)
async def test_invalid_content_length_is_ignored(tmp_path: Path, whole: bytes, headers: str) -> None:
    video = await fetch(tmp_path, f"HTTP/1.1 200 OK\r\n{headers.format(len(whole))}\r\n\r\n".encode() + whole)
    assert video.path.read_bytes() == whole
    assert video.warnings == ()


@pytest.mark.parametrize(
    "line",
    [
        b"X Video Id: 5",
        b"X-Video : 5",
        b"X-Video: a\0b",
        b'Content-Disposition: attachment; filename="a\x0cb.mp4"',
        b'Content-Disposition: attachment; filename="caf\xe9.mp4"',
        b"a line without a colon",
        b": without a name",
        b"X-Folded: a\r\n b",
        b"X Folded: a\r\n b: c",
    ],
)
async def test_malformed_header_line_does_not_affect_the_others(tmp_path: Path, whole: bytes, line: bytes) -> None:
    """The length must still be known: without it, a cut video would not be noticed."""
    answer = b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length : %d\r\n\r\n" % len(whole) + whole
    assert (await fetch(tmp_path / "whole", answer)).path.read_bytes() == whole
    with pytest.raises(CutDownloadError, match=f"expected {len(whole):,} bytes"):
        await fetch(tmp_path / "cut", answer[:-1])


@pytest.mark.parametrize(
    "start",
    ["HTTP/2 200", "HTTP/1.1  200 OK", "HTTP/1.1 200 \0", "HTTP/1.1 200", "ICY 200 OK", "\r\n\r\nHTTP/1.1 200 OK"],
)
async def test_status_line_needs_only_a_status_code(tmp_path: Path, whole: bytes, start: str) -> None:
    for early in ("", "HTTP/2 103 \r\nLink </x>\r\n\r\n"):
        answer = f"{early}{start}\r\nContent-Length: {len(whole)}\r\n\r\n".encode() + whole
        assert (await fetch(tmp_path, answer)).path.read_bytes() == whole


async def test_a_malformed_redirect_is_followed(tmp_path: Path, whole: bytes) -> None:
    redirect = b"HTTP/2 302\r\nX Id: 5\r\nLocation : /elsewhere\r\nContent-Length: undefined\r\n\r\n"
    video = await fetch(tmp_path, redirect, b"HTTP/2 200\r\n\r\n" + whole)
    assert video.path.read_bytes() == whole


def ok(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize("status", [201, 202, 203, 206, 218, 226, 299])
async def test_video_is_fetched_with_any_2xx_status(tmp_path: Path, whole: bytes, status: int) -> None:
    video = await fetch(tmp_path, ok(whole, f"{status} X"))
    assert video.path.read_bytes() == whole
    assert video.warnings == ()


@pytest.mark.parametrize(
    "content_range", ["bytes 0-{last}/{size}", "bytes 0-{last}/*", "bytes=0-{last}", "0-{last}/{size}", ""]
)
async def test_unrequested_partial_content_may_be_the_whole_file(
    tmp_path: Path, whole: bytes, content_range: str
) -> None:
    header_value = content_range.format(last=len(whole) - 1, size=len(whole))
    video = await fetch(tmp_path, ok(whole, "206 Partial Content", f"Content-Range: {header_value}\r\n"))
    assert video.path.read_bytes() == whole


async def test_unrequested_partial_content_is_completed_by_the_next_try(tmp_path: Path, whole: bytes) -> None:
    half = len(whole) // 2
    headers = 'ETag: "1"\r\nContent-Range: bytes {}-{}/{}\r\n'
    first = ok(whole[:half], "206 Partial Content", headers.format(0, half - 1, len(whole)))
    rest = ok(whole[half:], "206 Partial Content", headers.format(half, len(whole) - 1, len(whole)))
    async with serving(first, rest) as server, guarded_client(allow_private_hosts=True) as web:
        path = tmp_path / "video.mp4"
        with pytest.raises(CutDownloadError, match=f"expected {len(whole):,} bytes, got {half:,}"):
            await download(web, server.url("/v.mp4"), path, max_bytes=100_000)
        await download(web, server.url("/v.mp4"), path, max_bytes=100_000)
    assert path.read_bytes() == whole
    assert f"Range: bytes={half}-" in server.requests[1]


async def test_status_without_a_body_raises_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedVideoError, match="is empty"):
        await fetch(tmp_path, b"HTTP/1.1 204 No Content\r\n\r\n")
    with pytest.raises(DownloadError, match="HTTP 300"):
        await fetch(tmp_path, ok(b"", "300 Multiple Choices"))


WRAPPINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "zlib": zlib.compress,
    "deflate": lambda data: zlib.compress(data)[2:-4],
    "a ZIP": lambda data: zipped(b"Read me.", data),
    "base64": lambda data: b'{"isBase64Encoded":true,"body":"' + base64.b64encode(data) + b'"}',
    "a byte order mark or blank lines": lambda data: b"\xef\xbb\xbf\r\n" + data,
}


@pytest.mark.parametrize("name", WRAPPINGS)
async def test_wrapped_video_is_archived_unwrapped(tmp_path: Path, whole: bytes, name: str) -> None:
    video = await fetch(tmp_path, ok(WRAPPINGS[name](whole)))
    assert video.path.read_bytes() == whole
    assert video.warnings == (f"the video came wrapped in {name}, and is archived unwrapped",)


@pytest.mark.parametrize("name", WRAPPINGS)
async def test_wrapped_video_that_does_not_play_is_kept_unchanged(tmp_path: Path, whole: bytes, name: str) -> None:
    body = WRAPPINGS[name](whole[: len(whole) // 2])
    with pytest.raises(DamagedVideoError) as caught:
        await fetch(tmp_path / "a", ok(body), last_try=True)
    assert caught.value.retryable
    video = await fetch(tmp_path / "a", ok(body), last_try=True, now=A_DAY_LATER)
    assert video.facts is None
    assert video.path.read_bytes() == body
    assert not any("came wrapped" in warning for warning in video.warnings)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("name", WRAPPINGS)
async def test_a_video_that_is_both_wrapped_and_cut_is_kept(tmp_path: Path, whole: bytes, name: str) -> None:
    body = WRAPPINGS[name](whole)[: -len(whole) // 3]
    video = await fetch(tmp_path, ok(body), last_try=True, now=A_DAY_LATER)
    assert (video.facts, video.path.read_bytes()) == (None, body)


async def test_wrapped_page_is_never_archived_as_a_video(tmp_path: Path) -> None:
    page = gzip.compress(b"<!doctype html><title>Expired</title>")
    with pytest.raises(DamagedVideoError):
        await fetch(tmp_path, ok(page), last_try=True, now=SUCCEEDED_AT + timedelta(days=14))


async def test_wrapped_video_with_a_wrong_content_length_is_archived(tmp_path: Path, whole: bytes) -> None:
    """This happens if a proxy compresses the body, and keeps the length of the uncompressed bytes."""
    packed = gzip.compress(whole)
    answer = ok(b"", headers='ETag: "1"\r\n').replace(b"Length: 0", b"Length: %d" % len(whole)) + packed
    for _ in range(2):
        with pytest.raises(CutDownloadError):
            await fetch(tmp_path, answer)
    video = await fetch(tmp_path, answer, last_try=True)
    assert video.path.read_bytes() == whole
