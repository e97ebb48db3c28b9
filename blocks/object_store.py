"""An S3 bucket as async calls, with the conditional writes that the ledger relies on."""

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import obstore
from minio.helpers import check_bucket_name

from apixo.redaction import install_log_filter
from blocks.bucket_settings import BucketSettings, read_settings
from blocks.s3_clients import StoreConnection
from blocks.s3_replies import NO_ETAG, Reply, ReplyError, redacted, store_error, wrong_region
from blocks.s3_uploads import ONE_REQUEST_BYTES, UPLOADERS, Attributes, Uploads
from blocks.store_errors import PreconditionFailedError, StoreError, StoreRefusedError, StoreUnavailableError

if TYPE_CHECKING:  # obstore has it in its stubs only
    from obstore import PutMode

T = TypeVar("T")

CHUNK_BYTES: Final = 1_048_576
REQUESTS_AT_ONCE: Final = 32
"""Small requests to one store in progress at the same time; more do not make any store faster."""
INCOMING: Final = "incoming/"
"""Where a large file is uploaded in parts, under a unique name, before one request copies it to its final name."""
PROBE: Final = "probe/conditional-writes"
"""The object used to check that a store honors conditions. It stays in the bucket."""
BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The bytes of an object and the etag they were read with (quoted, as S3 sends it)."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in a listing: its name, when it was last written (UTC), its size in bytes, its etag if there is one."""

    name: str
    modified: datetime
    size_bytes: int
    etag: str = ""


@dataclass(frozen=True, slots=True)
class ObjectDigest:
    """The size and SHA-256 of an object as read back, and the etag it was read with."""

    size_bytes: int
    sha256: str
    etag: str = field(default="", compare=False)


class ObjectStore:
    """One bucket. Use it on one event loop only.

    Every call may raise a `StoreError`: `StoreUnavailableError` without a clear answer, in which case a write may have
    been applied; `StoreRefusedError` for a permanent rejection. Nothing is retried here. Waiting for our own semaphore
    does not count toward any time-out.

    Raises:
        ValueError: the bucket's name is invalid, or the environment sets a proxy that is not supported.
    """

    def __init__(self, connection: StoreConnection, bucket: str) -> None:
        check_bucket_name(bucket)
        install_log_filter()
        self._connection = connection
        self._pool = connection.pool()
        self._minio = connection.minio(self._pool)
        self._obstore = connection.obstore_client(bucket)
        self._uploads = Uploads(connection, bucket, self._minio)
        self._turns = asyncio.Semaphore(REQUESTS_AT_ONCE)
        self.bucket, self.url = bucket, connection.url

    async def aclose(self) -> None:
        """Closes the connections."""
        self._pool.clear()
        self._uploads.close()

    async def create_bucket(self) -> bool:
        """Creates the bucket if it is missing; returns whether it was. For setup, not for runs: see `blocks.probe`."""
        try:
            await self.get(PROBE)
        except StoreRefusedError as error:
            if error.code != "NoSuchBucket":
                raise
        else:
            return False
        try:
            await self._threaded("PUT", "", lambda: self._minio.make_bucket(self.bucket))
        except StoreError as error:
            if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise
        return True

    async def get(self, name: str) -> StoredObject | None:
        """The whole object; None if it does not exist. For small objects."""

        async def get() -> StoredObject:
            found = await obstore.get_async(self._obstore, name)
            return StoredObject(bytes(await found.bytes_async()), _etag(found.meta["e_tag"]))

        return await _none_if_missing(self._request("GET", name, get))

    async def put_if(
        self,
        name: str,
        data: bytes,
        *,
        etag: str | None,
        content_type: str = BINARY,
        attributes: Attributes | None = None,
    ) -> str:
        """Writes the object if it still has this etag, or, with None, if it does not exist. Returns the new etag.

        Raises:
            PreconditionFailedError: it has another etag, or exists, or is gone. Nothing was written.
            StoreUnavailableError: no clear answer. It may have been written: read it back.
        """
        with _removed_is_changed(name):
            mode: PutMode = "create" if etag is None else {"e_tag": etag}
            return await self._put(name, data, content_type, mode=mode, attributes=attributes)

    async def put(self, name: str, data: bytes, *, content_type: str = BINARY) -> None:
        """Writes or overwrites a small object."""
        await self._put(name, data, content_type, mode="overwrite")

    async def create_file(
        self,
        name: str,
        path: Path,
        *,
        content_type: str,
        attributes: Attributes | None = None,
        in_parts: bool = False,
    ) -> bool:
        """Uploads a file if no such object exists. False: it exists, and nothing was written.

        A large file is first uploaded in parts under a temporary name, then copied by the store: S3 has no condition
        for parts. With `in_parts`, a small file is too.

        Raises:
            OSError: the file cannot be read.
            StoreUnavailableError: no clear answer. It may have been written: read it back.
        """
        size_bytes, labels = (await asyncio.to_thread(path.stat)).st_size, attributes or {}
        try:
            if size_bytes <= ONE_REQUEST_BYTES and not in_parts:
                try:
                    await self._uploaded(name, lambda: self._uploads.put(name, path, None, content_type, labels))
                except StoreRefusedError as error:
                    if error.code != "EntityTooLarge":  # a proxy in front of the store limits uploads
                        raise
                else:
                    return True
            if await self.read(name, max_bytes=1) is not None:  # do not upload it for nothing
                return False
            await self._create_by_copy(name, path, size_bytes, content_type)
        except PreconditionFailedError:
            return False
        if attributes:
            with contextlib.suppress(StoreError):  # the whole file is there, with or without attributes
                await self._uploaded(name, lambda: self._uploads.label(name, content_type, attributes))
        return True

    async def _create_by_copy(self, name: str, path: Path, size_bytes: int, content_type: str) -> None:
        own = f"{INCOMING}{uuid.uuid4().hex}"
        try:
            await self._uploaded(own, lambda: self._uploads.in_parts(own, path))
            await self._uploaded(name, lambda: self._uploads.copy(own, name, size_bytes, content_type))
        finally:
            with contextlib.suppress(StoreError):
                await self.remove(own)

    async def replace_file(
        self, name: str, path: Path, *, etag: str, content_type: str, attributes: Attributes | None = None
    ) -> None:
        """Overwrites the version of an object that has this etag with a file, in one request without retries.

        Raises:
            OSError: the file cannot be read.
            PreconditionFailedError: it has another etag, or is gone. Nothing was written.
            StoreUnavailableError: no clear answer. It may have been written: read it back.
        """
        with _removed_is_changed(name):
            await self._uploaded(name, lambda: self._uploads.put(name, path, etag, content_type, attributes or {}))

    async def get_file(self, name: str, path: Path) -> bool:
        """Downloads an object into a file; False if it does not exist.

        Raises:
            OSError: the file cannot be written.
        """
        # minio-py begins with a HEAD, whose 404 has no body, so it may come from a proxy and not the store.
        if await self.read(name, max_bytes=1) is None:
            return False
        download = self._threaded("GET", name, lambda: self._minio.fget_object(self.bucket, name, str(path)))
        return await _none_if_missing(download) is not None

    async def digest(self, name: str) -> ObjectDigest | None:
        """Streams a whole object to get its size and SHA-256; None if it does not exist."""

        def read() -> ObjectDigest:
            with contextlib.closing(self._minio.get_object(self.bucket, name)) as response:
                sha256, size_bytes = hashlib.sha256(), 0
                for chunk in response.stream(CHUNK_BYTES):
                    sha256.update(chunk)
                    size_bytes += len(chunk)
                response.release_conn()
            return ObjectDigest(size_bytes, sha256.hexdigest(), _etag(response.headers.get("etag")))

        return await _none_if_missing(self._threaded("GET", name, read))

    async def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """The object's first bytes, at most `max_bytes`; None if it does not exist. The rest is not fetched."""

        def read() -> bytes:
            with contextlib.closing(self._minio.get_object(self.bucket, name)) as response:
                return response.read(max_bytes)

        return await _none_if_missing(self._threaded("GET", name, read))

    async def remove(self, name: str) -> None:
        """Removes an object if it exists."""
        await _none_if_missing(self._request("DELETE", name, lambda: obstore.delete_async(self._obstore, name)))

    async def names(self, prefix: str) -> list[str]:
        """The names of all objects below a prefix, sorted. See `listed`."""
        return [found.name for found in await self.listed(prefix)]

    async def any_begins(self, beginning: str) -> bool:
        """Whether any object's name begins with this. One request; by minio-py, as obstore lists only whole folders."""

        def read() -> bool:
            try:
                return any(self._minio.list_objects(self.bucket, beginning, recursive=True))  # only the first page
            except ValueError as error:  # XML without the bucket's name
                raise ReplyError(Reply(200, message="an answer that is not a listing")) from error

        return await self._threaded("LIST", beginning, read)

    async def listed(self, prefix: str) -> list[ListedObject]:
        """All objects below a prefix that ends with a slash, sorted by name. Empty: the whole bucket."""
        if prefix and not prefix.endswith("/"):
            raise ValueError(f"a prefix ends with a slash: {prefix}")

        async def read() -> list[ListedObject]:
            found = await obstore.list(self._obstore, prefix).collect_async()
            return [
                ListedObject(item["path"], item["last_modified"], item["size"], item["e_tag"] or "") for item in found
            ]

        found = await self._request("LIST", prefix, read)
        # obstore takes any answer with status 200 as an empty listing, even an error that S3 may send with it.
        if not found and await self.any_begins(prefix):
            found = await self._request("LIST", prefix, read)
            if not found:
                raise StoreUnavailableError(f"The object store does not list what is in {prefix or self.bucket}.")
        return sorted((item for item in found if item.name.startswith(prefix)), key=lambda item: item.name)

    async def folders(self, prefix: str) -> list[str]:
        """The folders directly below a prefix, each with its trailing slash. Their content is not listed."""

        async def read() -> list[str]:
            found = await obstore.list_with_delimiter_async(self._obstore, prefix)
            return [f"{name.rstrip('/')}/" for name in found["common_prefixes"]]

        return await self._request("LIST", prefix, read)

    async def clock_offset_seconds(self) -> float | None:
        """How far the store's clock is ahead of ours, to about a second; None if its replies have no date."""

        def read() -> float | None:
            began = datetime.now(UTC)
            with contextlib.closing(self._minio.get_object(self.bucket, PROBE)) as response:
                response.drain_conn()
                try:
                    date = parsedate_to_datetime(response.headers.get("date", ""))
                except ValueError:
                    return None
            took = datetime.now(UTC) - began
            # A date is truncated to whole seconds.
            return (date.replace(tzinfo=UTC) + timedelta(seconds=0.5) - (began + took / 2)).total_seconds()

        return await self._threaded("GET", PROBE, read)

    async def settings(self) -> BucketSettings:
        """The bucket's lifecycle rules, retention and versioning, and the store's release, as far as readable."""
        return await self._threaded("GET", "", lambda: read_settings(self._connection, self.bucket))

    async def stream(self, name: str, *, start: int, length: int) -> AsyncIterator[bytes]:
        """Streams a part of an object at the reader's pace; yields nothing if it does not exist."""
        opening = partial(self._minio.get_object, self.bucket, name, offset=start, length=length)
        response = await _none_if_missing(self._threaded("GET", name, opening))
        if response is None:
            return
        try:
            while piece := await self._threaded("GET", name, lambda: response.read(CHUNK_BYTES)):
                yield piece
        finally:  # a connection that was not read to its end cannot be reused
            response.close()
            response.release_conn()

    def signed_url(self, name: str, *, seconds: int, download_as: str | None = None, bucket: str | None = None) -> str:
        """A URL that opens one object for anyone for a while. It is a secret: show it, but never log or store it.

        Args:
            download_as: a file name of plain letters; the browser then saves the object instead of showing it.
            bucket: another bucket of the same store.
        """
        headers: dict[str, str | list[str] | tuple[str]] | None = None
        if download_as:
            headers = {"response-content-disposition": f'attachment; filename="{download_as}"'}
        return self._minio.get_presigned_url(
            "GET", bucket or self.bucket, name, expires=timedelta(seconds=seconds), response_headers=headers
        )

    async def _call(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        """Makes one request, or one transfer of a file. All of them go through here.

        Tests replace it: any exception raised here, by a client or as a `StoreError`, counts as the store's error. The
        name is an object's or a prefix; empty: the bucket.
        """
        return await call()

    async def _mapped(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._call(method, name, call)
        except Exception as error:
            found = store_error(error, method=method, name=name, bucket=self.bucket)
            if found is None:
                raise
            if found.code == "PermanentRedirect":  # obstore does not read the region from the reply
                region = await asyncio.to_thread(self._connection.bucket_region, self.bucket)
                found = wrong_region(self.bucket, region) if region else found
            raise found from redacted(error)

    async def _request(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        async with self._turns:
            return await self._mapped(method, name, call)

    async def _threaded(self, method: str, name: str, call: Callable[[], T]) -> T:
        return await self._mapped(method, name, lambda: asyncio.to_thread(call))

    async def _uploaded(self, name: str, call: Callable[[], None]) -> None:
        await self._mapped("PUT", name, lambda: asyncio.get_running_loop().run_in_executor(UPLOADERS, call))

    async def _put(
        self, name: str, data: bytes, content_type: str, mode: "PutMode", attributes: Attributes | None = None
    ) -> str:
        labels = {"Content-Type": content_type, **(attributes or {})}

        async def put() -> str:
            written = await obstore.put_async(
                self._obstore, name, data, attributes=labels, mode=mode, use_multipart=False
            )
            return _etag(written["e_tag"])

        return await self._request("PUT", name, put)


def _etag(etag: str | None) -> str:
    if not etag:
        raise ReplyError(NO_ETAG)
    return etag


async def _none_if_missing(call: Awaitable[T]) -> T | None:
    try:
        return await call
    except StoreRefusedError as error:
        if error.code == "NoSuchKey":
            return None
        raise


@contextlib.contextmanager
def _removed_is_changed(name: str) -> Iterator[None]:
    """Treats a write over a removed object as lost, like a write over a changed one."""
    try:
        yield
    except StoreRefusedError as error:
        if error.code != "NoSuchKey":
            raise
        raise PreconditionFailedError(f"{name} was removed by someone else.", code="PreconditionFailed") from error
