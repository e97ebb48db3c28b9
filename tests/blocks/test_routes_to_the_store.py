"""Stores behind TLS and behind a proxy: every call takes the same route and trusts the same certificates."""

import asyncio
import re
from base64 import b64encode
from collections.abc import Awaitable
from pathlib import Path

import pytest

from blocks.object_store import ObjectStore
from blocks.s3_uploads import IN_MEMORY_BYTES
from blocks.store_errors import StoreRefusedError
from tests.support.authority import make_authority, server_context

from .conftest import OpenStore, archive
from .wire import ConnectProxy, FakeStore, http, listening

HOST = "minio.example.com"


@pytest.fixture(scope="session")
def certificate_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A company's own certificate authority, and the certificates it signed; see `make_authority`."""
    return make_authority(tmp_path_factory.mktemp("authority"), HOST)


async def answer(head: str, writer: asyncio.StreamWriter) -> None:
    """Answers with success, as S3 does."""
    listing = b"<ListBucketResult><Contents><Key>open/a</Key><LastModified>2026-03-01T12:00:00Z</LastModified>"
    listing += b"<Size>1</Size></Contents></ListBucketResult>"
    writer.write(http(200, listing if "list-type" in head else b"-", etag='"1"', **{"last-modified": LAST_MODIFIED}))


LAST_MODIFIED = "Sun, 01 Mar 2026 12:00:00 GMT"


def calls_of(store: ObjectStore, file: Path) -> list[Awaitable[object]]:
    """One call of each client that a store has."""
    large = file.with_name("large")
    file.write_bytes(b"video")
    large.write_bytes(bytes(IN_MEMORY_BYTES + 1))
    return [
        store.put_if("a", b"", etag=None),
        store.names("open/"),
        store.digest("a"),
        store.create_file("a", file, content_type="video/mp4"),
        store.replace_file("a", large, etag='"1"', content_type="video/mp4"),
    ]


async def test_every_call_trusts_the_certificate_file_of_the_environment(
    open_store: OpenStore, certificate_authority: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeStore(answer)
    async with listening(fake.handle, server_context(certificate_authority)) as endpoint:
        for call in calls_of(open_store(archive(endpoint, secure=True)), tmp_path / "f"):
            with pytest.raises(StoreRefusedError, match=r"not trusted.*SSL_CERT_FILE"):
                await call
        assert fake.heads == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate_authority / "ca.pem"))
        for call in calls_of(open_store(archive(endpoint, secure=True)), tmp_path / "f"):
            await call
        assert len(fake.heads) == 5


async def test_no_call_requests_a_compressed_reply(open_store: OpenStore, tmp_path: Path) -> None:
    """A proxy that compresses replies changes their etags as well."""
    fake = FakeStore(answer)
    async with listening(fake.handle) as endpoint:
        for call in calls_of(open_store(archive(endpoint)), tmp_path / "f"):
            await call
    assert len(fake.heads) == 5
    for head in fake.heads:
        requested = re.search(r"^accept-encoding: *(\S*)", head, re.IGNORECASE | re.MULTILINE)
        assert requested is None or requested[1] == "identity", head


async def test_every_call_trusts_the_certificate_folder_of_the_environment(
    open_store: OpenStore, certificate_authority: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(certificate_authority / "certificates"))
    async with listening(FakeStore(answer).handle, server_context(certificate_authority)) as endpoint:
        for call in calls_of(open_store(archive(endpoint, secure=True)), tmp_path / "f"):
            await call


@pytest.mark.parametrize("login", ["", "me:p%40ss@"])
async def test_every_call_uses_the_proxy_of_the_environment(
    open_store: OpenStore, certificate_authority: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, login: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_authority / "ca.pem"))
    fake = FakeStore(answer)
    async with listening(fake.handle, server_context(certificate_authority)) as behind:
        proxy = ConnectProxy(behind)
        async with listening(proxy.handle) as endpoint:
            monkeypatch.setenv("HTTPS_PROXY", f"http://{login}{endpoint}")
            for call in calls_of(open_store(archive(f"{HOST}:9000", secure=True)), tmp_path / "f"):
                await call
    assert {head.split(" ", 2)[1] for head in proxy.heads} == {f"{HOST}:9000"}
    assert {head.split(" ", 1)[0] for head in proxy.heads} == {"CONNECT"}
    assert len(proxy.heads) >= 4  # each client has connections of its own
    given = f"proxy-authorization: basic {b64encode(b'me:p@ss').decode()}".lower()
    assert [head for head in proxy.heads if (given in head.lower()) != bool(login)] == []
    assert len(fake.heads) == 5


async def test_proxy_is_not_used_for_a_loopback_store_with_or_without_tls(
    open_store: OpenStore, certificate_authority: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate_authority / "ca.pem"))
    proxy = FakeStore(answer)
    async with listening(proxy.handle) as proxy_endpoint:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{proxy_endpoint}")
            monkeypatch.setenv(name.lower(), f"http://{proxy_endpoint}")
        async with listening(FakeStore(answer).handle, server_context(certificate_authority)) as endpoint:
            for call in calls_of(open_store(archive(endpoint, secure=True)), tmp_path / "f"):
                await call
        async with listening(FakeStore(answer).handle) as endpoint:
            for call in calls_of(open_store(archive(endpoint)), tmp_path / "f"):
                await call
    assert proxy.heads == []


def test_unsupported_proxy_raises_error_that_suggests_no_proxy(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy:1080")
    with pytest.raises(ValueError, match="NO_PROXY"):
        open_store(archive(HOST, secure=True))
