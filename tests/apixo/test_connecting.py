"""What happens before a request is sent: keys, certificates, proxies, time-outs, the rate limit."""

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

from .conftest import KITE, Connect
from .wire import closed_port, envelope, http, reply, serving

ACCEPTED = reply(http(200, envelope({"taskId": "task_1"})))


@pytest.mark.parametrize(
    "key", ["", " ", "5e7 ", " 5e7", "5 e7", "5e7\n", "5e7\r\nX: y", "5e\x007", "5é7", "5e7\u00a0"]
)
def test_a_key_that_was_copied_badly_is_refused_at_once(key: str) -> None:
    with pytest.raises(ValueError, match="API key") as raised:
        ApixoClient(key)
    assert "5" not in str(raised.value)


async def test_a_key_shows_in_no_repr() -> None:
    async with ApixoClient("sk-5ec7e7", base_url="https://api.example.com") as client:
        assert repr(client) == "ApixoClient(base_url='https://api.example.com')"


@pytest.fixture(scope="session")
def own_certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key."""
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


async def test_a_certificate_nobody_vouches_for_means_that_nothing_was_sent(
    own_connect: Connect, own_certificate: Path
) -> None:
    async with serving(ACCEPTED, tls=server_context(own_certificate)) as server:
        with pytest.raises(UntrustedCertificateError, match=r"SSL_CERT_FILE.*Nothing was sent"):
            await own_connect(server.url).submit_once(KITE)
        assert server.requests == []


async def test_a_trusted_certificate_is_connected_to(
    own_connect: Connect, own_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(own_certificate))
    async with serving(ACCEPTED, tls=server_context(own_certificate)) as server:
        assert await own_connect(server.url).submit_once(KITE) == "task_1"


async def test_a_tls_error_after_the_handshake_is_unclear(
    own_connect: Connect, own_certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(own_certificate))
    for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"):
        with refusing_after_the_handshake(server_context(own_certificate), answer) as port:
            client = own_connect(f"https://127.0.0.1:{port}")
            for call in (client.submit_once(KITE), client.status_once("task_1")):
                with pytest.raises(NoReplyError, match="SSL"):
                    await call


async def test_https_to_a_server_of_plain_http_means_that_nothing_was_sent(own_connect: Connect) -> None:
    async def plain(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400, "speak up"))
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(NotSentError):
            await own_connect(f"https://127.0.0.1:{port}").submit_once(KITE)


async def test_a_host_that_does_not_exist_means_that_nothing_was_sent(own_connect: Connect) -> None:
    with pytest.raises(NotSentError, match=r"nowhere\.invalid"):
        await own_connect("http://nowhere.invalid").submit_once(KITE)


async def test_a_handshake_that_hangs_longer_than_the_call_may_take_means_that_nothing_was_sent(
    own_connect: Connect,
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # the client hello
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(NotSentError):
            await own_connect(f"https://127.0.0.1:{port}", submit_timeout_seconds=0.4).submit_once(KITE)


@pytest.mark.parametrize("refusal", [403, 407, 502])
async def test_a_proxy_that_refuses_the_tunnel_means_that_nothing_was_sent(
    own_connect: Connect, monkeypatch: pytest.MonkeyPatch, refusal: int
) -> None:
    async with serving(reply(http(refusal, "no"))) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(NotSentError, match="Nothing was sent"):
            await own_connect("https://api.example.com").submit_once(KITE)
        assert [line.split(" ")[0] for line in proxy.lines()] == ["CONNECT"]
        assert proxy.requests[0].header("authorization") is None


async def test_a_proxy_that_is_down_means_that_nothing_was_sent(
    own_connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(NotSentError):
        await own_connect("https://api.example.com").submit_once(KITE)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
async def test_the_key_never_goes_through_a_proxy_in_clear(
    variable: str, own_connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sandbox on this machine, and a proxy of the environment that does not except it."""
    async with serving(reply(http(502, "<h1>Bad gateway</h1>"))) as proxy, serving(ACCEPTED) as server:
        monkeypatch.setenv(variable, proxy.url)
        client = own_connect(server.url)
        assert await client.submit_once(KITE) == "task_1"
        assert proxy.requests == []
        assert len(server.requests) == 1


@pytest.mark.parametrize("a_minute", [1, 30, 59, 60, 90, 120, 9_000, 10_000])
def test_no_minute_holds_more_than_the_limit_and_one_second_of_it(a_minute: float) -> None:
    limiter = _limiter(a_minute)
    # A leaky bucket lets through, in any window, its size and what leaks out meanwhile.
    most = limiter.max_rate + 60 * limiter.max_rate / limiter.time_period
    assert most <= a_minute + max(a_minute / 60, 1) + 1e-6
    assert limiter.max_rate >= 1, "a bucket smaller than one call lets none through"


async def test_submissions_and_questions_share_the_limit(own_connect: Connect) -> None:
    status = reply(http(200, envelope({"taskId": "task_1", "state": "pending"})))
    async with serving(*[ACCEPTED, status] * 7, status) as server:
        client = own_connect(server.url, requests_per_minute=600)
        began = time.monotonic()
        for _ in range(7):
            await client.submit_once(KITE)
            await client.status_once("task_1")
        # Ten at once, then one each tenth of a second.
        assert time.monotonic() - began >= 0.35
        assert len(server.requests) == 14


async def test_no_cookie_is_kept_not_even_one_that_would_break_the_next_call(own_connect: Connect) -> None:
    """A gateway's cookie with an odd letter cannot be sent back: the next call would fail before it is sent."""
    cookie = "s=\u00e9; Path=/"
    accepted = http(200, envelope({"taskId": "task_1"}), set_cookie=cookie)
    pending = http(200, envelope({"taskId": "task_1", "state": "pending"}), set_cookie=cookie)
    async with serving(reply(accepted), reply(accepted), reply(pending)) as server:
        client = own_connect(server.url)
        assert [await client.submit_once(KITE) for _ in range(2)] == ["task_1", "task_1"]
        assert [(await client.status_once("task_1")).state for _ in range(2)] == ["pending", "pending"]
    assert [request.header("cookie") for request in server.requests] == [None] * 4
