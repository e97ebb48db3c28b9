"""Interprets the replies of an S3 store: maps exceptions of obstore and minio-py to our own errors.

obstore raises few types, chosen only by status: a lost race, a missing object, an ingress without its store and a
conflict that should be retried may share one. So its types are ignored; the status and the S3 code in its text decide.
"""

import re
from dataclasses import dataclass
from typing import Final
from xml.etree import ElementTree as ET

import httpx
import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from obstore.exceptions import BaseError

from apixo.network import NO_WAY, UNTRUSTED
from apixo.redaction import excerpt, hide_queries
from blocks.store_errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    WrongAddressError,
)

BUSY: Final = frozenset(
    {
        "ConditionalRequestConflict",
        "OperationAborted",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "SlowDownWrite",
        "Throttling",
        "ThrottlingException",
    }
)
"""S3 error codes of a store that works but is busy."""
RETRYABLE_CODES: Final = BUSY | {
    "BadDigest",
    "IncompleteBody",
    "InternalError",
    "NoSuchUpload",  # an upload in parts that was aborted meanwhile
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
"""Codes that are retried, whatever the status."""
RETRYABLE_STATUSES: Final = frozenset({408, 409, 425, 429})
"""Retried by status: stores have their own codes for a conflict, such as `ConcurrentModification` and
`ConcurrentObjectUpdate`."""
PERMANENT_CODES: Final = frozenset(
    {
        "BucketAlreadyExists",
        "BucketAlreadyOwnedByYou",
        "BucketNotEmpty",
        "InvalidBucketState",
        "NotImplemented",
        "QuotaExceeded",
        "XMinioObjectExistsAsDirectory",
        "XMinioStorageFull",
    }
)
"""Error codes with a status of 409 or 5xx for which a retry is useless."""

WANTS_VIRTUAL_HOST: Final = frozenset({"PathStyleDomainForbidden", "SecondLevelDomainForbidden"})
"""Codes with which stores reject a bucket name in the path."""

_STATUS = re.compile(r" - Server returned non-2xx status code: (\d{3})[^:\n]*: ?(.*)", re.DOTALL)
_ERROR_IN_OK = re.compile(r" - Server returned error response: (.*)", re.DOTALL)
_CAUSE = re.compile(r'HttpError \{\s+kind: (\w+)|InvalidCertificate\(\s*(\w+)|(?:message|error): "([^"]+)"')
_CAUSES: Final = {
    "Connect": "could not connect",
    "Timeout": "no answer in time",
    "Interrupted": "the connection was cut",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What is known about a failed request.

    Attributes:
        status: the HTTP status; 0 without a complete answer.
        code: the S3 error code, such as `NoSuchKey`; empty if the answer has none and so is not from the store.
        message: the store's message, or what happened instead of an answer.
        request_id: helps the store's operator to find the request.
        region: the store's or the bucket's region; empty if the answer names none. Some stores name it in every error.
        sent: whether any part of the request may have reached the store.
    """

    status: int = 0
    code: str = ""
    message: str = ""
    request_id: str = ""
    region: str = ""
    sent: bool = True

    def __str__(self) -> str:
        """Status, code, message and request id on one line."""
        status = f"HTTP {self.status}" if self.status else ""
        named = f"request {self.request_id}" if self.request_id else ""
        return ", ".join(part for part in (f"{status} {self.code}".strip(), self.message, named) if part)


NO_ETAG: Final = Reply(200, "MissingETag", "without an ETag, so not an answer of S3")
"""The answer of a server that accepts everything but is not the store, or of a proxy that drops headers."""


class ReplyError(Exception):
    """A failed request for which neither client raises an exception."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


def parse_body(status: int, body: str) -> Reply:
    """The reply with this status and body, without keys and signatures, which some stores echo."""
    return Reply(
        status=status,
        code=_element("Code", body),
        message=excerpt(_element("Message", body).encode()),
        request_id=_element("RequestId", body)[:64],
        region=_element("Region", body)[:64],
    )


def parse_error(error: Exception) -> Reply | None:
    """The reply that a client's exception describes; None: it does not come from a request to the store."""
    if isinstance(error, ReplyError):
        return error.reply
    if isinstance(error, FileNotFoundError) and error.errno is not None:  # a local file; obstore's errors have no errno
        return None
    if isinstance(error, (BaseError, FileNotFoundError)):
        return _parse_obstore(str(error))
    if isinstance(error, (MinioException, ET.ParseError)):
        return _parse_minio(error)
    if isinstance(error, (urllib3.exceptions.HTTPError, httpx.HTTPError, ConnectionError, TimeoutError)):
        return Reply(message=hide_queries(f"{type(error).__name__} {error}".strip())[:300])
    return None


def store_error(error: Exception, *, method: str, name: str, bucket: str) -> StoreError | None:
    """Our error for a client's exception; None: it does not come from a request to the store.

    Args:
        method: of the request: `GET`, `PUT`, `DELETE` or `LIST`.
        name: the request's object or prefix; empty: the bucket.
    """
    reply = parse_error(error)
    if reply is None:
        return None
    status = reply.status
    code = reply.code or ("EntityTooLarge" if status == 413 else "")
    if status == 412 or code == "PreconditionFailed":
        return PreconditionFailedError(f"{name} was changed by someone else ({reply}).", code="PreconditionFailed")
    if code in WANTS_VIRTUAL_HOST:
        return _wrong_style(reply)
    if code == "AuthorizationHeaderMalformed" and reply.region:
        return wrong_region(bucket, reply.region)
    if not status and "certificate" in reply.message.lower():
        return StoreRefusedError(f"No connection to the object store: {UNTRUSTED} ({reply}).", code="Certificate")
    # A 404 without a code is not from the store: an ingress answers like this while the store behind it restarts. If it
    # counted as a missing object, it would hide a record.
    nameless = not code and status == 404
    later = status < 300 or status >= 500 or status in RETRYABLE_STATUSES or code in RETRYABLE_CODES or nameless
    about, arrived = name or "the bucket", ""
    if method in ("PUT", "DELETE") and reply.sent:
        arrived = " It may have been written anyway."
    cls: type[StoreError] = StoreUnavailableError
    if not later or code in PERMANENT_CODES:
        cls, advice = StoreRefusedError, _advice(_reason(reply, code), bucket)
        text = f"The object store refused {about}: {reply}. {advice}"
    elif code in BUSY:
        text = (
            f"The object store asked to try {about} again ({reply}).{arrived} If this persists, it is overloaded: "
            "lower max_in_flight, or check the store."
        )
    elif code == NO_ETAG.code:
        text = (
            f"The answer for {about} came without the ETag that S3 sends ({reply}).{arrived} Is the endpoint right? If "
            "a proxy is in front of the store, configure it to pass the store's headers on unchanged."
        )
    else:
        text = (
            f"The object store did not answer for {about} ({reply}).{arrived} Is it up, and is the endpoint right?"
            f"{'' if reply.sent else NO_WAY}"
        )
    return cls(text, code=code)


def _reason(reply: Reply, code: str) -> str:
    """The key into the table of `_advice`."""
    if code.startswith("KMS."):
        return "KMS"
    if code == "AccessDenied" and "not signed" in reply.message:
        return "NotSigned"
    return code or str(reply.status)


def wrong_region(bucket: str, region: str) -> WrongAddressError:
    """The error for a bucket in another region than the block's."""
    return WrongAddressError(
        f"The store requires requests for bucket {bucket} to be signed for region {region}. Set region to {region} "
        "in the video-archive block (MINIO_REGION for `sora setup`), and with AWS also the endpoint "
        f"s3.{region}.amazonaws.com.",
        code="WrongRegion",
        region=region,
    )


def _wrong_style(reply: Reply) -> WrongAddressError:
    return WrongAddressError(
        f"The object store requires the bucket's name in front of its host name ({reply}). Set virtual_host in the "
        "video-archive block (MINIO_VIRTUAL_HOST=true for `sora setup`). If it is already set, create the bucket "
        "with the store's own tools: only the creation of a bucket still uses the path.",
        code=reply.code,
        virtual_host=True,
    )


def redacted(error: Exception) -> Exception:
    """The exception for the traceback, without obstore's text: it contains whole replies, which may echo signatures."""
    reply = parse_error(error)
    return type(error)(str(reply)) if reply and isinstance(error, (BaseError, FileNotFoundError)) else error


def _parse_obstore(text: str) -> Reply:
    text, _, debug = text.partition("\n\nDebug source:")
    if found := _STATUS.search(text):
        return parse_body(int(found[1]), found[2])
    if found := _ERROR_IN_OK.search(text):
        return parse_body(200, found[1])
    if "ETag Header missing" in text:
        return NO_ETAG
    if "Received redirect without LOCATION" in text:
        return Reply(301, "PermanentRedirect", "the bucket is in another region")
    causes = [
        _CAUSES.get(kind, "") or (f"invalid certificate, {certificate}" if certificate else words)
        for kind, certificate, words in _CAUSE.findall(debug)
    ] or [text.rpartition(": ")[2]]
    message = hide_queries(": ".join(cause for cause in causes if cause))[:300] or "the connection was cut"
    return Reply(message=message, sent="kind: Connect" not in debug)


def _parse_minio(error: MinioException | ET.ParseError) -> Reply:
    if isinstance(error, ET.ParseError):  # an answer with status 200
        return Reply(200, message="an answer that is not S3's")
    if isinstance(error, S3Error):
        message = excerpt((error.message or "").encode())
        return Reply(error.response.status, error.code or "", message, error.request_id or "")
    if isinstance(error, ServerError):
        return Reply(error.status_code, message=hide_queries(str(error))[:300])
    if isinstance(error, InvalidResponseError) and (found := re.search(r"Response code: (\d{3})", str(error))):
        return Reply(int(found[1]), message="an answer that is not S3's")
    return Reply(message=hide_queries(f"{type(error).__name__} {error}".strip())[:300])


def _element(name: str, body: str) -> str:
    found = re.search(rf"<{name}>([^<]*)</{name}>", body[:8192])
    return found[1].strip() if found else ""


def _advice(code: str, bucket: str) -> str:
    return {
        "NoSuchBucket": f"There is no bucket {bucket}. Create it with `sora setup`. If it existed before, restore it: "
        "it contains the ledger, and without it every key would be paid for again.",
        "AccessDenied": f"The access key has no permission for this in bucket {bucket}. See the policy in SECURITY.md.",
        # MinIO's message about a header that was signed but is missing.
        "NotSigned": "A proxy in front of the store drops or adds headers. nginx with proxy_cache drops If-Match and "
        "If-None-Match. Turn its cache off for the store, and pass all headers on unchanged.",
        "InvalidAccessKeyId": "The store does not know the access key in the video-archive block.",
        "SignatureDoesNotMatch": "The secret key in the video-archive block is wrong, or a proxy in front of the "
        "store changes the headers of requests.",
        "ExpiredToken": "The keys in the video-archive block have expired: use permanent ones.",
        "QuotaExceeded": "The bucket's quota is used up: raise it, or delete videos that you do not need.",
        "KMS": "The store cannot encrypt uploads: check its key service.",
        **dict.fromkeys(
            ("MethodNotAllowed", "405"),
            "Something in front of the store blocks a request method. GET, HEAD, PUT, POST and DELETE are needed.",
        ),
        "304": "MinIO versions before mid-2024 report a failed condition this way. Update MinIO. docs/stores.md lists "
        "stores that work.",
        "407": "A proxy on the way requires a login: set HTTPS_PROXY with its user name and password, or add the store "
        "to NO_PROXY.",
        "RequestTimeTooSkewed": "This machine's clock and the store's differ by more than 15 minutes: set the clock.",
        "PermanentRedirect": "The region in the video-archive block is wrong: set it to the bucket's.",
        "InvalidRequest": "Does the bucket have an object lock? Then S3 requires a checksum with each upload: set "
        "AWS_CHECKSUM_ALGORITHM=SHA256 for every process that runs flows, or use a bucket without a lock.",
        "NotImplemented": "This store lacks a feature that the ledger needs. docs/stores.md lists stores that work.",
        "XMinioStorageFull": "The store's disk is full: free some space.",
        "EntityTooLarge": "A proxy in front of the store limits the size of uploads: raise its limit.",
    }.get(code, "Do endpoint, bucket and keys in the video-archive block belong to this store?")
