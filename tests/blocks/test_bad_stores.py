"""Stores that are down, hang, are in trouble, are no S3 at all, or do not keep conditions."""

import asyncio
import logging
import pickle
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import blocks.s3_clients
import blocks.s3_uploads
from blocks.conditions import PROBE, prove
from blocks.errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    StoreUnfitError,
)
from blocks.object_store import ObjectStore

from .conftest import OpenStore, archive
from .test_object_store import every_call
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
    assert time.monotonic() - began < 5


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
            await store.ensure_ready()


@pytest.mark.parametrize("content", [s3_error(403, "AccessDenied"), http(403), s3_error(301, "PermanentRedirect")])
async def test_a_no_that_stays_says_what_to_do(own_open: OpenStore, tmp_path: Path, content: bytes) -> None:
    async with listening(FakeStore(always(content)).handle) as endpoint:
        store = own_open(archive(endpoint))
        for call in (store.get("a"), store.put("a", b""), store.put_if("a", b"", etag=None), store.remove("a")):
            with pytest.raises(StoreRefusedError, match=r"right to it|video-archive block"):
                await call


class PlainStore:
    """Keeps objects and looks at no condition, or only at one of the two."""

    def __init__(self, honours: str) -> None:
        self.objects: dict[str, int] = {}
        self.honours = honours

    async def __call__(self, head: str, writer: asyncio.StreamWriter) -> None:
        method, target, _ = head.split(" ", 2)
        path = target.partition("?")[0]
        exists = path in self.objects or path.count("/") == 1
        asked = bool(self.honours) and f"{self.honours.lower()}:" in head.lower()
        if asked and (self.honours == "If-None-Match") == (path in self.objects):
            writer.write(s3_error(412, "PreconditionFailed"))
            return
        if method == "PUT":
            self.objects[path] = 1
            exists = True
        writer.write(http(200, etag='"1"') if exists else s3_error(404, "NoSuchKey"))


@pytest.mark.parametrize("honours", ["", "If-None-Match", "If-Match"])
async def test_a_store_that_ignores_a_condition_is_unfit(own_open: OpenStore, honours: str) -> None:
    async with listening(FakeStore(PlainStore(honours)).handle) as endpoint:
        with pytest.raises(StoreUnfitError, match="paid twice"):
            await own_open(archive(endpoint)).ensure_ready()


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


class CountingStore:
    """Keeps one object and its conditions, with a new etag for each write; `sent` is the etag that readers see."""

    def __init__(self, sent: Callable[[str], str]) -> None:
        self.version = 0
        self.sent = sent

    async def __call__(self, head: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0)  # so that others come in between
        lines = head.lower().split("\r\n")
        etag = f'"{self.version}"'
        wanted = next((line.partition(": ")[2] for line in lines if line.startswith("if-match: ")), etag)
        if head.startswith("GET"):
            writer.write(http(200, b"-", etag=self.sent(etag)) if self.version else s3_error(404, "NoSuchKey"))
        elif wanted != etag or ("if-none-match: *" in lines and self.version):
            writer.write(s3_error(412, "PreconditionFailed"))
        else:
            self.version += 1
            writer.write(http(200, etag=f'"{self.version}"'))


async def test_processes_that_prove_a_new_store_at_once_do_not_disturb_each_other(own_open: OpenStore) -> None:
    fake = CountingStore(lambda etag: etag)
    async with listening(FakeStore(fake).handle) as endpoint:
        block = archive(endpoint)
        await asyncio.gather(*(prove(own_open(block)) for _ in range(8)))
    assert fake.version == 9  # created once, and changed by each


@pytest.mark.parametrize("sent", [lambda etag: f"W/{etag}", lambda etag: f'{etag[:-1]}-gzip"'], ids=["nginx", "apache"])
async def test_a_proxy_that_changes_etags_is_noticed_before_anything_is_paid(
    own_open: OpenStore, sent: Callable[[str], str]
) -> None:
    async with listening(FakeStore(CountingStore(sent)).handle) as endpoint:
        with pytest.raises(StoreUnfitError, match="compresses"):
            await own_open(archive(endpoint)).ensure_ready()


@pytest.mark.usefixtures("_short_waits")
async def test_waiting_for_a_turn_is_no_outage(own_open: OpenStore) -> None:
    """Each request takes half of the time that it may, so all together take many times as long."""

    async def slow(_: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
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
        assert await store.names("") == [PROBE]
        assert await store.read(PROBE, max_bytes=1) == b"S"
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
        (StoreUnfitError, False),
        (PreconditionFailedError, False),
    ],
)
def test_an_error_can_be_pickled_with_all_it_knows(cls: type[StoreError], retryable: bool) -> None:
    copy = pickle.loads(pickle.dumps(cls("what happened", code="X", object_name="a")))  # noqa: S301 - our own bytes
    assert (type(copy), str(copy), copy.code, copy.object_name) == (cls, "what happened", "X", "a")
    assert copy.retryable is retryable
    assert issubclass(cls, StoreError)
