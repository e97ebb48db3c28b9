"""How a file gets into a bucket: the blocking calls, and the threads that make them."""

import mmap
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from threading import BoundedSemaphore
from typing import Final

import obstore
from minio import Minio
from minio.commonconfig import REPLACE, CopySource
from obstore.store import S3Store

from blocks.s3_clients import REQUEST_TIMEOUT_SECONDS, Connection
from blocks.s3_errors import NO_ETAG, ReplyError, parse_body

ONE_REQUEST_BYTES: Final = 33_554_432
"""32 MiB: a file up to this size is sent from memory, by one request."""
BYTES_PER_SECOND: Final = 125_000
"""One megabit a second: a request with a file that is slower is given up."""
SMALLEST_BYTES: Final = 1_048_576
"""Up to this size, files share a client and its time-out."""
SIGNATURE_SECONDS: Final = 3_600
"""How long an address signed for one request of our own stays valid. It counts until the request begins, and from our
own clock, which may be behind the store's by the 15 minutes that S3 allows."""
UPLOADERS: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="upload")
"""All uploads of files in this process."""
LARGE_BYTES: Final = 8_388_608
LARGE_AT_ONCE: Final = BoundedSemaphore(2)
"""Of files larger than 8 MiB. Each is in memory as a whole, and four at once took the room of eight."""


Attributes = Mapping[str, str]
"""`Content-Disposition` and `Cache-Control`; every other name is metadata of the object's own, in ASCII."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """Uploads of files into one bucket. Each call blocks, and raises what the clients raise."""

    connection: Connection
    bucket: str
    minio: Minio
    _stores: dict[tuple[int, str | None], S3Store] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Made once for each size up to the next power of two: a client takes 5 ms of processor to make."""

    def create(self, name: str, path: Path, content_type: str, attributes: Attributes) -> None:
        """Sends a file by one request, if no such object exists."""
        labels = {"Content-Type": content_type, **attributes}
        with LARGE_AT_ONCE if path.stat().st_size > LARGE_BYTES else nullcontext():
            data = _content(path)
            store = self._store(len(data))
            obstore.put(store, name, data, attributes=labels, mode="create", use_multipart=False)

    def in_parts(self, name: str, path: Path) -> None:
        """Sends a file in parts, whatever was there: S3 clients know no condition for parts."""
        self.minio.fput_object(self.bucket, name, str(path))

    def copy(self, source: str, name: str, size_bytes: int, content_type: str) -> None:
        """Lets the store copy an object of at most 5 GiB, if there is none of the new name."""
        # The copy is an upload of one part, which takes its type from the client and not from the source.
        obstore.copy(self._store(size_bytes, content_type), source, name, overwrite=False)

    def replace(self, name: str, path: Path, etag: str, content_type: str) -> None:
        """Sends a file by one request from the disk, if the object has this etag. Neither S3 client can."""
        url = self.minio.get_presigned_url("PUT", self.bucket, name, expires=timedelta(seconds=SIGNATURE_SECONDS))
        with self.connection.http() as http, path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            headers = {"If-Match": etag, "Content-Type": content_type, "Content-Length": str(size_bytes)}
            response = http.put(url, content=file, headers=headers)
        if not response.is_success:
            raise ReplyError(parse_body(response.status_code, response.text))
        if "etag" not in response.headers:
            raise ReplyError(NO_ETAG)

    def label(self, name: str, content_type: str, attributes: Attributes) -> None:
        """Gives an object its attributes, by a copy onto itself: neither a copy nor a signed address carries them."""
        etag = self.minio.stat_object(self.bucket, name).etag
        self.minio.copy_object(
            self.bucket,
            name,
            CopySource(self.bucket, name, match_etag=etag),
            metadata={"Content-Type": content_type, **attributes},
            metadata_directive=REPLACE,
        )

    def _store(self, size_bytes: int, content_type: str | None = None) -> S3Store:
        most_bytes = max(1 << size_bytes.bit_length(), SMALLEST_BYTES)
        found = self._stores.get((most_bytes, content_type))
        if found is None:
            seconds = REQUEST_TIMEOUT_SECONDS + most_bytes / BYTES_PER_SECOND
            found = self.connection.small(self.bucket, timeout_seconds=seconds, content_type=content_type)
            self._stores[most_bytes, content_type] = found
        return found


def _content(path: Path) -> memoryview:
    """A file, in memory that goes back to the system as soon as nobody holds it.

    Of `bytes`, malloc keeps for each thread what it has once had: 30 videos of 20 MB left 60 MB behind.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        memory = mmap.mmap(-1, max(size_bytes, 1), access=mmap.ACCESS_COPY)  # no mapping is empty
        return memoryview(memory)[: file.readinto(memory)]
