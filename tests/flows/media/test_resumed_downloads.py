"""Interrupted downloads: which are resumed, and which start over."""

# ruff: noqa: ASYNC240 - the tests read small local files between two calls

import asyncio
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.media.media_errors import DownloadError

from .file_host import ETAG, VIDEO, Host, fetch, hosting, interrupt_at_4000, part_path


def note_path(path: Path) -> Path:
    return path.with_name("video.mp4.part.json")


async def test_interrupted_download_reports_bytes_received_and_is_resumed(host: Host, path: Path) -> None:
    host.cuts = [4000]
    with pytest.raises(DownloadError, match="expected 10,240 bytes, got 4,000") as caught:
        await fetch(host.url, path)
    assert caught.value.retryable
    assert "secret" not in f"{caught.value} {vars(caught.value)} {note_path(path).read_text()}"
    assert not path.exists()
    assert part_path(path).read_bytes() == VIDEO[:4000]

    reports: list[int] = []
    fresh = host.url.replace("secret", "another-signature")
    found = await fetch(fresh, path, report=reports.append)
    assert found == VIDEO
    assert host.ranges == ["whole", "bytes=4000-"]
    assert host.requested[1]["if-range"] == ETAG
    assert reports[0] > 4000
    assert list(path.parent.iterdir()) == [path]


@given(
    body=st.binary(min_size=1, max_size=3000),
    cuts=st.lists(st.integers(0, 3000), max_size=5),
    etag=st.sampled_from([ETAG, 'W/"v1"', None]),
    honors_range=st.booleans(),
    sends_length=st.just(True) | st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_file_is_identical_wherever_download_is_interrupted(
    body: bytes, cuts: list[int], etag: str | None, honors_range: bool, sends_length: bool
) -> None:
    cuts = cuts if sends_length else []  # without a length, an interruption looks like the end
    faulty = Host(body=body, etag=etag, honors_range=honors_range, sends_length=sends_length, cuts=list(cuts))
    with tempfile.TemporaryDirectory() as folder:
        async with hosting(faulty) as host:
            for _ in range(len(cuts) + 1):
                try:
                    found = await fetch(host.url, Path(folder) / "video.mp4")
                    break
                except DownloadError as error:
                    assert error.retryable  # noqa: PT017 - raised by any number of tries
        assert found == body
        assert [entry.name for entry in Path(folder).iterdir()] == ["video.mp4"]


async def test_changed_file_is_downloaded_from_the_start(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.body, host.etag = VIDEO[::-1], '"v2"'
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO[::-1]
    assert host.ranges == ["whole", "bytes=4000-"]


@pytest.mark.parametrize("etag", ['W/"v1"', "v1", None])
async def test_without_a_strong_etag_nothing_is_resumed(host: Host, path: Path, etag: str | None) -> None:
    host.etag = etag
    await interrupt_at_4000(host, path)
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges == ["whole", "whole"]


async def test_resume_note_is_valid_only_for_response_it_was_written_for(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.body, host.etag, host.cuts = VIDEO[::-1], None, [100]
    with pytest.raises(DownloadError):
        await fetch(host.url, path)
    host.body, host.etag = VIDEO, ETAG
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges == ["whole", "bytes=4000-", "whole"]


async def test_download_restarts_if_host_ignores_range(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.honors_range = False
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert len(host.requested) == 2


async def test_file_that_became_shorter_is_downloaded_from_the_start(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.body = VIDEO[:100]
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO[:100]
    assert host.ranges == ["whole", "bytes=4000-", "whole"]  # the second request gets a 416


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
async def test_range_response_that_does_not_fit_is_discarded(host: Host, path: Path, content_range: str) -> None:
    await interrupt_at_4000(host, path)
    host.content_range = lambda start, size: content_range
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges == ["whole", "bytes=4000-", "whole"]


async def test_range_response_with_another_etag_is_discarded(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    wrong = 'HTTP/1.1 206 X\r\nETag: "v2"\r\nContent-Range: bytes 4000-10239/10240\r\nContent-Length: 6240\r\n\r\n'
    host.raw_response = wrong.encode() + bytes(6240)
    with pytest.raises(DownloadError, match="206"):
        await fetch(host.url, path)
    assert host.ranges == ["whole", "bytes=4000-", "whole"]
    assert not path.exists()


async def test_short_range_response_counts_as_interruption(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.raw_response = (
        b"HTTP/1.1 206 X\r\nContent-Range: bytes 4000-4999/10240\r\nContent-Length: 1000\r\n\r\n" + VIDEO[4000:5000]
    )
    with pytest.raises(DownloadError, match="expected 10,240 bytes, got 5,000"):
        await fetch(host.url, path)
    host.raw_response = None
    assert await fetch(host.url, path) == VIDEO
    assert host.ranges[-1] == "bytes=5000-"


@pytest.mark.parametrize("note", ["", "{", "[]", "{}", '{"source": 1, "etag": 2, "total": 3}', "\xff"])
async def test_invalid_resume_note_restarts_download(host: Host, path: Path, note: str) -> None:
    await interrupt_at_4000(host, path)
    note_path(path).write_text(note)
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges == ["whole", "whole"]


async def test_partial_download_of_another_url_is_not_resumed(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.body = VIDEO[::-1]
    await fetch(host.url.replace("video.mp4", "other.mp4"), path)
    assert path.read_bytes() == VIDEO[::-1]
    assert host.ranges == ["whole", "whole"]


async def test_cancelled_download_can_be_completed_later(host: Host, path: Path) -> None:
    started = asyncio.Event()
    host.hold = asyncio.Event()
    task = asyncio.create_task(fetch(host.url, path, report=lambda *_: started.set()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    host.hold.set()
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO


async def test_failed_resume_keeps_partial_download(host: Host, path: Path) -> None:
    await interrupt_at_4000(host, path)
    host.status, host.honors_range = 503, False
    with pytest.raises(DownloadError, match="503"):
        await fetch(host.url, path)
    host.status, host.honors_range = 200, True
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges[-1] == "bytes=4000-"


async def test_range_response_in_another_encoding_is_discarded(host: Host, path: Path) -> None:
    """Some hosts use the same ETag for compressed and plain bytes, and compress only some of their responses."""
    await interrupt_at_4000(host, path)
    host.extra_headers = "Content-Encoding: gzip\r\n"
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges == ["whole", "bytes=4000-", "whole"]


async def test_response_with_content_encoding_is_resumed(host: Host, path: Path) -> None:
    host.extra_headers = "Content-Encoding: aws-chunked\r\n"
    await interrupt_at_4000(host, path)
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO
    assert host.ranges == ["whole", "bytes=4000-"]
