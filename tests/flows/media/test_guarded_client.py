"""The client for untrusted URLs, against real servers on loopback, with made-up names from an injected resolver."""

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from flows.media.guarded_client import GuardedTransport, guarded_client, resolve_host
from flows.media.media_errors import DownloadError, ForbiddenUrlError

from .wire import OK, fake_resolver, get, serving

# Resolving names and connecting


async def test_request_keeps_host_name_while_connecting_to_resolved_address() -> None:
    async with serving(OK) as server:
        client = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=["127.0.0.1"]))
        assert await get(client, server.url("/x?y=1", host="a.example")) == b"hello"
    assert server.requests[0].startswith("GET /x?y=1 HTTP/1.1\r\n")
    assert f"Host: a.example:{server.port}\r\n" in server.requests[0]


async def test_name_with_changing_address_is_resolved_once() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with serving(OK) as server:
        assert await get(guarded_client(allow_private_hosts=True, resolve=resolve), server.url(host="a.example"))
    assert len(answers) == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("addresses", [["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["127.0.0.1"]])
async def test_name_with_any_private_address_is_rejected(addresses: list[str]) -> None:
    async with serving(OK) as server:
        client = guarded_client(allow_private_hosts=False, resolve=fake_resolver(a_example=addresses))
        with pytest.raises(ForbiddenUrlError, match=r"127\.0\.0\.1.*allow_private_hosts"):
            await get(client, server.url(host="a.example"))
    assert server.requests == []


SPELLINGS = [
    "127.0.0.1", "2130706433", "0x7f.1", "0x7f000001", "0X7F000001", "0x7f.0x0.0x0.0x1", "017700000001", "127.1",
    "127.0.1", "127\u30020\u30020\u30021",  # ideographic full stops
    "localhost", "LOCALHOST",
    "\uff11\uff12\uff17.0.0.1", "\u2460\u2461\u2466.0.0.1",  # wide digits, and digits in circles
    "\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3",
]  # fmt: skip
"""Spellings of this machine's address that the system's resolver and IDNA accept: each of them does connect."""
LOCAL_HOSTS = [
    *SPELLINGS, "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]", "[::ffff:10.0.0.1]", "10.0.0.1",
    "[::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fc00::1]", "100.64.0.1", "0", "0.0.0.0", "[::]",  # noqa: S104
    "169.254.169.254", "2852039166", "0xa9fea9fe", "[fe80::1]", "[::ffff:a9fe:a9fe]",
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL_HOSTS)
async def test_every_spelling_of_local_address_is_rejected(host: str) -> None:
    async with serving(OK) as server:
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(guarded_client(allow_private_hosts=False), server.url(host=host))
    assert server.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http:\\\\127.0.0.1:{}/", "http:/127.0.0.1:{}/", "http:127.0.0.1:{}/", "http:\\/127.0.0.1:{}/",
        "//127.0.0.1:{}/",
        "127.0.0.1:{}/", "\\\\127.0.0.1:{}\\", " ht\ntp://127.0.0.1:{}/", "http://127.0.0.1:{}\\@good.example/",
        "http://127.0.0.1:{}#@good.example/", "http://127.0.0.1:{}?@good.example/", "<HTTP://127.0.0.1:{}>",
        "http:\\/\\/127.0.0.1:{}\\/", "\ufeffhttp://127.0.0.1:{}/\u200b",
    ],
)  # fmt: skip
async def test_no_url_spelling_disguises_loopback_address(url: str) -> None:
    async with serving(OK) as server:
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(guarded_client(allow_private_hosts=False), url.format(server.port))
    assert server.requests == []


@pytest.mark.parametrize("host", SPELLINGS)
async def test_spellings_do_reach_this_machine_if_private_hosts_are_allowed(host: str) -> None:
    """Without this, the tests above might reject spellings that lead nowhere anyway."""
    async with serving(OK) as server:
        assert await get(guarded_client(allow_private_hosts=True), server.url(host=host)) == b"hello"
    assert len(server.requests) == 1


@pytest.mark.parametrize("inside", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "fe80::1%lo"])
async def test_name_that_later_resolves_to_private_address_is_rejected(inside: str) -> None:
    """DNS rebinding: a request connects to the checked address, and its redirect is resolved and checked again."""
    resolved: list[str] = []
    public = "8.8.8.8"

    async def resolve(host: str, port: int) -> Sequence[str]:
        resolved.append(host)
        return [public] if len(resolved) == 1 else [inside]

    class FakeInternet(httpx.AsyncBaseTransport):
        """Receives the checked request in place of the internet, and redirects it."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            requested.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
            return httpx.Response(302, headers={"Location": "/again"})

    requested: list[tuple[str, str, str]] = []
    transport = GuardedTransport(allow_private_hosts=False, resolve=resolve)
    transport._transports[None] = FakeInternet()  # type: ignore[assignment] # a test has no public server
    with pytest.raises(ForbiddenUrlError, match="not public"):
        await get(httpx.AsyncClient(transport=transport), "http://a.example/first")
    assert requested == [(public, "a.example", "a.example")]
    assert resolved == ["a.example", "a.example"]


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with serving(OK) as server:
        client = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=["127.0.0.2", "127.0.0.1"]))
        assert await get(client, server.url(host="a.example")) == b"hello"


@pytest.mark.parametrize("kinds", ["IPv6 first", "IPv4 first"])
async def test_host_is_reached_if_only_its_ipv4_or_only_its_ipv6_addresses_work(kinds: str) -> None:
    async with serving(OK) as server:
        dead = [f"fd00:dead::{last}" for last in range(1, 9)]  # as many addresses as S3 has
        addresses = [*dead, "127.0.0.1"]
        if kinds == "IPv4 first":
            addresses = [*(f"127.0.1.{last}" for last in range(1, 9)), "::ffff:127.0.0.1"]
        client = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=addresses))
        assert await get(client, server.url(host="a.example")) == b"hello"
    assert len(server.requests) == 1


async def test_name_with_many_dead_addresses_raises_retryable_error() -> None:
    async with serving(OK) as server:
        dead = [f"127.0.1.{last}" for last in range(1, 200)]
        client = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=[*dead, "127.0.0.1"]))
        with pytest.raises(DownloadError) as caught:
            await get(client, server.url(host="a.example"))
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


@pytest.mark.parametrize("failure", [OSError("no such name"), UnicodeError("label"), None])
async def test_unresolvable_name_raises_retryable_error(failure: Exception | None) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if failure is not None:
            raise failure
        return []

    with pytest.raises(DownloadError, match=r"a\.example") as caught:
        await get(guarded_client(allow_private_hosts=False, resolve=resolve), "http://a.example/?token=secret")
    assert caught.value.retryable
    assert "secret" not in f"{caught.value} {vars(caught.value)}"


async def test_hanging_name_resolution_times_out() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(DownloadError):
        await get(guarded_client(allow_private_hosts=False, resolve=resolve, timeout_seconds=0.01), "http://a.example/")


async def test_system_resolver_returns_each_address_once() -> None:
    assert await resolve_host("127.0.0.1", 80) == ["127.0.0.1"]


# What is sent


async def test_no_credentials_and_no_cookies_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine a.example login me password secret")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    cookie = b"HTTP/1.1 302 Found\r\nSet-Cookie: s=1\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"
    async with serving(cookie, OK) as server:
        client = guarded_client(allow_private_hosts=True, resolve=fake_resolver(a_example=["127.0.0.1"]))
        client.headers["Authorization"] = "Bearer secret"
        assert await get(client, server.url(host="a.example"), Cookie="t=2") == b"hello"
        assert not client.cookies
    sent = "".join(server.requests).lower()
    assert len(server.requests) == 2
    assert "authorization" not in sent
    assert "cookie" not in sent
    assert "accept-encoding: identity" in sent


@pytest.mark.parametrize(
    ("contact", "comment"),
    [
        ("https://studio.example/about", r" \(\+https://studio\.example/about\)"),
        (" team@studio.example ", r" \(\+team@studio\.example\)"),
        ("a(b)\r\nX: ü", r" \(\+abX: \)"),
        (None, ""),
    ],
)
async def test_user_agent_names_program_and_contact(
    monkeypatch: pytest.MonkeyPatch, contact: str | None, comment: str
) -> None:
    monkeypatch.delenv("SORA_CONTACT", raising=False)
    if contact:
        monkeypatch.setenv("SORA_CONTACT", contact)
    async with serving(OK) as server:
        await get(guarded_client(allow_private_hosts=True), server.url())
    assert re.search(rf"\r\nUser-Agent: sora-pipeline/[\d.]+{comment} httpx/[\d.]+\r\n", server.requests[0])


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"junk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_broken_response_raises_download_error_without_query_string(response: bytes) -> None:
    async with serving(response) as server:
        with pytest.raises(DownloadError, match="could not be fetched") as caught:
            await get(guarded_client(allow_private_hosts=True), server.url("/a?token=secret#f"))
    assert caught.value.retryable
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, httpx.TransportError)


async def test_silent_host_times_out() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(DownloadError, match="ReadTimeout"):
            await get(guarded_client(allow_private_hosts=True, timeout_seconds=0.05), f"http://127.0.0.1:{port}/")
