"""Stores that are down, hang, return errors, are not S3 at all, or ignore conditions."""

import asyncio
import logging
import pickle
import socket
import time
from pathlib import Path

import pytest

import blocks.s3_clients
import blocks.s3_uploads
from blocks.object_store import PROBE, ObjectStore
from blocks.probe import RACED, ensure_ready, prove
from blocks.store_errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    StoreUnfitError,
    WrongAddressError,
)

from .conftest import OpenStore, archive
from .store_calls import every_call
from .wire import FakeStore, always, http, listening, s3_error


@pytest.fixture
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks.s3_uploads, blocks.s3_clients):
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_SECONDS", 0.2)


async def test_unreachable_store_is_detected_quickly(open_store: OpenStore, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
    began = time.monotonic()
    for error in await every_call(open_store(archive(endpoint)), tmp_path / "f"):
        assert isinstance(error, StoreUnavailableError), error
        assert "endpoint" in str(error)
        assert "Signature" not in f"{error} {error.__cause__}"
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("_short_timeouts")
async def test_hanging_store_times_out(open_store: OpenStore, tmp_path: Path) -> None:
    async def hang(_: str, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with listening(FakeStore(hang).handle) as endpoint:
        for error in await every_call(open_store(archive(endpoint)), tmp_path / "f"):
            assert isinstance(error, StoreUnavailableError), error


TEMPORARY_ERRORS = [
    s3_error(503, "SlowDown"),
    s3_error(500, "InternalError"),
    s3_error(409, "ConditionalRequestConflict"),
    s3_error(400, "RequestTimeout"),
    s3_error(400, "SlowDown"),
    http(502, b"<h1>Bad gateway</h1>"),
    http(429, b"-"),
]


@pytest.mark.parametrize("content", TEMPORARY_ERRORS)
async def test_temporary_store_errors_are_retryable(open_store: OpenStore, content: bytes) -> None:
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = open_store(archive(endpoint))
        for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
            with pytest.raises(StoreUnavailableError) as raised:
                await call
            assert raised.value.retryable


NOT_S3 = [http(404, b"404 page not found"), http(200, b"<h1>Welcome to nginx!</h1>"), http(404)]


@pytest.mark.parametrize("content", NOT_S3)
async def test_reply_of_a_non_s3_server_does_not_mean_that_an_object_is_missing(
    open_store: OpenStore, content: bytes
) -> None:
    # An ingress answers like this while its store restarts. Read as "no such record", it would cost money.
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = open_store(archive(endpoint))
        calls = [
            store.get("a"),
            store.put_if("a", b"", etag=None),
            store.put_if("a", b"", etag='"0"'),
            store.digest("a"),
        ]
        if b" 404 " in content[:15]:
            calls.append(store.put("a", b""))
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, StoreUnavailableError), error
        with pytest.raises(StoreError):
            await ensure_ready(store)


@pytest.mark.parametrize("content", [s3_error(403, "AccessDenied"), http(403), s3_error(301, "PermanentRedirect")])
async def test_permanent_rejection_says_what_to_do(open_store: OpenStore, tmp_path: Path, content: bytes) -> None:
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = open_store(archive(endpoint))
        for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
            with pytest.raises(StoreRefusedError, match=r"no permission|video-archive block"):
                await call


async def test_redirect_to_another_host_is_not_followed(open_store: OpenStore) -> None:
    async with listening(FakeStore(always(http(200, b"{}", etag='"1"'))).handle) as other_host:
        there = f"http://{other_host.replace('127.0.0.1', 'localhost')}/b/a"
        async with listening(FakeStore(always(http(307, b"", location=there))).handle) as endpoint:
            store = open_store(archive(endpoint))
            for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
                with pytest.raises(StoreError):
                    await call


async def test_web_page_is_not_an_empty_listing(open_store: OpenStore) -> None:
    """Read as an empty listing, it would mean that nothing is left to do."""
    page = b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><p>-</p></body></html>"
    async with listening(FakeStore(always(http(200, page))).handle) as endpoint:
        with pytest.raises(StoreUnavailableError):
            await open_store(archive(endpoint)).names("open/")


@pytest.mark.parametrize("times", [1, 2, 9])
async def test_error_with_http_200_is_not_an_empty_listing(open_store: OpenStore, times: int) -> None:
    """Read as an empty listing, it would free a reservation that was used, and a video would be forgotten."""
    error = s3_error(503, "SlowDown").replace(b"503", b"200", 1)
    contents = b"<Key>open/a</Key><LastModified>2026-03-01T12:00:00Z</LastModified><Size>1</Size><ETag>1</ETag>"
    listing = b"<ListBucketResult><Name>b</Name><Contents>" + contents + b"</Contents></ListBucketResult>"
    left = times

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        if "list-type=2" not in head:
            return writer.write(http(200, b"-", etag='"1"'))  # the probe exists
        left -= 1
        return writer.write(error if left >= 0 else http(200, listing))

    async with listening(FakeStore(answer).handle) as endpoint:
        store = open_store(archive(endpoint))
        if times == 1:
            assert await store.names("open/") == ["open/a"]
        else:
            with pytest.raises(StoreUnavailableError):
                await store.names("open/")


async def test_queued_requests_do_not_time_out(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request stays within its timeout, but all together take longer."""
    monkeypatch.setattr(blocks.s3_clients, "REQUEST_TIMEOUT_SECONDS", 3)  # long enough for a slow machine

    async def slow(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        writer.write(http(200, b"-", etag='"1"'))

    fake = FakeStore(slow)
    async with listening(fake.handle) as endpoint:
        store = open_store(archive(endpoint))
        assert len(await asyncio.gather(*(store.get("a") for _ in range(400)))) == 400
    assert len(fake.heads) == 400


@pytest.mark.parametrize("headers", [{}, {"retry-after": "0"}], ids=["an error", "with Retry-After"])
async def test_requests_are_not_retried(headers: dict[str, str], open_store: OpenStore) -> None:
    body = s3_error(503, "SlowDown").partition(b"\r\n\r\n")[2]
    fake = FakeStore(always(http(503, body, **headers)))
    async with listening(fake.handle) as endpoint:
        store = open_store(archive(endpoint))
        for call in (store.get("a"), store.put_if("a", b"", etag=None), store.remove("a"), store.names("a/")):
            with pytest.raises(StoreUnavailableError):
                await call
    assert [head.split(" ")[0] for head in fake.heads] == ["GET", "PUT", "DELETE", "GET"]


async def test_environment_variables_do_not_change_requests(
    open_store: OpenStore, minio_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_host = FakeStore(always(http(403, b"elsewhere")))
    async with listening(other_host.handle) as endpoint:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, f"http://{endpoint}")
        for name, value in {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "-",
            "AWS_SESSION_TOKEN": "-",
            "AWS_SKIP_SIGNATURE": "true",
            "AWS_BUCKET": "other",
            "AWS_REGION": "eu-west-1",
            "AWS_CONDITIONAL_PUT": "disabled",
            "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        }.items():
            monkeypatch.setenv(name, value)
        store = open_store(archive(minio_store._minio._base_url.host, bucket=minio_store.bucket))
        await prove(store)
        assert await store.names("") == [PROBE, RACED]
        assert await store.read(PROBE, max_bytes=1) == b"{"
    assert other_host.heads == []


async def test_log_records_contain_no_signature(
    minio_store: ObjectStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"video")
    with caplog.at_level(logging.DEBUG):
        etag = await minio_store.put_if("a", b"", etag=None)
        with pytest.raises(PreconditionFailedError):
            await minio_store.put_if("a", b"", etag=None)
        await minio_store.replace_file("a", tmp_path / "f", etag=etag, content_type="video/mp4")
        await minio_store.names("")
        await minio_store.digest("a")
        await minio_store.remove("a")
    assert "/a" in caplog.text
    assert "X-Amz-Signature" not in caplog.text
    assert "5ec7e7" not in caplog.text


@pytest.mark.parametrize(
    ("cls", "retryable"),
    [
        (StoreError, False),
        (StoreUnavailableError, True),
        (StoreRefusedError, False),
        (WrongAddressError, False),
        (StoreUnfitError, False),
        (PreconditionFailedError, False),
    ],
)
def test_store_errors_survive_pickling(cls: type[StoreError], retryable: bool) -> None:
    copy = pickle.loads(pickle.dumps(cls("what happened", code="X")))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), copy.code) == (cls, "what happened", "X")
    assert copy.retryable is retryable
    assert issubclass(cls, StoreError)
