"""What each reply of a store means, in one table."""

from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest
import urllib3
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError, PreconditionError

from blocks.s3_replies import NO_ETAG, Reply, ReplyError, parse_body, parse_error, redacted, store_error
from blocks.store_errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    WrongAddressError,
)

SIGNED = "<StringToSign>AWS4-HMAC 51gned</StringToSign><SignatureProvided>51gned</SignatureProvided>"


def body(code: str, message: str = "Some words.", more: str = "") -> str:
    return (
        f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{message}</Message><Key>a</Key>'
        f"<RequestId>18EC</RequestId>{more}{SIGNED}</Error>"
    )


def obstore_error(kind: type[Exception], status: str, content: str, before: str = "Generic S3 error") -> Exception:
    """An exception with the text that obstore would give it."""
    return kind(
        f"{before}: Error performing PUT http://127.0.0.1:9/b/a in 2.5ms - Server returned non-2xx status code: "
        f'{status}: {content}\n\nDebug source:\nGeneric {{ body: Some("{content}") }}'
    )


def obstore_connection_error(debug: str) -> Exception:
    text = "Generic S3 error: Error performing PUT http://127.0.0.1:9/b/a in 2.5ms - HTTP error: error sending request"
    return GenericError(f"{text}\n\nDebug source:\nGeneric {{ inner: Http(\n HttpError {{\n   {debug} }} }}")


def minio_error(status: int, code: str) -> S3Error:
    response = urllib3.HTTPResponse(status=status)
    return S3Error(response, code, "Some words.", "/b/a", "18EC", None)


REFUSED = 'kind: Connect,\n source: Os {\n code: 111,\n message: "Connection refused",\n }'
UNTRUSTED = "kind: Connect,\n source: Custom { error: InvalidCertificate(\n UnknownIssuer,\n ) }"
CUT = "kind: Request,\n source: hyper::Error(\n IncompleteMessage,\n )"

MEANINGS: list[tuple[Exception, type[StoreError], str, list[str]]] = [
    (
        obstore_error(
            AlreadyExistsError, "412 Precondition Failed", body("PreconditionFailed"), "Object already exists"
        ),
        PreconditionFailedError,
        "PreconditionFailed",
        ["HTTP 412 PreconditionFailed", "Some words.", "request 18EC"],
    ),
    (
        obstore_error(PreconditionError, "412 Precondition Failed", ""),
        PreconditionFailedError,
        "PreconditionFailed",
        ["412"],
    ),
    # obstore calls all of these "already exists", but none of them means that another writer won.
    (
        obstore_error(AlreadyExistsError, "409 Conflict", body("ConditionalRequestConflict")),
        StoreUnavailableError,
        "ConditionalRequestConflict",
        ["HTTP 409 ConditionalRequestConflict", "may have been written"],
    ),
    (
        obstore_error(AlreadyExistsError, "409 Conflict", body("OperationAborted")),
        StoreUnavailableError,
        "OperationAborted",
        [],
    ),
    (obstore_error(AlreadyExistsError, "409 Conflict", ""), StoreUnavailableError, "", ["HTTP 409"]),
    *(
        (obstore_error(AlreadyExistsError, "409 Conflict", body(code)), StoreUnavailableError, code, [])
        for code in ("ConcurrentObjectUpdate", "ConcurrentModification", "Conflict")
    ),
    (
        obstore_error(GenericError, "400 Bad Request", body("ThrottlingException")),
        StoreUnavailableError,
        "ThrottlingException",
        ["max_in_flight"],
    ),
    (
        obstore_error(PermissionDeniedError, "403 Forbidden", body("SecondLevelDomainForbidden")),
        WrongAddressError,
        "SecondLevelDomainForbidden",
        ["virtual_host", "MINIO_VIRTUAL_HOST=true"],
    ),
    (
        obstore_error(PermissionDeniedError, "403 Forbidden", body("QuotaExceeded")),
        StoreRefusedError,
        "QuotaExceeded",
        ["quota"],
    ),
    (
        obstore_error(PermissionDeniedError, "403 Forbidden", body("KMS.DisabledException")),
        StoreRefusedError,
        "KMS.DisabledException",
        ["key service"],
    ),
    (obstore_error(GenericError, "405 Method Not Allowed", ""), StoreRefusedError, "", ["POST"]),
    (ET.ParseError("no element found"), StoreUnavailableError, "", ["not S3's"]),
    (obstore_error(AlreadyExistsError, "304 Not Modified", ""), StoreRefusedError, "", ["HTTP 304"]),
    (
        obstore_error(AlreadyExistsError, "409 Conflict", body("InvalidBucketState")),
        StoreRefusedError,
        "InvalidBucketState",
        [],
    ),
    # And it calls these "precondition failed": an ingress without its store is not a lost race.
    (obstore_error(PreconditionError, "404 Not Found", "404 page not found"), StoreUnavailableError, "", ["HTTP 404"]),
    (obstore_error(PreconditionError, "404 Not Found", ""), StoreUnavailableError, "", ["HTTP 404"]),
    (obstore_error(PreconditionError, "404 Not Found", body("NoSuchKey")), StoreRefusedError, "NoSuchKey", []),
    (
        obstore_error(FileNotFoundError, "404 Not Found", body("NoSuchBucket")),
        StoreRefusedError,
        "NoSuchBucket",
        ["restore"],
    ),
    (
        obstore_error(FileNotFoundError, "404 Not Found", body("NoSuchUpload")),
        StoreUnavailableError,
        "NoSuchUpload",
        [],
    ),
    (
        obstore_error(GenericError, "503 Service Unavailable", body("SlowDown")),
        StoreUnavailableError,
        "SlowDown",
        ["503", "max_in_flight"],
    ),
    (obstore_error(GenericError, "400 Bad Request", body("SlowDown")), StoreUnavailableError, "SlowDown", []),
    (
        obstore_error(GenericError, "400 Bad Request", body("RequestTimeout")),
        StoreUnavailableError,
        "RequestTimeout",
        [],
    ),
    (
        obstore_error(GenericError, "501 Not Implemented", body("NotImplemented")),
        StoreRefusedError,
        "NotImplemented",
        ["docs/stores.md"],
    ),
    (
        obstore_error(GenericError, "507 -", body("XMinioStorageFull")),
        StoreRefusedError,
        "XMinioStorageFull",
        ["free some space"],
    ),
    (
        obstore_error(GenericError, "400 Bad Request", body("InvalidRequest")),
        StoreRefusedError,
        "InvalidRequest",
        ["object lock", "AWS_CHECKSUM_ALGORITHM=SHA256"],
    ),
    (obstore_error(GenericError, "400 Bad Request", body("InvalidArgument")), StoreRefusedError, "InvalidArgument", []),
    (obstore_error(GenericError, "429 Too Many Requests", "-"), StoreUnavailableError, "", ["HTTP 429"]),
    (
        obstore_error(GenericError, "502 Bad Gateway", "<h1>Bad gateway: no</h1>"),
        StoreUnavailableError,
        "",
        ["HTTP 502"],
    ),
    (
        obstore_error(GenericError, "413 Payload Too Large", "<h1>nginx</h1>"),
        StoreRefusedError,
        "EntityTooLarge",
        ["limits the size"],
    ),
    (
        obstore_error(PermissionDeniedError, "403 Forbidden", body("SignatureDoesNotMatch")),
        StoreRefusedError,
        "SignatureDoesNotMatch",
        ["HTTP 403 SignatureDoesNotMatch", "secret key"],
    ),
    (
        obstore_error(PermissionDeniedError, "403 Forbidden", body("AccessDenied")),
        StoreRefusedError,
        "AccessDenied",
        ["SECURITY"],
    ),
    (
        obstore_error(
            GenericError,
            "400 Bad Request",
            body("AccessDenied", "There were headers present in the request which were not signed"),
        ),
        StoreRefusedError,
        "AccessDenied",
        ["proxy in front of the store drops", "If-None-Match", "proxy_cache"],
    ),
    (obstore_error(PermissionDeniedError, "403 Forbidden", ""), StoreRefusedError, "", ["HTTP 403"]),
    (
        GenericError(
            "Generic S3 error: … - Server returned error response: " + body("InternalError") + "\n\nDebug source:"
        ),
        StoreUnavailableError,
        "InternalError",
        ["HTTP 200 InternalError"],
    ),
    (
        GenericError("… - Received redirect without LOCATION, this normally indicates …\n\nDebug source:\n"),
        StoreRefusedError,
        "PermanentRedirect",
        ["region"],
    ),
    (obstore_connection_error(REFUSED), StoreUnavailableError, "", ["could not connect: Connection refused"]),
    (
        obstore_connection_error(UNTRUSTED),
        StoreRefusedError,
        "Certificate",
        ["could not connect", "UnknownIssuer", "SSL_CERT_FILE"],
    ),
    (obstore_connection_error(CUT), StoreUnavailableError, "", ["the connection was cut", "may have been written"]),
    (
        GenericError("Generic S3 error: Unable to extract metadata from headers: ETag Header missing from response"),
        StoreUnavailableError,
        "MissingETag",
        ["came without the ETag", "may have been written", "proxy", "unchanged"],
    ),
    (ReplyError(NO_ETAG), StoreUnavailableError, "MissingETag", ["without an ETag"]),
    (ReplyError(parse_body(412, "")), PreconditionFailedError, "PreconditionFailed", []),
    (minio_error(403, "AccessDenied"), StoreRefusedError, "AccessDenied", ["HTTP 403 AccessDenied", "request 18EC"]),
    (minio_error(503, "SlowDown"), StoreUnavailableError, "SlowDown", []),
    (minio_error(404, "NoSuchKey"), StoreRefusedError, "NoSuchKey", []),
    (ServerError("server failed with HTTP status code 503", 503), StoreUnavailableError, "", ["503"]),
    (
        InvalidResponseError(413, "text/html", "-"),
        StoreRefusedError,
        "EntityTooLarge",
        ["limits the size"],
    ),
    (InvalidResponseError(404, "text/html", "not found"), StoreUnavailableError, "", ["HTTP 404"]),
    (InvalidResponseError(502, "text/html", "-"), StoreUnavailableError, "", ["HTTP 502"]),
    (MinioException("odd"), StoreUnavailableError, "", ["odd"]),
    (urllib3.exceptions.ProtocolError("cut"), StoreUnavailableError, "", ["cut"]),
    (httpx.ReadTimeout("slow"), StoreUnavailableError, "", ["ReadTimeout"]),
    (ConnectionResetError("reset"), StoreUnavailableError, "", ["reset"]),
    (TimeoutError(), StoreUnavailableError, "", ["TimeoutError"]),
]


@pytest.mark.parametrize(
    ("status", "code", "cls"),
    [
        ("503 Service Unavailable", "SlowDown", StoreUnavailableError),
        ("503 Service Unavailable", "XMinioServerNotInitialized", StoreUnavailableError),
        ("500 Internal Server Error", "InternalError", StoreUnavailableError),
        ("400 Bad Request", "RequestTimeout", StoreUnavailableError),
        ("404 Not Found", "NoSuchUpload", StoreUnavailableError),
        ("404 Not Found", "NoSuchKey", StoreRefusedError),
        ("404 Not Found", "NoSuchBucket", StoreRefusedError),
        ("403 Forbidden", "AccessDenied", StoreRefusedError),
        ("403 Forbidden", "InvalidAccessKeyId", StoreRefusedError),
        ("403 Forbidden", "SignatureDoesNotMatch", StoreRefusedError),
        ("507 -", "XMinioStorageFull", StoreRefusedError),
    ],
)
def test_region_in_other_errors_is_not_a_wrong_region(status: str, code: str, cls: type[StoreError]) -> None:
    """MinIO with a configured region and Garage name their region in every error."""
    named = body(code, more="<Region>eu-central-1</Region>")
    found = store_error(obstore_error(GenericError, status, named), method="PUT", name="a", bucket="b")
    assert (type(found), getattr(found, "code", "")) == (cls, code)


def test_request_signed_for_another_region_yields_the_right_region() -> None:
    named = body("AuthorizationHeaderMalformed", more="<Region>eu-central-1</Region>")
    found = store_error(obstore_error(GenericError, "400 Bad Request", named), method="GET", name="a", bucket="b")
    assert isinstance(found, WrongAddressError)
    assert (found.code, found.region) == ("WrongRegion", "eu-central-1")


@pytest.mark.parametrize(("error", "cls", "code", "words"), MEANINGS, ids=[str(row[0])[:70] for row in MEANINGS])
def test_store_reply_maps_to_error(error: Exception, cls: type[StoreError], code: str, words: list[str]) -> None:
    found = store_error(error, method="PUT", name="a", bucket="b")
    assert found is not None
    assert (type(found), found.code) == (cls, code)
    assert [word for word in words if word not in str(found)] == []
    assert "51gned" not in f"{found} {redacted(error)}"
    assert "Debug source" not in f"{found} {redacted(error)}"


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), PermissionError(13, "no"), ValueError("x")])
def test_other_exceptions_are_not_converted(error: Exception) -> None:
    assert store_error(error, method="PUT", name="a", bucket="b") is None
    assert redacted(error) is error


@pytest.mark.parametrize(
    ("method", "debug", "written"),
    [("PUT", CUT, True), ("DELETE", CUT, True), ("GET", CUT, False), ("PUT", REFUSED, False)],
)
def test_only_a_sent_write_may_have_been_written(method: str, debug: str, written: bool) -> None:
    found = store_error(obstore_connection_error(debug), method=method, name="a", bucket="b")
    assert ("may have been written" in str(found)) is written


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        ("", Reply(500)),
        ("<h1>Oops</h1>", Reply(500)),
        (body("X"), Reply(500, "X", "Some words.", "18EC")),
        (body("X", "See http://h/?sig=51gned"), Reply(500, "X", "See http://h/?…", "18EC")),
        ("<Error><Code> X </Code></Error>", Reply(500, "X")),
    ],
)
def test_parse_body_drops_what_was_signed(content: str, reply: Reply) -> None:
    assert parse_body(500, content) == reply


def test_status_is_not_read_from_the_body() -> None:
    misleading: Any = obstore_error(
        GenericError, "503 Service Unavailable", " - Server returned non-2xx status code: 412: x"
    )
    assert parse_error(misleading) == Reply(503)
