"""Downloads one file from an external host to the local disk: complete or not at all. A cut download is resumed.

Bytes go to ``<name>.part``, and only a complete file gets its final name. Next to an incomplete ``.part`` is
``<name>.part.json`` with the strong ETag, so that the next call can request only the rest.
"""

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import re
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import httpx

from apixo.constants import RESULT_DAYS
from flows.media.guarded_client import compatible_user_agent, open_stream
from flows.media.media_errors import (
    CutDownloadError,
    DamagedVideoError,
    DownloadError,
    ForbiddenByHostError,
    ResultExpiredError,
    display_url,
    is_retryable_status,
)

Report = Callable[[int], None]
"""``report(received_bytes)`` after each piece."""

DEFAULT_TOTAL_SECONDS = 900.0
"""For the whole download: a 12 s video of some 20 MB needs 23 kB/s. A host that only trickles must be cut off."""

_BUFFER_BYTES = 256 * 1024  # one switch to a thread per this many, not per network read
_EXPIRED_STATUSES = frozenset({404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


async def download(
    client: httpx.AsyncClient,
    url: str,
    path: Path,
    *,
    max_bytes: int,
    total_seconds: float = DEFAULT_TOTAL_SECONDS,
    report: Report | None = None,
) -> None:
    """Streams a URL to a file, resuming an earlier incomplete download. Memory stays below 1 MB.

    The bytes are stored as they arrive, whatever content type or encoding the host declares: see
    `flows.media.wrappings`.

    Args:
        client: From `flows.media.guarded_client.guarded_client`.
        path: The file to write; its folder is created, and an existing file is replaced. Only one caller may use the
            folder at a time (see `flows.media.work_directory`): two calls at once would mix their bytes.
        max_bytes: Larger files are rejected; bytes are counted as they arrive.

    Raises:
        ForbiddenUrlError: the URL or a redirect may not be fetched.
        ResultExpiredError: the host answers 403, 404 or 410.
        DownloadError: the file was cut, took too long, is too large, or could not be written. What arrived is kept for
            the next call, if the host sent a strong ETag.
        DamagedVideoError: the host sent an empty file.
    """
    shown = display_url(url)
    part = _Part(path, url)
    try:
        async with asyncio.timeout(total_seconds) as limit:
            await asyncio.to_thread(part.open)
            try:
                await _receive(client, url, part, max_bytes, report)
            except ForbiddenByHostError:
                # Some hosts accept only clients that identify as a browser, as search engines also do.
                headers = {"User-Agent": compatible_user_agent()}
                await _receive(client, url, part, max_bytes, report, headers)
            await asyncio.to_thread(part.finish)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DownloadError(
            f"{shown} took longer than {total_seconds:g} s, {part.size:,} bytes arrived: try again to fetch the rest"
        ) from error
    except OSError as error:
        raise _disk_error(error, path.parent) from error
    finally:
        part.close()


async def _receive(
    client: httpx.AsyncClient,
    url: str,
    part: "_Part",
    max_bytes: int,
    report: Report | None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Fills the part. Tries to resume only once: after an answer that does not fit, it starts over."""
    if part.size:
        async with open_stream(client, url, headers={**(headers or {}), **part.resume_headers()}) as response:
            if response.status_code == 206 and part.fits(response):
                return await _write(response, url, part, max_bytes, report)
            if response.is_success and response.status_code != 206:  # the file changed, or the host ignores Range
                await asyncio.to_thread(part.restart, response)
                return await _write(response, url, part, max_bytes, report)
            if response.status_code not in {206, 416}:
                raise _status_error(response.status_code, url)
    async with open_stream(client, url, headers=headers) as response:
        # Also 203 from a proxy that changed something, or an unrequested 206 from a cache: the bytes decide.
        if not response.is_success or not _starts_at_first_byte(response):
            raise _status_error(response.status_code, url)
        await asyncio.to_thread(part.restart, response)
        return await _write(response, url, part, max_bytes, report)


async def _write(response: httpx.Response, url: str, part: "_Part", max_bytes: int, report: Report | None) -> None:
    shown = display_url(url)
    total = _total_bytes(response)
    buffer = bytearray()
    received = part.size
    try:
        if (total or 0) <= max_bytes:
            async for chunk in response.aiter_raw():
                buffer += chunk
                received += len(chunk)
                if received > max_bytes:
                    break
                if len(buffer) >= _BUFFER_BYTES:
                    await asyncio.to_thread(part.write, bytes(buffer))
                    buffer.clear()
                if report is not None:
                    report(received)
    except (httpx.TransportError, ssl.SSLError) as error:
        await asyncio.to_thread(part.write, bytes(buffer))
        raise _cut_error(url, received, total) from error
    if max(received, total or 0) > max_bytes:
        part.discard()
        raise DownloadError(
            f"{shown} is larger than {max_bytes:,} bytes and was rejected: raise the limit if that size is intended",
            retryable=False,
        )
    await asyncio.to_thread(part.write, bytes(buffer))
    if total is not None and received != total:
        raise _cut_error(url, received, total)
    if received == 0:
        part.discard()
        raise DamagedVideoError(f"{shown} is empty: poll the task again, then fetch it again")


class _Part:
    """The incomplete file, and the metadata for resuming it. Methods that use the disk block: most run in a thread."""

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._part = part_of(path)
        self._metadata_path = path.with_suffix(f"{path.suffix}.part.json")
        # After polling again, the URL has another signature. So the query is ignored.
        self._source = hashlib.sha256(display_url(url).encode()).hexdigest()
        self._fd = -1
        self._etag = self._encoding = ""
        self._total: int | None = None
        # A cancelled caller closes the file while its last call may still run, or even begin, in a thread. By then, the
        # closed file's descriptor may belong to another file. So every use holds the lock.
        self._lock = threading.Lock()
        self._closed = False
        self.size = 0

    def open(self) -> None:
        """Opens the part for this call, and keeps what can be resumed."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self._closed:
                return
            fd = self._fd = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._read_metadata(os.fstat(fd).st_size)

    def _read_metadata(self, size: int) -> None:
        try:
            metadata = json.loads(self._metadata_path.read_bytes())
            if metadata["source"] == self._source and size < metadata["total"]:
                self._etag, self._total, self.size = str(metadata["etag"]), int(metadata["total"]), size
                self._encoding = str(metadata["encoding"])
        except (OSError, ValueError, KeyError, TypeError):
            self.size = 0  # no metadata, or only half of it: start over

    def resume_headers(self) -> dict[str, str]:
        return {"Range": f"bytes={self.size}-", "If-Range": self._etag}

    def fits(self, response: httpx.Response) -> bool:
        """Whether a 206 continues exactly where the part ends, in the same file."""
        found = _range(response)
        return (
            found is not None
            and int(found[1]) == self.size
            and found[3] == str(self._total)
            and int(found[1]) <= int(found[2]) < int(found[3])
            and response.headers.get("etag", self._etag) == self._etag
            # Some hosts compress only some of their answers, and give both kinds the same ETag.
            and response.headers.get("content-encoding", "") == self._encoding
        )

    def restart(self, response: httpx.Response) -> None:
        """Empties the part, and stores how the answer that will fill it can be resumed."""
        self._metadata_path.unlink(missing_ok=True)  # first: it must never describe bytes of another answer
        with self._lock:
            if os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, 0)
            self.size = 0
        etag = response.headers.get("etag", "")
        total = _total_bytes(response)
        if etag.startswith('"') and etag.isprintable() and total is not None:
            encoding = response.headers.get("content-encoding", "")
            metadata = {"source": self._source, "etag": etag, "total": total, "encoding": encoding}
            self._metadata_path.write_text(json.dumps(metadata))

    def write(self, data: bytes) -> None:
        with self._lock:
            rest = memoryview(data)
            while rest:
                written = os.write(self._fd, rest)
                self.size += written
                rest = rest[written:]

    def finish(self) -> None:
        """Renames the part to the final file. Safe against a power failure."""
        with self._lock:
            os.fsync(self._fd)
            self._part.replace(self._path)
        self._metadata_path.unlink(missing_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        self._metadata_path.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)

    def close(self) -> None:
        with self._lock:
            fd, self._fd, self._closed = self._fd, -1, True
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def part_of(path: Path) -> Path:
    """The path for the bytes of a file until it is complete."""
    return path.with_suffix(f"{path.suffix}.part")


def _range(response: httpx.Response) -> re.Match[str] | None:
    """First byte, last byte and size of the whole file, if the answer is a 206 with a valid Content-Range."""
    text = response.headers.get("content-range", "") if response.status_code == 206 else ""
    return _CONTENT_RANGE.fullmatch(text)


def _starts_at_first_byte(response: httpx.Response) -> bool:
    """Whether an answer may start at the file's first byte. An unreadable range does not rule it out."""
    found = _range(response)
    return found is None or int(found[1]) == 0


def _total_bytes(response: httpx.Response) -> int | None:
    """The size of the whole file, according to the host."""
    found = _range(response)
    if found is not None and found[3] != "*":
        return int(found[3])
    length = response.headers.get("content-length")  # digits, if any: see `flows.media.repaired_http`
    return None if length is None else int(length)


def _cut_error(url: str, received: int, total: int | None) -> DownloadError:
    expected = "an unknown number of" if total is None else f"{total:,}"
    return CutDownloadError(
        f"{display_url(url)} was cut: expected {expected} bytes, got {received:,}; try again to fetch the rest"
    )


def _status_error(status: int, url: str) -> DownloadError:
    shown = display_url(url)
    if status == 403:
        return ForbiddenByHostError(
            f"{shown} answers HTTP 403: the URL may have expired, or its host rejects this program or this network. "
            "Poll the task again, which may give a fresh URL; if that is rejected as well, open it in a "
            "browser, and set SORA_CONTACT to a URL or mail address of yours, which some hosts require"
        )
    if status in _EXPIRED_STATUSES:
        return ResultExpiredError(
            f"{shown} answers HTTP {status}: results are valid for {RESULT_DAYS} days. "
            "Poll the task again, which may give a fresh URL"
        )
    retryable = is_retryable_status(status)
    advice = "try again later" if retryable else "poll the task again, which may give a fresh URL"
    return DownloadError(f"{shown} answers HTTP {status}: {advice}", retryable=retryable)


def _disk_error(error: OSError, folder: Path) -> DownloadError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DownloadError(f"The disk of {folder} is full: make room there, then try again")
    return DownloadError(
        f"{folder} cannot be written ({error.strerror}): check that it is a folder this process may write to",
        retryable=error.errno == errno.EIO,
    )
