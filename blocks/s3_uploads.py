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
"""32 MiB: a file up to this size is sent by one request."""
IN_MEMORY_BYTES: Final = 1_048_576
"""A file up to this size is sent from memory, by the client of small objects. Of larger ones malloc would keep for each
thread what it has once had: 30 videos of 20 MB left 60 MB behind."""
ADDED_BY: Final = ("AWS_CHECKSUM_", "AWS_SERVER_SIDE_", "AWS_SSE_")
"""Variables for which only obstore adds checksums and encryption: if one is set, it sends larger files as well."""
PIECE_BYTES: Final = 262_144
BYTES_PER_SECOND: Final = 125_000
"""One megabit per second: an upload that is slower is given up."""
UPLOADERS: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="upload")
"""All uploads of files in this process."""

Attributes = Mapping[str, str]
"""`Content-Disposition` and `Cache-Control`; every other name is the object's own metadata, in ASCII."""


@dataclass(frozen=True)
class Uploads:
    """Uploads of files into one bucket. Each call blocks, and raises what the clients raise."""

    connection: StoreConnection
    bucket: str
    minio: Minio
    _stores: dict[tuple[int, str | None], S3Store] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Made once for each size up to the next power of two: a client takes 5 ms of processor to make."""

    @functools.cached_property
    def _http(self) -> httpx.Client:
        return self.connection.http()  # of TLS, to make one takes 20 ms of processor

    def close(self) -> None:
        """Closes what is kept for the next upload."""
        if "_http" in vars(self):
            self._http.close()

    def put(self, name: str, path: Path, etag: str | None, content_type: str, attributes: Attributes) -> None:
        """Sends a file by one request, if the object has this etag, or, with None, if it does not exist."""
        size_bytes = path.stat().st_size
        if size_bytes > IN_MEMORY_BYTES and not any(variable.startswith(ADDED_BY) for variable in os.environ):
            condition = {"If-Match": etag} if etag else {"If-None-Match": "*"}
            return self._send(name, path, condition, content_type, attributes)
        labels, store = {"Content-Type": content_type, **attributes}, self._store(size_bytes)
        mode: PutMode = {"e_tag": etag} if etag else "create"
        obstore.put(store, name, path.read_bytes(), attributes=labels, mode=mode, use_multipart=False)
        return None

    def in_parts(self, name: str, path: Path) -> None:
        """Sends a file in parts, whatever was there: S3 clients know no condition for parts."""
        if not self.minio.fput_object(self.bucket, name, str(path)).etag:
            # S3 says 200 while it puts the parts together, and only then in the body that it could not.
            raise ReplyError(Reply(200, "InternalError", "the parts were not put together"))

    def copy(self, source: str, name: str, size_bytes: int, content_type: str) -> None:
        """Lets the store copy an object of at most 5 GiB, if there is none of the new name."""
        # The copy is an upload of one part, which takes its type from the client and not from the source.
        obstore.copy(self._store(size_bytes, content_type), source, name, overwrite=False)

    def label(self, name: str, content_type: str, attributes: Attributes) -> None:
        """Gives an object its attributes, by a copy onto itself: a copy carries none."""
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
        """Sends a file from the disk, signed with its SHA-256. Neither S3 client can, under a condition."""
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
