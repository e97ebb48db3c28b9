"""What happens before a request is sent: keys, certificates, proxies, timeouts, the rate limit."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from apixo import ApixoClient, NoReplyError, NotSentError, UntrustedCertificateError
from apixo.client import _limiter
from tests.support.authority import refusing_after_the_handshake

from .conftest import KITE, MakeClient
from .wire import closed_port, envelope, http, reply, serving

ACCEPTED = reply(http(200, envelope({"taskId": "task_1"})))


@pytest.mark.parametrize(
    "key", ["", " ", "5e7 ", " 5e7", "5 e7", "5e7\n", "5e7\r\nX: y", "5e\x007", "5é7", "5e7\u00a0"]
)
def test_malformed_api_key_is_rejected_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as raised:
        ApixoClient(key)
    assert "5" not in str(raised.value)


async def test_api_key_is_not_in_the_client_repr() -> None:
    async with ApixoClient("sk-5ec7e7", base_url="https://api.example.com") as client:
        assert repr(client) == "ApixoClient(base_url='https://api.example.com')"


@pytest.fixture(scope="session")
def self_signed_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key.

    Like those of many private authorities, it has none of the fields that Python requires by default since 3.13.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "own")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "own.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def server_context(path: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_untrusted_certificate_means_nothing_was_sent(
    make_client: MakeClient, self_signed_certificate: Path
) -> None:
    async with serving(ACCEPTED, tls=server_context(self_signed_certificate)) as server:
        with pytest.raises(UntrustedCertificateError, match=r"SSL_CERT_FILE.*Nothing was sent"):
            await make_client(server.url).submit_once(KITE)
        assert server.requests == []


async def test_client_connects_to_server_with_trusted_certificate(
    make_client: MakeClient, self_signed_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed_certificate))
    async with serving(ACCEPTED, tls=server_context(self_signed_certificate)) as server:
        assert await make_client(server.url).submit_once(KITE) == "task_1"


async def test_tls_error_after_the_handshake_is_unclear(
    make_client: MakeClient, self_signed_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(self_signed_certificate))
    for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"):
        with refusing_after_the_handshake(server_context(self_signed_certificate), answer) as port:
            client = make_client(f"https://127.0.0.1:{port}")
            for call in (client.submit_once(KITE), client.status_once("task_1")):
                with pytest.raises(NoReplyError, match="SSL"):
                    await call


async def test_https_to_a_plain_http_server_means_nothing_was_sent(make_client: MakeClient) -> None:
    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400, "speak up"))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(NotSentError):
            await make_client(f"https://127.0.0.1:{port}").submit_once(KITE)


async def test_nonexistent_host_means_nothing_was_sent(make_client: MakeClient) -> None:
    with pytest.raises(NotSentError, match=r"nowhere\.invalid"):
        await make_client("http://nowhere.invalid").submit_once(KITE)


async def test_hanging_tls_handshake_means_nothing_was_sent(
    make_client: MakeClient,
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # the client hello
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(NotSentError):
            await make_client(f"https://127.0.0.1:{port}", submit_timeout_seconds=0.4).submit_once(KITE)


@pytest.mark.parametrize("proxy_status", [403, 407, 502])
async def test_proxy_that_rejects_the_tunnel_means_nothing_was_sent(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch, proxy_status: int
) -> None:
    async with serving(reply(http(proxy_status, "no"))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(NotSentError, match="Nothing was sent"):
            await make_client("https://api.example.com").submit_once(KITE)
        assert [line.split(" ")[0] for line in proxy.lines()] == ["CONNECT"]
        assert proxy.requests[0].header("authorization") is None


async def test_unreachable_proxy_means_nothing_was_sent(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(NotSentError):
        await make_client("https://api.example.com").submit_once(KITE)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
async def test_api_key_never_goes_through_a_proxy_in_plain_text(
    variable: str, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is on this machine, and the environment sets a proxy without an exception for it."""
    async with serving(reply(http(502, "<h1>Bad gateway</h1>"))) as proxy, serving(ACCEPTED) as server:
        monkeypatch.setenv(variable, proxy.url)
        client = make_client(server.url)
        assert await client.submit_once(KITE) == "task_1"
        assert proxy.requests == []
        assert len(server.requests) == 1


@pytest.mark.parametrize("per_minute", [1, 30, 59, 60, 90, 120, 9_000, 10_000])
def test_any_minute_has_at_most_the_limit_plus_one_second_of_requests(per_minute: float) -> None:
    limiter = _limiter(per_minute)
    # In any window, a leaky bucket lets through its size plus what leaks out meanwhile.
    most = limiter.max_rate + 60 * limiter.max_rate / limiter.time_period
    assert most <= per_minute + max(per_minute / 60, 1) + 1e-6
    assert limiter.max_rate >= 1, "a bucket smaller than one call lets none through"


async def test_submit_and_status_calls_share_the_rate_limit(make_client: MakeClient) -> None:
    status = reply(http(200, envelope({"taskId": "task_1", "state": "pending"})))
    async with serving(*[ACCEPTED, status] * 7, status) as server:
        client = make_client(server.url, requests_per_minute=600)
        began = time.monotonic()
        for _ in range(7):
            await client.submit_once(KITE)
            await client.status_once("task_1")
        # Ten at once, then one every tenth of a second.
        assert time.monotonic() - began >= 0.35
        assert len(server.requests) == 14


async def test_cookies_are_not_kept(make_client: MakeClient) -> None:
    """A gateway's cookie with a non-ASCII letter cannot be sent back: the next call would fail before it is sent."""
    cookie = "s=\u00e9; Path=/"
    accepted = http(200, envelope({"taskId": "task_1"}), set_cookie=cookie)
    pending = http(200, envelope({"taskId": "task_1", "state": "pending"}), set_cookie=cookie)
    async with serving(reply(accepted), reply(accepted), reply(pending)) as server:
        client = make_client(server.url)
        assert [await client.submit_once(KITE) for _ in range(2)] == ["task_1", "task_1"]
        assert [(await client.status_once("task_1")).state for _ in range(2)] == ["pending", "pending"]
    assert [request.header("cookie") for request in server.requests] == [None] * 4
