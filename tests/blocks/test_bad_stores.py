"""Stores that are down, hang, are in trouble, are no S3 at all, or do not keep conditions."""

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
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (blocks.s3_uploads, blocks.s3_clients):
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_SECONDS", 0.2)


async def test_a_store_that_is_down_is_noticed_quickly(own_open: OpenStore, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
    began = time.monotonic()
    for error in await every_call(own_open(archive(endpoint)), tmp_path / "f"):
        assert isinstance(error, StoreUnavailableError), error
        assert "endpoint" in str(error)
        assert "Signature" not in f"{error} {error.__cause__}"
    assert time.monotonic() - began < 30


@pytest.mark.usefixtures("_short_waits")
async def test_a_store_that_hangs_is_given_up(own_open: OpenStore, tmp_path: Path) -> None:
    async def hang(_: str, __: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with listening(FakeStore(hang).handle) as endpoint:
        for error in await every_call(own_open(archive(endpoint)), tmp_path / "f"):
            assert isinstance(error, StoreUnavailableError), error


TROUBLE = [
    s3_error(503, "SlowDown"),
    s3_error(500, "InternalError"),
    s3_error(409, "ConditionalRequestConflict"),
    s3_error(400, "RequestTimeout"),
    s3_error(400, "SlowDown"),
    http(502, b"<h1>Bad gateway</h1>"),
    http(429, b"-"),
]


@pytest.mark.parametrize("content", TROUBLE)
async def test_trouble_of_the_store_is_worth_another_try(own_open: OpenStore, content: bytes) -> None:
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = own_open(archive(endpoint))
        for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
            with pytest.raises(StoreUnavailableError) as raised:
                await call
            assert raised.value.retryable


NOT_S3 = [http(404, b"404 page not found"), http(200, b"<h1>Welcome to nginx!</h1>"), http(404)]


@pytest.mark.parametrize("content", NOT_S3)
async def test_a_server_that_is_no_s3_neither_has_nor_lacks_an_object(own_open: OpenStore, content: bytes) -> None:
    # So answers an ingress whose store is being restarted. Taken for "there is no such record", it would cost money.
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = own_open(archive(endpoint))
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
async def test_a_no_that_stays_says_what_to_do(own_open: OpenStore, tmp_path: Path, content: bytes) -> None:
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = own_open(archive(endpoint))
        for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
            with pytest.raises(StoreRefusedError, match=r"no permission|video-archive block"):
                await call


async def test_a_redirect_leads_to_no_other_host(own_open: OpenStore) -> None:
    async with listening(FakeStore(always(http(200, b"{}", etag='"1"'))).handle) as elsewhere:
        there = f"http://{elsewhere.replace('127.0.0.1', 'localhost')}/b/a"
        async with listening(FakeStore(always(http(307, b"", location=there))).handle) as endpoint:
            store = own_open(archive(endpoint))
            for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
                with pytest.raises(StoreError):
                    await call


async def test_a_web_page_is_no_empty_listing(own_open: OpenStore) -> None:
    """Taken for one, it would say that nothing is left to do."""
    page = b"<!DOCTYPE html><html><head><title>Welcome to nginx!</title></head><body><p>-</p></body></html>"
    async with listening(FakeStore(always(http(200, page))).handle) as endpoint:
        with pytest.raises(StoreUnavailableError):
            await own_open(archive(endpoint)).names("open/")


@pytest.mark.parametrize("times", [1, 2, 9])
async def test_an_error_that_comes_with_a_good_status_is_no_empty_listing(own_open: OpenStore, times: int) -> None:
    """Taken for one, a reservation that was used would be free again, and a video be forgotten."""
    error = s3_error(503, "SlowDown").replace(b"503", b"200", 1)
    contents = b"<Key>open/a</Key><LastModified>2026-03-01T12:00:00Z</LastModified><Size>1</Size><ETag>1</ETag>"
    listing = b"<ListBucketResult><Name>b</Name><Contents>" + contents + b"</Contents></ListBucketResult>"
    left = times

    async def answer(head: str, writer: asyncio.StreamWriter) -> None:
        nonlocal left
        if "list-type=2" not in head:
            return writer.write(http(200, b"-", etag='"1"'))  # the probe is there
        left -= 1
        return writer.write(error if left >= 0 else http(200, listing))

    async with listening(FakeStore(answer).handle) as endpoint:
        store = own_open(archive(endpoint))
        if times == 1:
            assert await store.names("open/") == ["open/a"]
        else:
            with pytest.raises(StoreUnavailableError):
                await store.names("open/")


async def test_waiting_for_a_turn_is_no_outage(own_open: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request takes as long as it may, and all together take longer."""
    monkeypatch.setattr(blocks.s3_clients, "REQUEST_TIMEOUT_SECONDS", 3)  # also where the machine is slow

    async def slow(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        writer.write(http(200, b"-", etag='"1"'))

    fake = FakeStore(slow)
    async with listening(fake.handle) as endpoint:
        store = own_open(archive(endpoint))
        assert len(await asyncio.gather(*(store.get("a") for _ in range(400)))) == 400
    assert len(fake.heads) == 400


@pytest.mark.parametrize("headers", [{}, {"retry-after": "0"}], ids=["an error", "asked to try again"])
async def test_no_request_is_repeated(headers: dict[str, str], own_open: OpenStore) -> None:
    body = s3_error(503, "SlowDown").partition(b"\r\n\r\n")[2]
    fake = FakeStore(always(http(503, body, **headers)))
    async with listening(fake.handle) as endpoint:
        store = own_open(archive(endpoint))
        for call in (store.get("a"), store.put_if("a", b"", etag=None), store.remove("a"), store.names("a/")):
            with pytest.raises(StoreUnavailableError):
                await call
    assert [head.split(" ")[0] for head in fake.heads] == ["GET", "PUT", "DELETE", "GET"]


async def test_nothing_of_the_environment_changes_a_request(
    own_open: OpenStore, own_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = FakeStore(always(http(403, b"elsewhere")))
    async with listening(elsewhere.handle) as endpoint:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, f"http://{endpoint}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
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
        store = own_open(archive(own_store._minio._base_url.host, bucket=own_store.bucket))
        await prove(store)
        assert await store.names("") == [PROBE, RACED]
        assert await store.read(PROBE, max_bytes=1) == b"{"
    assert elsewhere.heads == []


async def test_no_log_record_holds_a_signature(
    own_store: ObjectStore, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"video")
    with caplog.at_level(logging.DEBUG):
        etag = await own_store.put_if("a", b"", etag=None)
        with pytest.raises(PreconditionFailedError):
            await own_store.put_if("a", b"", etag=None)
        await own_store.replace_file("a", tmp_path / "f", etag=etag, content_type="video/mp4")
        await own_store.names("")
        await own_store.digest("a")
        await own_store.remove("a")
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
def test_an_error_can_be_pickled_with_all_it_knows(cls: type[StoreError], retryable: bool) -> None:
    copy = pickle.loads(pickle.dumps(cls("what happened", code="X")))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), copy.code) == (cls, "what happened", "X")
    assert copy.retryable is retryable
    assert issubclass(cls, StoreError)
