"""An S3 bucket as async calls, with the conditional writes that the ledger stands on.

minio-py has no public argument for `If-None-Match` and `If-Match`: given as metadata they become `x-amz-meta-…`, and
then *every* racing writer wins. So small objects go through an address signed by minio-py's public
`get_presigned_url`, sent by httpx with the real header. Files, which need multipart uploads, go through minio-py
itself, in a thread.
"""

import asyncio
import contextlib
import hashlib
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import httpx
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from apixo.redaction import hide_queries, install_log_filter
from blocks.errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    StoreUnfitError,
)

T = TypeVar("T")

CONNECT_TIMEOUT_SECONDS: Final = 5.0
READ_TIMEOUT_SECONDS: Final = 30.0
SIGNATURE_SECONDS: Final = 300
"""How long an address signed for one request of our own stays valid."""
CHUNK_BYTES: Final = 1_048_576
PROBE: Final = "probe/conditional-writes"
"""The object on which a store shows once per process that it keeps conditions."""

_PROVEN: set[tuple[str, int]] = set()
"""The stores, by address and bucket, that have shown in this process that they keep conditions."""

_AGAIN: Final = {"SlowDown", "SlowDownRead", "SlowDownWrite", "RequestTimeout", "ConditionalRequestConflict"}
"""S3 error codes below 500 that ask to try again."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The bytes of an object and the etag they were read with (quoted, as S3 sends it)."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectDigest:
    """What was read back of an object."""

    size_bytes: int
    sha256: str


class ObjectStore:
    """One bucket.

    Args:
        client: a minio-py client with its region set (else signing asks the store for it).
        bucket: the bucket's name.
        close: closes the client's connections; minio-py cannot do it itself.
        transport: the transport of the small requests; for tests that cut replies.
    """

    def __init__(
        self,
        client: Minio,
        bucket: str,
        *,
        close: Callable[[], None] = lambda: None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        install_log_filter()
        self._minio = client
        self._close_minio = close
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
            transport=transport,
            # Like minio-py with our pool: no proxy of the environment, and certificates as OpenSSL finds them. Else
            # one half of the calls would take another way than the other.
            trust_env=False,
            verify=ssl.create_default_context(),
            limits=httpx.Limits(max_connections=32, max_keepalive_connections=16),
        )
        self.bucket = bucket
        self._identity = (client.get_presigned_url("GET", bucket, PROBE).partition("?")[0], id(transport))

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()
        self._close_minio()

    async def ensure_ready(self) -> None:
        """Makes the store prove that it keeps conditional writes, once per process.

        Raises:
            StoreUnfitError: it does not, so two racing workers would both believe to have the claim.
            StoreRefusedError: no such bucket, wrong keys, or no rights. A bucket that is gone is not made anew here:
                with it went the ledger, and every key would be paid for again.
            StoreUnavailableError: no answer.
        """
        if self._identity in _PROVEN:
            return
        with contextlib.suppress(PreconditionFailedError):
            await self.put_if(PROBE, b"Shows that this store keeps conditional writes.\n", etag=None)
        for etag in (None, f'"{"0" * 32}"'):
            try:
                await self.put_if(PROBE, b"This must never be written.\n", etag=etag)
            except PreconditionFailedError:
                continue
            raise StoreUnfitError(
                "The object store ignored If-None-Match or If-Match. It cannot keep the ledger, and videos could be "
                "paid twice. Use a current MinIO, or AWS S3.",
                object_name=PROBE,
            )
        _PROVEN.add(self._identity)

    async def create_bucket(self) -> bool:
        """Creates the bucket where it is missing; whether it was. For set-up, not for runs: see `ensure_ready`."""
        try:
            await self.get(PROBE)
        except StoreRefusedError as error:
            if error.code != "NoSuchBucket":
                raise
        else:
            return False

        def create() -> None:
            try:
                self._minio.make_bucket(self.bucket)
            except S3Error as error:
                if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

        await self._threaded("", create)
        return True

    async def get(self, name: str) -> StoredObject | None:
        """The object, whole; None when it does not exist. For small objects."""
        response = await self._send("GET", name)
        if response.status_code == 404:
            return None
        return StoredObject(response.content, _etag(response, name))

    async def put_if(
        self, name: str, data: bytes, *, etag: str | None, content_type: str = "application/octet-stream"
    ) -> str:
        """Writes the object if it still has this etag, or, with None, if it does not exist. Returns the new etag.

        Raises:
            PreconditionFailedError: it has another etag, or exists, or is gone. Nothing was written.
            StoreUnavailableError: no clear answer. It may have been written: read it back.
        """
        condition = {"If-None-Match": "*"} if etag is None else {"If-Match": etag}
        response = await self._send("PUT", name, content=data, headers={"Content-Type": content_type, **condition})
        if response.status_code in (404, 412):
            raise PreconditionFailedError(
                f"{name} was changed by someone else.", code="PreconditionFailed", object_name=name
            )
        return _etag(response, name)

    async def put(self, name: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Writes a small object, whatever was there."""
        await self._send("PUT", name, content=data, headers={"Content-Type": content_type})

    async def put_file(self, name: str, path: Path, *, content_type: str) -> None:
        """Uploads a file, in parts where it is large."""
        await self._threaded(
            name, lambda: self._minio.fput_object(self.bucket, name, str(path), content_type=content_type)
        )

    async def get_file(self, name: str, path: Path) -> bool:
        """Downloads an object into a file; False when it does not exist.

        Raises:
            OSError: the file cannot be written.
        """
        return await self._found(name, lambda: bool(self._minio.fget_object(self.bucket, name, str(path)))) or False

    async def digest(self, name: str) -> ObjectDigest | None:
        """Reads a whole object back, without holding it, for its size and SHA-256; None when it does not exist."""

        def read() -> ObjectDigest:
            response = self._minio.get_object(self.bucket, name)
            try:
                sha256, size_bytes = hashlib.sha256(), 0
                for chunk in response.stream(CHUNK_BYTES):
                    sha256.update(chunk)
                    size_bytes += len(chunk)
                return ObjectDigest(size_bytes, sha256.hexdigest())
            finally:
                response.close()
                response.release_conn()

        return await self._found(name, read)

    async def read(self, name: str, *, max_bytes: int) -> bytes | None:
        """The object's first bytes, at most so many; None when it does not exist. The rest is not fetched."""

        def read() -> bytes:
            response = self._minio.get_object(self.bucket, name)
            try:
                data = bytearray()
                for chunk in response.stream(min(CHUNK_BYTES, max_bytes)):
                    data += chunk
                    if len(data) >= max_bytes:
                        break
                return bytes(data[:max_bytes])
            finally:
                response.close()
                response.release_conn()

        return await self._found(name, read)

    async def remove(self, name: str) -> None:
        """Removes an object; one that is not there is fine."""
        await self._send("DELETE", name)

    async def names(self, prefix: str) -> list[str]:
        """The names of all objects below a prefix, sorted."""

        def read() -> list[str]:
            found = self._minio.list_objects(self.bucket, prefix=prefix, recursive=True)
            return [item.object_name for item in found if item.object_name]

        return await self._threaded(prefix, read)

    def signed_url(self, name: str, *, seconds: int) -> str:
        """An address that opens one object for anyone for a while. It is a secret: show it, never log or store it."""
        return self._minio.get_presigned_url("GET", self.bucket, name, expires=timedelta(seconds=seconds))

    async def _send(
        self, method: str, name: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Sends one small request. Only 2xx, 412 and a missing object's 404 come back; the rest is raised."""
        url = self._minio.get_presigned_url(method, self.bucket, name, expires=timedelta(seconds=SIGNATURE_SECONDS))
        try:
            response = await self._http.request(method, url, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise _unavailable(name, hide_queries(f"{type(error).__name__} {error}".strip())) from error
        if response.is_success or response.status_code == 412:
            return response
        found = re.search(r"<Code>(\w+)</Code>", response.text[:4096])
        code = found.group(1) if found else ""
        if response.status_code == 404 and code == "NoSuchKey":
            return response
        # A 404 without a code is not the store's: so answers an ingress while the store behind it restarts. Taken for
        # a missing object, it would hide a record.
        if (
            response.status_code >= 500
            or response.status_code == 429
            or code in _AGAIN
            or (response.status_code == 404 and not code)
        ):
            raise _unavailable(name, f"HTTP {response.status_code} {code}".strip())
        raise _refused(name, code or f"HTTP {response.status_code}", self.bucket)

    async def _found(self, name: str, call: Callable[[], T]) -> T | None:
        try:
            return await self._threaded(name, call)
        except StoreRefusedError as error:
            if error.code == "NoSuchKey":
                return None
            raise

    async def _threaded(self, name: str, call: Callable[[], T]) -> T:
        try:
            return await asyncio.to_thread(call)
        except S3Error as error:
            if error.code in _AGAIN or error.response.status >= 500:
                raise _unavailable(name, str(error.code)) from error
            raise _refused(name, str(error.code), self.bucket) from error
        except (
            urllib3.exceptions.HTTPError,
            ServerError,
            InvalidResponseError,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise _unavailable(name, hide_queries(f"{type(error).__name__}")) from error
        except MinioException as error:
            raise StoreError(
                f"The object store failed on {name}: {hide_queries(str(error))}", object_name=name
            ) from error


def _etag(response: httpx.Response, name: str) -> str:
    """The etag of what was read or written. Whoever answers without one is not the store, but says yes all the same."""
    etag = response.headers.get("etag")
    if not etag:
        raise _unavailable(name, f"HTTP {response.status_code} without an ETag, which is no answer of S3")
    return str(etag)


def _unavailable(name: str, why: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"The object store gave no answer for {name or 'the bucket'} ({why}). Is it up, and is the endpoint right?",
        object_name=name,
    )


def _refused(name: str, code: str, bucket: str) -> StoreRefusedError:
    advice = {
        "NoSuchBucket": f"There is no bucket {bucket}. Make it with `sora setup`. Was it there before? Then restore "
        "it: the ledger lives in it, and without it every key would be paid for again.",
        "AccessDenied": f"The access key has no right to it in bucket {bucket}. See the policy in the README.",
        "InvalidAccessKeyId": "The store does not know the access key in the video-archive block.",
        "SignatureDoesNotMatch": "The secret key in the video-archive block is wrong.",
        "RequestTimeTooSkewed": "This machine's clock and the store's differ by more than 15 minutes.",
    }.get(code, "Check the video-archive block.")
    return StoreRefusedError(
        f"The object store refused {name or 'the bucket'}: {code}. {advice}", code=code, object_name=name
    )


__all__ = ["ObjectDigest", "ObjectStore", "StoredObject"]
