"""The guard for URLs from outside: against real servers on loopback, with names that an injected resolver makes up."""

import asyncio
import ipaddress
import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.media.errors import DownloadError, ForbiddenUrlError
from flows.media.hosts import GuardedTransport, check_url, guarded_client, resolve_host
from flows.media.networks import is_allowed_address

from .wire import OK, get, names, redirect, serving

# The text of a URL


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/a.jpg?x=1#y",
        "HTTP://EXAMPLE.com:8080/",
        "https://münchen.example/ü",
        "http://8.8.8.8/",
        "http://[2606:4700::1111]/",
        "http://host_with_underscore/",
        "http://2130706433/",  # an odd spelling of 127.0.0.1: the address it resolves to is checked
        "https://example.com./",
        "https://example.com/a@b?to=c@d",
        "https://example.com?" + "x" * 1980,
    ],
)
def test_a_plain_url_is_allowed(url: str) -> None:
    assert check_url(url).host


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/a", "only http"),
        ("file:///etc/passwd", "only http"),
        ("gopher://example.com", "only http"),
        ("", "only http"),
        ("a.jpg", "only http"),
        ("/a/b.jpg", "only http"),
        ("https:///", "host"),
        ("https:///a.jpg", "host"),
        ("https://8.8.8.8 &@127.0.0.1/", "user name"),
        ("http://127.0.0.1%2f@good.example/", "user name"),
        ("good.example@127.0.0.1/a.jpg", "only http"),
        ("https://exam\u200bple.com/", "read"),
        ("https://exam\u202eple.com/", "read"),
        ("https://exam ple.com/", "host"),
        ("https://good.example\u2100b/", "read"),  # a/c as one character
        ("https://good.example\uff0f@127.0.0.1/", "user name"),  # a full-width slash
        ("https://good.example\uff20127.0.0.1/", "read"),  # a full-width @
        ("https://user:s3cret@example.com/", "user name"),
        ("https://user@example.com/", "user name"),
        ("https://@example.com/", "user name"),
        ("data:image/png;base64,iVBORw0KGgo=", "only http"),
        ("FILE:///etc/passwd", "only http"),
        ("jar:http://8.8.8.8!/", "only http"),
        ("view-source:http://127.0.0.1/", "only http"),
        ("https://a..b/", "host"),
        ("https://./", "host"),
        ("https://ex%61mple.com/", "host"),
        ("https://[fe80::1%25eth0]/", "host"),
        ("https://" + "a" * 64 + ".com/", "host"),
        ("http://0177.0.0.1/", "read"),
        ("http://8.8.8.8:80:80/", "read"),
        ("http://[::ffff:7f00:1/", "read"),
        ("http://[fe80::1%eth0]/", "host|read"),
        ("https://user:s3cret@8.8.8.8:80@127.0.0.1/", "user name"),
        ("https://[::1/", "read"),
        ("https://example.com:port/", "read"),
        ("https://example.com:0/", "port"),
        ("https://example.com:25/", "port"),
        ("https://example.com:65536/", "port"),
        ("https://example.com?" + "x" * 1981, "2,000"),
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ForbiddenUrlError, match=reason) as caught:
        check_url(url)
    assert not caught.value.retryable
    assert "s3cret" not in str(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301 - our own


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("example.com/a.jpg", "https://example.com/a.jpg"),
        ("https://8.8.8.8\\@127.0.0.1/", "https://8.8.8.8/@127.0.0.1/"),  # as browsers read it
        ("https://example.com/\r\nHost: evil", "https://example.com/Host:%20evil"),
        ("https://example.com/\x00", "https://example.com/"),
        ("https://8.8.8.8\t.127.0.0.1.example/", "https://8.8.8.8.127.0.0.1.example/"),
        ("ht\ntp://8.8.8.8/", "http://8.8.8.8/"),
        ("https:\\\\8.8.8.8/", "https://8.8.8.8/"),
        ("//8.8.8.8/a.jpg", "https://8.8.8.8/a.jpg"),
        (" https://example.com/ ", "https://example.com/"),
        ("https:example.com", "https://example.com"),
        ("http://\uff18.8.8.8/", "http://8.8.8.8/"),
    ],
)
def test_how_an_address_is_written_does_not_matter(url: str, asked: str) -> None:
    assert check_url(url) == httpx.URL(asked)


@given(st.text() | st.text().map("http://{}".format) | st.text("abc.:/@[]%#?\\1", max_size=20).map("http://{}".format))
def test_any_text_is_a_url_or_refused(text: str) -> None:
    try:
        parsed = check_url(text)
    except ForbiddenUrlError:
        return
    assert parsed.scheme in {"http", "https"}
    assert parsed.host
    assert not parsed.userinfo
    assert check_url(str(parsed), max_length=100_000) == parsed


# Addresses

PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
PRIVATE = [
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "127.0.0.1",
    "127.255.255.254",
    "100.64.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::8.8.8.8",
    "::ffff:0:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b:1::808:808",
    "100::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:808:808::1",
    "2606:4700::5efe:10.0.0.1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fec0::1",
]
NEVER = [
    "0.0.0.0",  # noqa: S104 - refused, not bound
    "0.1.2.3",
    "169.254.169.254",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "224.0.0.1",
    "239.255.255.255",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "ff02::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:808:808::5601:5601",  # Teredo keeps the client's address inverted
    "fe80::5efe:a9fe:a9fe",
    "fd12::200:5efe:a9fe:a9fe",
]


@pytest.mark.parametrize(
    ("address", "by_default", "with_private"),
    [(a, True, True) for a in PUBLIC] + [(a, False, True) for a in PRIVATE] + [(a, False, False) for a in NEVER],
)
def test_which_addresses_may_be_asked(address: str, by_default: bool, with_private: bool) -> None:
    assert is_allowed_address(address, allow_private_hosts=False) is by_default
    assert is_allowed_address(address, allow_private_hosts=True) is with_private


@given(st.ip_addresses(v=4), st.booleans())
def test_wrapping_an_address_never_makes_it_allowed(inner: ipaddress.IPv4Address, private: bool) -> None:
    if is_allowed_address(inner, allow_private_hosts=private):
        return
    number = int(inner)
    for wrapped in (number, number | 0xFFFF << 32, number | 0x64FF9B << 96, 0x2002 << 112 | number << 80):
        if wrapped == 1:
            continue  # ::1 is itself
        assert not is_allowed_address(ipaddress.IPv6Address(wrapped), allow_private_hosts=private)


# Looking up and connecting


async def test_the_name_stays_in_the_request_while_the_address_is_connected_to() -> None:
    async with serving(OK) as server:
        client = guarded_client(allow_private_hosts=True, resolve=names(a_example=["127.0.0.1"]))
        assert await get(client, server.url("/x?y=1", host="a.example")) == b"hello"
    assert server.requests[0].startswith("GET /x?y=1 HTTP/1.1\r\n")
    assert f"Host: a.example:{server.port}\r\n" in server.requests[0]


async def test_a_name_that_changes_its_address_is_looked_up_once() -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    async with serving(OK) as server:
        assert await get(guarded_client(allow_private_hosts=True, resolve=resolve), server.url(host="a.example"))
    assert len(answers) == 1
    assert len(server.requests) == 1


@pytest.mark.parametrize("addresses", [["8.8.8.8", "127.0.0.1"], ["127.0.0.1", "8.8.8.8"], ["127.0.0.1"]])
async def test_one_private_address_is_enough_to_refuse_a_name(addresses: list[str]) -> None:
    async with serving(OK) as server:
        client = guarded_client(allow_private_hosts=False, resolve=names(a_example=addresses))
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
"""Of this machine, as the system's resolver and IDNA read them: each of them does connect."""
INSIDE = [
    *SPELLINGS, "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]", "[::ffff:10.0.0.1]", "10.0.0.1",
    "[::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[fc00::1]", "100.64.0.1", "0", "0.0.0.0", "[::]",  # noqa: S104
    "169.254.169.254", "2852039166", "0xa9fea9fe", "[fe80::1]", "[::ffff:a9fe:a9fe]",
]  # fmt: skip


@pytest.mark.parametrize("host", INSIDE)
async def test_every_spelling_of_this_machine_and_its_network_is_refused(host: str) -> None:
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
async def test_no_way_of_writing_hides_this_machine(url: str) -> None:
    async with serving(OK) as server:
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(guarded_client(allow_private_hosts=False), url.format(server.port))
    assert server.requests == []


@pytest.mark.parametrize("host", SPELLINGS)
async def test_the_spellings_do_lead_to_this_machine_where_it_may_be_asked(host: str) -> None:
    """Else the test above would refuse what nobody could connect to."""
    async with serving(OK) as server:
        assert await get(guarded_client(allow_private_hosts=True), server.url(host=host)) == b"hello"
    assert len(server.requests) == 1


@pytest.mark.parametrize("inside", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "fe80::1%lo"])
async def test_a_name_that_turns_private_after_the_check_is_not_followed(inside: str) -> None:
    """The next look-up gives this machine, and nothing looks again: the checked address is the one connected to."""
    looked_up: list[str] = []
    public = "8.8.8.8"

    async def resolve(host: str, port: int) -> Sequence[str]:
        looked_up.append(host)
        return [public] if len(looked_up) == 1 else [inside]

    class Connected(httpx.AsyncBaseTransport):
        """What the checked request goes to, in place of the internet."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked.append((request.url.host, request.headers["host"], request.extensions["sni_hostname"]))
            return httpx.Response(302, headers={"Location": "/again"})

    asked: list[tuple[str, str, str]] = []
    transport = GuardedTransport(allow_private_hosts=False, resolve=resolve)
    await transport._inner.aclose()
    transport._inner = Connected()  # type: ignore[assignment] # no public server can be had in a test
    with pytest.raises(ForbiddenUrlError, match="not public"):
        await get(httpx.AsyncClient(transport=transport), "http://a.example/first")
    assert asked == [(public, "a.example", "a.example")]
    assert looked_up == ["a.example", "a.example"]


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    async with serving(OK) as server:
        client = guarded_client(allow_private_hosts=True, resolve=names(a_example=["127.0.0.2", "127.0.0.1"]))
        assert await get(client, server.url(host="a.example")) == b"hello"


async def test_a_name_with_many_dead_addresses_ends() -> None:
    async with serving(OK) as server:
        dead = [f"127.0.1.{last}" for last in range(1, 200)]
        client = guarded_client(allow_private_hosts=True, resolve=names(a_example=[*dead, "127.0.0.1"]))
        with pytest.raises(DownloadError) as caught:
            await get(client, server.url(host="a.example"))
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, httpx.ConnectError)


@pytest.mark.parametrize("failure", [OSError("no such name"), UnicodeError("label"), None])
async def test_a_name_without_an_address_may_have_one_later(failure: Exception | None) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if failure is not None:
            raise failure
        return []

    with pytest.raises(DownloadError, match=r"a\.example") as caught:
        await get(guarded_client(allow_private_hosts=False, resolve=resolve), "http://a.example/?token=secret")
    assert caught.value.retryable
    assert "secret" not in f"{caught.value} {vars(caught.value)}"


async def test_a_look_up_that_hangs_ends() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(DownloadError):
        await get(guarded_client(allow_private_hosts=False, resolve=resolve, timeout_seconds=0.01), "http://a.example/")


async def test_the_system_resolves_each_address_once() -> None:
    assert await resolve_host("127.0.0.1", 80) == ["127.0.0.1"]


# What is sent


async def test_no_credentials_and_no_cookies_are_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine a.example login me password secret")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    cookie = b"HTTP/1.1 302 Found\r\nSet-Cookie: s=1\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n"
    async with serving(cookie, OK) as server:
        client = guarded_client(allow_private_hosts=True, resolve=names(a_example=["127.0.0.1"]))
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
async def test_the_program_names_itself_and_whom_to_reach(
    monkeypatch: pytest.MonkeyPatch, contact: str | None, comment: str
) -> None:
    monkeypatch.delenv("SORA_CONTACT", raising=False)
    if contact:
        monkeypatch.setenv("SORA_CONTACT", contact)
    async with serving(OK) as server:
        await get(guarded_client(allow_private_hosts=True), server.url())
    assert re.search(rf"\r\nUser-Agent: sora-pipeline/[\d.]+{comment} httpx/[\d.]+\r\n", server.requests[0])


# Redirects


async def test_redirects_are_followed_with_the_same_headers() -> None:
    async with serving(redirect("/b"), redirect("c?d=1"), OK) as server:
        assert await get(guarded_client(allow_private_hosts=True), server.url("/a"), Range="bytes=5-") == b"hello"
    assert [request.split()[1] for request in server.requests] == ["/a", "/b", "/c?d=1"]
    assert all("Range: bytes=5-\r\n" in request for request in server.requests)


@pytest.mark.parametrize(("encoding", "asked"), [("utf-8", "/caf%C3%A9"), ("latin-1", "/caf%E9")])
async def test_a_redirect_in_any_encoding_goes_back_byte_for_byte(encoding: str, asked: str) -> None:
    async with serving() as server:
        server.answers += [redirect("/café", encoding), OK]
        assert await get(guarded_client(allow_private_hosts=True), server.url("/")) == b"hello"
    assert [request.split(" ")[1] for request in server.requests] == ["/", asked]


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/a b/v.mp4", "/a%20b/v.mp4"),
        (" /v.mp4 ", "/v.mp4"),
        ("/\u00fcber.mp4", "/%C3%BCber.mp4"),
        ("/%C3%BCber.mp4?sig=a%2Fb+c%3D&x='|", "/%C3%BCber.mp4?sig=a%2Fb+c%3D&x='|"),
        ("\\v.mp4", "/v.mp4"),
        ("v.mp4?a b", "/files/v.mp4?a%20b"),
        ("?again=1", "/files/first?again=1"),
        ("/v.mp4#t=0", "/v.mp4"),
        ("//127.0.0.1:{}/v.mp4", "/v.mp4"),
        ("HTTP://127.0.0.1:{}/v.mp4", "/v.mp4"),
        ("cdn.example.com/v.mp4", "/files/cdn.example.com/v.mp4"),
    ],
)
async def test_a_redirect_may_be_written_in_any_way(location: str, asked: str) -> None:
    async with serving() as server:
        server.answers += [redirect(location.format(server.port)), OK]
        assert await get(guarded_client(allow_private_hosts=True), server.url("/files/first")) == b"hello"
    assert [request.split(" ")[1] for request in server.requests] == ["/files/first", asked]


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.example/",
        "http://[::ffff:169.254.169.254]/",
        "http://2852039166/",
        "//0.0.0.0/",
        "//169.254.169.254/latest/meta-data/",
        "\\\\169.254.169.254/",
        "http:\\\\169.254.169.254/",
        "HTTP://169.254.169.254/",
        "http://[::]/",
        "http://[fe80::1%25lo]/",
        "http://0xa9fea9fe/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "ftp://127.0.0.1/",
        "data:text/html,hello",
        "javascript:alert(1)",
        "http://user:word@127.0.0.1/",
        "http://127.0.0.1:25/",
        "http://[",
    ],
)
async def test_a_redirect_is_checked_like_the_first_url(location: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["169.254.169.254"] if host == "metadata.example" else await resolve_host(host, port)

    async with serving(redirect(location), OK) as server:
        with pytest.raises(ForbiddenUrlError):
            await get(guarded_client(allow_private_hosts=True, resolve=resolve), server.url())
    assert len(server.requests) == 1


async def test_a_public_host_may_not_redirect_to_a_private_one() -> None:
    # The first answer comes from a transport in between, for no public server can be had in a test.
    class First(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "a.example":
                return httpx.Response(302, headers={"Location": f"http://127.0.0.1:{server.port}/"})
            return await guarded.handle_async_request(request)

    guarded = GuardedTransport(allow_private_hosts=False)
    async with serving(OK) as server, guarded:
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(httpx.AsyncClient(transport=First()), "http://a.example/")
    assert server.requests == []


async def test_a_loop_of_redirects_ends() -> None:
    async with serving(redirect("/")) as server:
        with pytest.raises(DownloadError, match="5 times") as caught:
            await get(guarded_client(allow_private_hosts=True), server.url("/?token=secret"))
    assert not caught.value.retryable
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"junk\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_a_broken_answer_is_a_download_error_without_the_query(answer: bytes) -> None:
    async with serving(answer) as server:
        with pytest.raises(DownloadError, match="could not be fetched") as caught:
            await get(guarded_client(allow_private_hosts=True), server.url("/a?token=secret#f"))
    assert caught.value.retryable
    assert caught.value.url == server.url("/a")
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value.__cause__, httpx.TransportError)


async def test_a_host_that_says_nothing_ends() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(DownloadError, match="ReadTimeout"):
            await get(guarded_client(allow_private_hosts=True, timeout_seconds=0.05), f"http://127.0.0.1:{port}/")


# TLS
