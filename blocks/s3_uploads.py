"""Uploads of files into a bucket: the blocking calls, and the threads that make them."""

import functools
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import httpx
import obstore
from minio import Minio
from minio.commonconfig import REPLACE, CopySource
from obstore.store import S3Store

from blocks.s3_clients import CONNECT_TIMEOUT_SECONDS, REQUEST_TIMEOUT_SECONDS, StoreConnection
from blocks.s3_replies import NO_ETAG, Reply, ReplyError, parse_body

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore import PutMode

ONE_REQUEST_BYTES: Final = 33_554_432
"""32 MiB: a file up to this size is sent in one request."""
IN_MEMORY_BYTES: Final = 1_048_576
"""A file up to this size is sent from memory, by the client for small objects. For larger files, malloc would keep the
memory of each thread: 30 videos of 20 MB left 60 MB allocated."""
ADDED_BY: Final = ("AWS_CHECKSUM_", "AWS_SERVER_SIDE_", "AWS_SSE_")
"""Variables for checksums and encryption, which only obstore reads: if one is set, obstore sends larger files too."""
PIECE_BYTES: Final = 262_144
BYTES_PER_SECOND: Final = 125_000
"""One megabit per second: a slower upload is aborted."""
UPLOADERS: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="upload")
"""The threads for all file uploads of this process."""

Attributes = Mapping[str, str]
"""`Content-Disposition` and `Cache-Control`; every other name is the object's own metadata, in ASCII."""


@dataclass(frozen=True)
class Uploads:
    """Uploads files into one bucket. Each call blocks, and raises the clients' exceptions."""

    connection: StoreConnection
    bucket: str
    minio: Minio
    _stores: dict[tuple[int, str | None], S3Store] = field(default_factory=dict, init=False, repr=False, compare=False)
    """A client for each power of two of a file's size; creating one takes 5 ms of CPU time."""

    @functools.cached_property
    def _http(self) -> httpx.Client:
        return self.connection.http()  # with TLS, creating one takes 20 ms of CPU time

    def close(self) -> None:
        """Closes the HTTP client that is kept for the next upload."""
        if "_http" in vars(self):
            self._http.close()

    def put(self, name: str, path: Path, etag: str | None, content_type: str, attributes: Attributes) -> None:
        """Sends a file in one request, if the object has this etag, or, with None, if it does not exist."""
        size_bytes = path.stat().st_size
        if size_bytes > IN_MEMORY_BYTES and not any(variable.startswith(ADDED_BY) for variable in os.environ):
            condition = {"If-Match": etag} if etag else {"If-None-Match": "*"}
            return self._send(name, path, condition, content_type, attributes)
        labels, store = {"Content-Type": content_type, **attributes}, self._store(size_bytes)
        mode: PutMode = {"e_tag": etag} if etag else "create"
        obstore.put(store, name, path.read_bytes(), attributes=labels, mode=mode, use_multipart=False)
        return None

    def in_parts(self, name: str, path: Path) -> None:
        """Sends a file in parts, without a condition: S3 clients support none for parts."""
        if not self.minio.fput_object(self.bucket, name, str(path)).etag:
            # S3 answers 200 before it combines the parts; only the body then says that it failed.
            raise ReplyError(Reply(200, "InternalError", "the parts were not put together"))

    def copy(self, source: str, name: str, size_bytes: int, content_type: str) -> None:
        """Lets the store copy an object of at most 5 GiB, if no object has the new name."""
        # The copy is an upload of one part, whose content type comes from the client and not from the source.
        obstore.copy(self._store(size_bytes, content_type), source, name, overwrite=False)

    def label(self, name: str, content_type: str, attributes: Attributes) -> None:
        """Adds an object's attributes, by a copy onto itself: `copy` does not carry them."""
        etag = self.minio.stat_object(self.bucket, name).etag
        self.minio.copy_object(
            self.bucket,
            name,
            CopySource(self.bucket, name, match_etag=etag),
            metadata={"Content-Type": content_type, **attributes},
            metadata_directive=REPLACE,
        )

    def _send(
        self, name: str, path: Path, condition: Mapping[str, str], content_type: str, attributes: Attributes
    ) -> None:
        """Streams a file from disk, signed with its SHA-256. Neither S3 client can do that with a condition."""
        url = self.minio.get_presigned_url("PUT", self.bucket, name).partition("?")[0]
        with path.open("rb") as file:
            size_bytes, sha256 = os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            headers = {
                "Content-Length": str(size_bytes),
                "Content-Type": content_type,
                **condition,
                **{_header(attribute): value for attribute, value in attributes.items()},
            }
            signed = self.connection.signed("PUT", url, headers, sha256)
            seconds = REQUEST_TIMEOUT_SECONDS + size_bytes / BYTES_PER_SECOND
            timeout = httpx.Timeout(REQUEST_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS, read=seconds)
            response = self._http.put(url, content=_pieces(file, seconds), headers=signed, timeout=timeout)
        if not response.is_success:
            raise ReplyError(parse_body(response.status_code, response.text))
        if "etag" not in response.headers:
            raise ReplyError(NO_ETAG)

    def _store(self, size_bytes: int, content_type: str | None = None) -> S3Store:
        most_bytes = max(1 << (size_bytes - 1).bit_length(), IN_MEMORY_BYTES)
        found = self._stores.get((most_bytes, content_type))
        if found is None:
            seconds = REQUEST_TIMEOUT_SECONDS + most_bytes / BYTES_PER_SECOND
            found = self.connection.obstore_client(self.bucket, timeout_seconds=seconds, content_type=content_type)
            self._stores[most_bytes, content_type] = found
        return found


def _pieces(file: BinaryIO, seconds: float) -> Iterator[bytes]:
    ends = time.monotonic() + seconds
    while piece := file.read(PIECE_BYTES):
        if time.monotonic() > ends:
            raise TimeoutError(f"the store accepted less than {BYTES_PER_SECOND:,} bytes per second")
        yield piece


def _header(attribute: str) -> str:
    return attribute if attribute in ("Content-Disposition", "Cache-Control") else f"x-amz-meta-{attribute}"
