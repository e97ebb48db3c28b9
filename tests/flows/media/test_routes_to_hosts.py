"""The route to external hosts: which certificates are trusted, and the proxy from the environment."""

import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from flows.media.guarded_client import guarded_client, open_stream
from flows.media.media_errors import DownloadError, ForbiddenUrlError
from tests.support.authority import make_authority, server_context

from .wire import OK, Server, fake_resolver, forward_proxy, get, redirect, serving


@dataclass(frozen=True)
class Certificates:
    client: ssl.SSLContext
    server: ssl.SSLContext
    authority: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A certificate for a.example, from an authority that only the client's context trusts."""
    folder = make_authority(tmp_path_factory.mktemp("tls"), "a.example", addresses=())
    trusted = folder / "ca.pem"
    return Certificates(ssl.create_default_context(cafile=trusted), server_context(folder), trusted)


@pytest.fixture
async def secure(certificates: Certificates) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    addresses = fake_resolver(a_example=["127.0.0.1"], b_example=["127.0.0.1"])
    async with (
        serving(OK, tls=certificates.server) as server,
        guarded_client(allow_private_hosts=True, resolve=addresses, verify=certificates.client) as client,
    ):
        yield server, client


async def read(client: httpx.AsyncClient, url: str) -> bytes:
    async with open_stream(client, url) as response:
        return await response.aread()


async def test_the_certificate_is_checked_against_the_name(secure: tuple[Server, httpx.AsyncClient]) -> None:
    server, client = secure
    assert await read(client, server.url(host="a.example", scheme="https")) == b"hello"
    assert await read(client, server.url(host="a.example.", scheme="https")) == b"hello"
    # Both have the same address as a.example, whose certificate is not valid for them.
    for host in ("b.example", "127.0.0.1"):
        with pytest.raises(DownloadError, match="certificate"):
            await read(client, server.url(host=host, scheme="https"))
    assert len(server.requests) == 2


async def test_connection_for_one_name_is_not_reused_for_another(secure: tuple[Server, httpx.AsyncClient]) -> None:
    server, client = secure
    server.keeps_connections = True
    assert await read(client, server.url(host="a.example", scheme="https"))
    with pytest.raises(DownloadError, match="certificate"):
        await read(client, server.url(host="b.example", scheme="https"))


async def test_certificate_from_unknown_authority_is_rejected(secure: tuple[Server, httpx.AsyncClient]) -> None:
    server, _ = secure
    client = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=["127.0.0.1"]))
    with pytest.raises(DownloadError, match="certificate"):
        await get(client, server.url(host="a.example", scheme="https"))


async def test_ssl_cert_file_is_trusted_for_external_hosts(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the paid call gets through a company's network, the download of the paid video must as well."""
    async with serving(OK, tls=certificates.server) as server:
        url = server.url(host="a.example", scheme="https")
        strict = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=["127.0.0.1"]))
        with pytest.raises(DownloadError, match=r"not trusted here.*SSL_CERT_FILE") as raised:
            await get(strict, url)
        assert not raised.value.retryable
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        trusting = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=["127.0.0.1"]))
        assert await get(trusting, url) == b"hello"


async def unresolvable(host: str, _: int) -> Sequence[str]:
    raise socket.gaierror(f"{host} is known to the proxy alone")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_external_hosts_are_reached_through_environment_proxy(
    scheme: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(OK, tls=certificates.server) as origin, forward_proxy(origin.port) as proxy:
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:5ec7e7@127.0.0.1:{proxy.port}")
        client = guarded_client(allow_private_hosts=False, resolve=unresolvable, verify=certificates.client)
        assert await read(client, f"{scheme}://a.example/v.mp4?token=s") in (b"hello", b"by proxy")
        (line,) = proxy.request_lines
        assert line == ("CONNECT a.example:443" if scheme == "https" else "GET http://a.example/v.mp4?token=s")
        assert len(origin.requests) == (scheme == "https")


@pytest.mark.parametrize("host", ["10.0.0.5", "169.254.169.254", "[fd00:ec2::254]", "private.example"])
async def test_host_known_to_be_private_is_rejected_behind_proxy_too(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with forward_proxy(1) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        client = guarded_client(allow_private_hosts=False, resolve=fake_resolver(private_example=["10.0.0.5"]))
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(client, f"http://{host}/v.mp4")
        assert proxy.request_lines == []


@pytest.mark.parametrize(
    ("proxy", "words", "retryable"),
    [("http://me:5ec7e7@127.0.0.1:{}", "407", True), ("socks5://me:5ec7e7@127.0.0.1:{}", "socks5 proxy", False)],
)
async def test_error_for_unusable_proxy_does_not_reveal_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str, words: str, retryable: bool
) -> None:
    async with forward_proxy(1, rejects=True) as rejecting:
        monkeypatch.setenv("HTTPS_PROXY", proxy.format(rejecting.port))
        client = guarded_client(allow_private_hosts=False, resolve=unresolvable)
        with pytest.raises(DownloadError, match=words) as raised:
            await get(client, "https://a.example/v.mp4")
    assert raised.value.retryable is retryable
    assert "5ec7e7" not in f"{raised.value} {raised.value.__cause__}"


async def test_https_may_not_redirect_to_http(secure: tuple[Server, httpx.AsyncClient]) -> None:
    server, client = secure
    async with serving(OK) as plain:
        server.responses[:] = [redirect(plain.url())]
        with pytest.raises(ForbiddenUrlError, match="https to http"):
            await read(client, server.url(host="a.example", scheme="https"))
    assert plain.requests == []


MALFORMED = b"HTTP/2 200\r\nX Id: 5\r\nTransfer-Encoding: chunked, chunked\r\n\r\n5 ; a=b\r\nhello\r\n0\r\n\r\n"


async def test_malformed_response_is_repaired_over_tls(secure: tuple[Server, httpx.AsyncClient]) -> None:
    server, client = secure
    server.responses[:] = [MALFORMED]
    assert await read(client, server.url(host="a.example", scheme="https")) == b"hello"


async def test_malformed_response_is_repaired_behind_proxy(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(MALFORMED, tls=certificates.server) as server, forward_proxy(server.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        client = guarded_client(allow_private_hosts=False, resolve=unresolvable, verify=certificates.client)
        assert await get(client, "https://a.example/v.mp4") == b"hello"
        assert proxy.request_lines == ["CONNECT a.example:443"]


@pytest.mark.parametrize(
    ("location", "requested"),
    [("/café", "/caf%E9"), ("https:\\\\a.example\\b c", "/b%20c")],
    ids=["encoding", "spelling"],
)
async def test_redirect_spellings_are_normalized_behind_proxy_too(
    location: str, requested: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = redirect(location, "latin-1"), OK
    async with serving(*responses, tls=certificates.server) as server, forward_proxy(server.port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        client = guarded_client(allow_private_hosts=False, resolve=unresolvable, verify=certificates.client)
        assert await get(client, "https://a.example/v.mp4") == b"hello"
    assert [request.split(" ")[1] for request in server.requests] == ["/v.mp4", requested]
