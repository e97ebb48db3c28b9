"""Downloads from a scripted host on loopback: cut, resumed, changed in between, too large, too slow, disk full."""

# ruff: noqa: ASYNC240 - the tests look at small local files between two calls

import asyncio
import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.media.downloads import DownloadedFile, download
from flows.media.errors import (
    DamagedVideoError,
    DownloadError,
    ForbiddenByHostError,
    ForbiddenUrlError,
    MediaError,
    ResultExpiredError,
)
from flows.media.hosts import guarded_client

FILM = bytes(range(256)) * 40
ETAG = '"v1"'


@dataclass
class Host:
    """Serves one file; each field bends one rule. ``cuts`` are the body lengths after which it hangs up, in turn."""

    body: bytes = FILM
    etag: str | None = ETAG
    status: int = 200
    cuts: list[int] = field(default_factory=list)
    honours_range: bool = True
    says_length: bool = True
    content_range: Callable[[int, int], str] = lambda start, size: f"bytes {start}-{size - 1}/{size}"
    extra: str = ""
    raw: bytes | None = None
    pause_seconds: float = 0.0
    asked: list[dict[str, str]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/video.mp4?sig=secret"

    @property
    def ranges(self) -> list[str]:
        return [request.get("range", "whole") for request in self.asked]

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
            request = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            self.asked.append(request)
            if self.raw is not None:
                writer.write(self.raw)
                return
            await self.send(request, writer)
        except ConnectionError:
            pass  # a client that has seen enough
        finally:
            writer.close()

    async def send(self, request: dict[str, str], writer: asyncio.StreamWriter) -> None:
        start, status, size = 0, self.status, len(self.body)
        if self.honours_range and request.get("if-range") in {None, self.etag} and "range" in request:
            start = int(request["range"].removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < size else 416
        body = self.body[start:] if status in {200, 206} else b""
        head = f"HTTP/1.1 {status} X\r\nContent-Type: video/mp4\r\n{self.extra}"
        head += f"Content-Length: {len(body)}\r\n" if self.says_length else ""
        head += f"ETag: {self.etag}\r\n" if self.etag else ""
        head += f"Content-Range: {self.content_range(start, size)}\r\n" if status == 206 else ""
        writer.write(head.encode() + b"\r\n")
        for at in range(0, len(body), 1 if self.pause_seconds else 65_536):
            if self.cuts:
                writer.write(body[: self.cuts[0]])
                await writer.drain()
                self.cuts.pop(0)
                return
            writer.write(body[at : at + (1 if self.pause_seconds else 65_536)])
            await writer.drain()
            await asyncio.sleep(self.pause_seconds)


@asynccontextmanager
async def hosting(host: Host) -> AsyncIterator[Host]:
    listener = await asyncio.start_server(host.answer, "127.0.0.1", 0)
    host.port = listener.sockets[0].getsockname()[1]
    try:
        yield host
    finally:
        listener.close()
        await listener.wait_closed()


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with hosting(Host()) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "video.mp4"


async def fetch(
    url: str,
    path: Path,
    *,
    max_bytes: int = 10_000_000,
    total_seconds: float = 30,
    report: Callable[[int, int | None], None] | None = None,
) -> DownloadedFile:
    async with guarded_client(allow_private_hosts=True) as client:
        return await download(client, url, path, max_bytes=max_bytes, total_seconds=total_seconds, report=report)


def part_of(path: Path) -> Path:
    return path.with_name("video.mp4.part")


def note_of(path: Path) -> Path:
    return path.with_name("video.mp4.part.json")


async def test_a_file_arrives_whole(host: Host, path: Path) -> None:
    reports: list[tuple[int, int | None]] = []
    found = await fetch(host.url, path, report=lambda received, total: reports.append((received, total)))
    assert found == DownloadedFile(path, len(FILM), hashlib.sha256(FILM).hexdigest(), "video/mp4")
    assert path.read_bytes() == FILM
    assert list(path.parent.iterdir()) == [path]
    assert reports[-1] == (len(FILM), len(FILM))
    assert host.asked[0]["accept-encoding"] == "identity"
    assert "authorization" not in host.asked[0]


async def test_a_file_of_many_buffers_arrives_whole(host: Host, path: Path) -> None:
    host.body = os.urandom(3_000_001)
    found = await fetch(host.url, path, max_bytes=3_000_001)
    assert found.sha256 == hashlib.sha256(host.body).hexdigest()
    assert path.read_bytes() == host.body


async def test_a_host_that_says_no_length_is_read_to_the_end(host: Host, path: Path) -> None:
    host.says_length = False
    reports: list[tuple[int, int | None]] = []
    assert (await fetch(host.url, path, report=lambda *seen: reports.append(seen))).size_bytes == len(FILM)
    assert reports[-1] == (len(FILM), None)


async def test_an_older_file_is_replaced(host: Host, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"older")
    await fetch(host.url, path)
    assert path.read_bytes() == FILM


# Cut and resumed


async def test_a_cut_download_says_what_came_and_is_resumed(host: Host, path: Path) -> None:
    host.cuts = [4000]
    with pytest.raises(DownloadError, match="expected 10,240 bytes, got 4,000") as caught:
        await fetch(host.url, path)
    assert caught.value.retryable
    assert "secret" not in f"{caught.value} {vars(caught.value)} {note_of(path).read_text()}"
    assert not path.exists()
    assert part_of(path).read_bytes() == FILM[:4000]

    reports: list[tuple[int, int | None]] = []
    fresh = host.url.replace("secret", "another-signature")
    found = await fetch(fresh, path, report=lambda *seen: reports.append(seen))
    assert found.sha256 == hashlib.sha256(FILM).hexdigest()
    assert found.size_bytes == len(FILM)
    assert host.ranges == ["whole", "bytes=4000-"]
    assert host.asked[1]["if-range"] == ETAG
    assert reports[0][0] > 4000
    assert list(path.parent.iterdir()) == [path]


@given(
    body=st.binary(min_size=1, max_size=3000),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    etag=st.sampled_from([ETAG, 'W/"v1"', None]),
    honours_range=st.booleans(),
    says_length=st.just(True) | st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_wherever_it_is_cut_the_file_ends_up_identical(
    body: bytes, cuts: list[int], etag: str | None, honours_range: bool, says_length: bool
) -> None:
    cuts = cuts if says_length else []  # without a length, a cut is an end
    bent = Host(body=body, etag=etag, honours_range=honours_range, says_length=says_length, cuts=list(cuts))
    with tempfile.TemporaryDirectory() as folder:
        async with hosting(bent) as host:
            for _ in range(len(cuts) + 1):
                try:
                    found = await fetch(host.url, Path(folder) / "video.mp4")
                    break
                except DownloadError as error:
                    assert error.retryable  # noqa: PT017 - any number of times
        assert found.path.read_bytes() == body
        assert found.sha256 == hashlib.sha256(body).hexdigest()
        assert [entry.name for entry in Path(folder).iterdir()] == ["video.mp4"]


async def cut_at_4000(host: Host, path: Path) -> None:
    host.cuts = [4000]
    with pytest.raises(DownloadError):
        await fetch(host.url, path)


async def test_a_file_that_changed_in_between_is_fetched_from_the_start(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.body, host.etag = FILM[::-1], '"v2"'
    await fetch(host.url, path)
    assert path.read_bytes() == FILM[::-1]
    assert host.ranges == ["whole", "bytes=4000-"]


@pytest.mark.parametrize("etag", ['W/"v1"', "v1", None])
async def test_without_a_strong_etag_nothing_is_resumed(host: Host, path: Path, etag: str | None) -> None:
    host.etag = etag
    await cut_at_4000(host, path)
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges == ["whole", "whole"]


async def test_a_note_vouches_for_the_answer_it_came_with_only(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.body, host.etag, host.cuts = FILM[::-1], None, [100]
    with pytest.raises(DownloadError):
        await fetch(host.url, path)
    host.body, host.etag = FILM, ETAG
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges == ["whole", "bytes=4000-", "whole"]


async def test_a_host_that_ignores_range_is_read_from_the_start(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.honours_range = False
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert len(host.asked) == 2


async def test_a_file_that_became_shorter_is_fetched_from_the_start(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.body = FILM[:100]
    await fetch(host.url, path)
    assert path.read_bytes() == FILM[:100]
    assert host.ranges == ["whole", "bytes=4000-", "whole"]  # a 416 between them


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-10239/10240",
        "bytes 3999-10239/10240",
        "bytes 4000-10239/20000",
        "bytes 4000-10240/10240",
        "bytes 4000-",
    ],
)
async def test_a_piece_that_does_not_fit_is_not_taken(host: Host, path: Path, content_range: str) -> None:
    await cut_at_4000(host, path)
    host.content_range = lambda start, size: content_range
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges == ["whole", "bytes=4000-", "whole"]


async def test_a_piece_of_another_version_is_not_taken(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    wrong = 'HTTP/1.1 206 X\r\nETag: "v2"\r\nContent-Range: bytes 4000-10239/10240\r\nContent-Length: 6240\r\n\r\n'
    host.raw = wrong.encode() + bytes(6240)
    with pytest.raises(DownloadError, match="206"):
        await fetch(host.url, path)
    assert host.ranges == ["whole", "bytes=4000-", "whole"]
    assert not path.exists()


async def test_a_piece_shorter_than_promised_is_a_cut(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.raw = (
        b"HTTP/1.1 206 X\r\nContent-Range: bytes 4000-4999/10240\r\nContent-Length: 1000\r\n\r\n" + FILM[4000:5000]
    )
    with pytest.raises(DownloadError, match="expected 10,240 bytes, got 5,000"):
        await fetch(host.url, path)
    host.raw = None
    assert (await fetch(host.url, path)).sha256 == hashlib.sha256(FILM).hexdigest()
    assert host.ranges[-1] == "bytes=5000-"


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", '{"source": 1, "etag": 2, "total": 3}', "\xff"])
async def test_a_note_that_is_junk_means_starting_over(host: Host, path: Path, note: str) -> None:
    await cut_at_4000(host, path)
    note_of(path).write_text(note)
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges == ["whole", "whole"]


async def test_the_part_of_another_url_is_not_resumed(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.body = FILM[::-1]
    await fetch(host.url.replace("video.mp4", "other.mp4"), path)
    assert path.read_bytes() == FILM[::-1]
    assert host.ranges == ["whole", "whole"]


async def test_a_resumed_part_is_damaged_by_nobody_else(host: Host, path: Path) -> None:
    """Two runs at once on one file: the second is sent away, the first ends well."""
    await cut_at_4000(host, path)
    started = asyncio.Event()
    host.pause_seconds = 0.0001
    first = asyncio.create_task(fetch(host.url, path, report=lambda *_: started.set()))
    await started.wait()
    with pytest.raises(DownloadError, match="another run") as caught:
        await fetch(host.url, path)
    assert caught.value.retryable
    await first
    assert path.read_bytes() == FILM


async def test_a_cancelled_download_lets_go_and_is_resumed(host: Host, path: Path) -> None:
    started = asyncio.Event()
    host.pause_seconds = 0.001
    task = asyncio.create_task(fetch(host.url, path, report=lambda *_: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    host.pause_seconds = 0
    await fetch(host.url, path)
    assert path.read_bytes() == FILM


# What is refused


@pytest.mark.parametrize("says_length", [True, False])
async def test_an_empty_file_is_damaged(host: Host, path: Path, says_length: bool) -> None:
    host.body, host.says_length = b"", says_length
    with pytest.raises(DamagedVideoError, match="is empty") as caught:
        await fetch(host.url, path)
    assert caught.value.retryable
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("says_length", [True, False])
async def test_a_file_over_the_limit_is_refused(host: Host, path: Path, says_length: bool) -> None:
    host.body, host.says_length = FILM * 40, says_length
    size = len(host.body)
    assert (await fetch(host.url, path, max_bytes=size)).size_bytes == size
    path.unlink()
    reports: list[int] = []
    with pytest.raises(DownloadError, match="larger than 409,599 bytes") as caught:
        await fetch(host.url, path, max_bytes=size - 1, report=lambda received, _: reports.append(received))
    assert not caught.value.retryable
    assert list(path.parent.iterdir()) == []
    assert not says_length or reports == []  # an announced one is refused before it is read


async def test_a_body_that_never_ends_is_left_at_the_limit(host: Host, path: Path) -> None:
    host.body, host.says_length = bytes(100_000_000), False
    reports: list[int] = []
    with pytest.raises(DownloadError, match="larger"):
        await fetch(host.url, path, max_bytes=1_000_000, report=lambda received, _: reports.append(received))
    assert max(reports) <= 1_000_000
    assert list(path.parent.iterdir()) == []


async def test_a_host_that_trickles_ends_and_what_came_is_kept(host: Host, path: Path) -> None:
    host.pause_seconds = 0.01
    with pytest.raises(DownloadError, match=r"longer than 0\.2 s") as caught:
        await fetch(host.url, path, total_seconds=0.2)
    assert caught.value.retryable
    assert not path.exists()


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        (403, ForbiddenByHostError, False),
        (404, ResultExpiredError, False),
        (410, ResultExpiredError, False),
        (400, DownloadError, False),
        (401, DownloadError, False),
        (304, DownloadError, False),
        (408, DownloadError, True),
        (429, DownloadError, True),
        (500, DownloadError, True),
        (503, DownloadError, True),
    ],
)
async def test_another_status_is_said(
    host: Host, path: Path, status: int, kind: type[MediaError], retryable: bool
) -> None:
    host.status = status
    with pytest.raises(kind, match=f"HTTP {status}") as caught:
        await fetch(host.url, path)
    assert type(caught.value) is kind
    assert caught.value.retryable is retryable
    assert "secret" not in str(caught.value)
    if kind is ResultExpiredError:
        assert "15 days" in str(caught.value)


async def test_a_refused_resume_keeps_the_part(host: Host, path: Path) -> None:
    await cut_at_4000(host, path)
    host.status, host.honours_range = 503, False
    with pytest.raises(DownloadError, match="503"):
        await fetch(host.url, path)
    host.status, host.honours_range = 200, True
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges[-1] == "bytes=4000-"


async def test_a_resumed_answer_in_another_encoding_does_not_continue_the_first(host: Host, path: Path) -> None:
    """Some hosts give the compressed and the plain bytes one ETag, and compress only some of their answers."""
    await cut_at_4000(host, path)
    host.extra = "Content-Encoding: gzip\r\n"
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges == ["whole", "bytes=4000-", "whole"]


async def test_an_encoded_answer_is_resumed_as_it_came(host: Host, path: Path) -> None:
    host.extra = "Content-Encoding: aws-chunked\r\n"
    await cut_at_4000(host, path)
    await fetch(host.url, path)
    assert path.read_bytes() == FILM
    assert host.ranges == ["whole", "bytes=4000-"]


async def test_a_private_host_is_refused_by_a_guarded_client(host: Host, path: Path) -> None:
    async with guarded_client(allow_private_hosts=False) as client:
        with pytest.raises(ForbiddenUrlError):
            await download(client, host.url, path, max_bytes=1000)
    assert host.asked == []


async def test_a_host_that_is_away_may_come_back(path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        await fetch("http://127.0.0.1:1024/x?sig=secret", path)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


# The disk


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is a disk that is always full, on Linux")
async def test_a_full_disk_names_its_folder(host: Host, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="make room there") as caught:
        await fetch(host.url, path)
    assert str(path.parent) in str(caught.value)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


async def test_a_folder_that_is_a_file_is_said(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        await fetch(host.url, tmp_path / "file" / "video.mp4")
    assert not caught.value.retryable


async def test_no_file_is_left_open(host: Host, path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        await cut_at_4000(host, path)
        host.cuts = []
        await fetch(host.url, path)
    after = len(list(Path("/proc/self/fd").iterdir())) if before else 0
    assert after <= before + 1
