"""Downloads from a scripted host on loopback: complete, too large, too slow, rejected, or to a full disk."""

# ruff: noqa: ASYNC240 - the tests read small local files between two calls

import errno
import os
import ssl
import sys
from pathlib import Path

import httpx
import pytest

from flows.media.downloads import download
from flows.media.guarded_client import guarded_client
from flows.media.media_errors import (
    DamagedVideoError,
    DownloadError,
    ForbiddenByHostError,
    ForbiddenUrlError,
    MediaError,
    ResultExpiredError,
)
from tests.support.authority import make_authority, refusing_after_the_handshake, server_context

from .file_host import VIDEO, Host, fetch, interrupt_at_4000, part_path


async def test_file_is_downloaded_completely(host: Host, path: Path) -> None:
    reports: list[int] = []
    found = await fetch(host.url, path, report=reports.append)
    assert found == VIDEO
    assert list(path.parent.iterdir()) == [path]
    assert reports[-1] == len(VIDEO)
    assert host.requested[0]["accept-encoding"] == "identity"
    assert "authorization" not in host.requested[0]


async def test_file_larger_than_many_buffers_is_downloaded_completely(host: Host, path: Path) -> None:
    host.body = os.urandom(3_000_001)
    assert await fetch(host.url, path, max_bytes=3_000_001) == host.body


async def test_response_without_content_length_is_read_to_the_end(host: Host, path: Path) -> None:
    host.sends_length = False
    reports: list[int] = []
    assert await fetch(host.url, path, report=reports.append) == VIDEO
    assert reports[-1] == len(VIDEO)


async def test_existing_file_is_replaced(host: Host, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"older")
    await fetch(host.url, path)
    assert path.read_bytes() == VIDEO


# What is rejected


@pytest.mark.parametrize("sends_length", [True, False])
async def test_empty_file_is_reported_as_damaged(host: Host, path: Path, sends_length: bool) -> None:
    host.body, host.sends_length = b"", sends_length
    with pytest.raises(DamagedVideoError, match="is empty") as caught:
        await fetch(host.url, path)
    assert caught.value.retryable
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("sends_length", [True, False])
async def test_file_over_size_limit_is_rejected(host: Host, path: Path, sends_length: bool) -> None:
    host.body, host.sends_length = VIDEO * 40, sends_length
    size = len(host.body)
    assert await fetch(host.url, path, max_bytes=size) == host.body
    path.unlink()
    reports: list[int] = []
    with pytest.raises(DownloadError, match="larger than 409,599 bytes") as caught:
        await fetch(host.url, path, max_bytes=size - 1, report=reports.append)
    assert not caught.value.retryable
    assert list(path.parent.iterdir()) == []
    assert not sends_length or reports == []  # with a declared length, it is rejected before it is read


async def test_endless_body_is_abandoned_at_the_limit(host: Host, path: Path) -> None:
    host.body, host.sends_length = bytes(100_000_000), False
    reports: list[int] = []
    with pytest.raises(DownloadError, match="larger"):
        await fetch(host.url, path, max_bytes=1_000_000, report=reports.append)
    assert max(reports) <= 1_000_000
    assert list(path.parent.iterdir()) == []


async def test_slow_download_times_out_and_is_retryable(host: Host, path: Path) -> None:
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
async def test_error_status_is_reported(
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


async def test_guarded_client_rejects_private_host(host: Host, path: Path) -> None:
    async with guarded_client(allow_private_hosts=False) as client:
        with pytest.raises(ForbiddenUrlError):
            await download(client, host.url, path, max_bytes=1000)
    assert host.requested == []


async def test_unreachable_host_raises_retryable_error(path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        await fetch("http://127.0.0.1:1024/x?sig=secret", path)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


# The disk


@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nclip"])
async def test_tls_error_after_handshake_is_blamed_on_host_not_disk(
    path: Path, tmp_path: Path, response: bytes
) -> None:
    (tmp_path / "authority").mkdir()
    authority = make_authority(tmp_path / "authority", "own.example")
    client = guarded_client(
        allow_private_hosts=True, verify=ssl.create_default_context(cafile=str(authority / "ca.pem"))
    )
    with refusing_after_the_handshake(server_context(authority), response) as port:
        async with client:
            with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*(could not be fetched|was cut)") as cut:
                await download(client, f"https://127.0.0.1:{port}/v.mp4", path, max_bytes=1_000)
    assert cut.value.retryable


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is a disk that is always full, on Linux")
async def test_error_for_full_disk_names_the_folder(host: Host, path: Path) -> None:
    path.parent.mkdir()
    part_path(path).symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="make room there") as caught:
        await fetch(host.url, path)
    assert str(path.parent) in str(caught.value)
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


async def test_file_in_place_of_folder_raises_error(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written") as caught:
        await fetch(host.url, tmp_path / "file" / "video.mp4")
    assert not caught.value.retryable


async def test_no_file_is_left_open(host: Host, path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        await interrupt_at_4000(host, path)
        host.cuts = []
        await fetch(host.url, path)
    after = len(list(Path("/proc/self/fd").iterdir())) if before else 0
    assert after <= before + 1
