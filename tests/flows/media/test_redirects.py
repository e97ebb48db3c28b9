"""Redirects from external hosts: how they may be spelled, and that each is checked like the first URL."""

from collections.abc import Sequence

import httpx
import pytest

from flows.media.guarded_client import GuardedTransport, guarded_client, resolve_host
from flows.media.media_errors import DownloadError, ForbiddenUrlError

from .wire import OK, get, redirect, serving


async def test_redirects_are_followed_with_the_same_headers() -> None:
    async with serving(redirect("/b"), redirect("c?d=1"), OK) as server:
        assert await get(guarded_client(allow_private_hosts=True), server.url("/a"), Range="bytes=5-") == b"hello"
    assert [request.split()[1] for request in server.requests] == ["/a", "/b", "/c?d=1"]
    assert all("Range: bytes=5-\r\n" in request for request in server.requests)


@pytest.mark.parametrize(("encoding", "requested"), [("utf-8", "/caf%C3%A9"), ("latin-1", "/caf%E9")])
async def test_non_ascii_redirect_is_followed_byte_for_byte(encoding: str, requested: str) -> None:
    async with serving() as server:
        server.responses += [redirect("/café", encoding), OK]
        assert await get(guarded_client(allow_private_hosts=True), server.url("/")) == b"hello"
    assert [request.split(" ")[1] for request in server.requests] == ["/", requested]


@pytest.mark.parametrize(
    ("location", "requested"),
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
async def test_redirect_spellings_are_normalized(location: str, requested: str) -> None:
    async with serving() as server:
        server.responses += [redirect(location.format(server.port)), OK]
        assert await get(guarded_client(allow_private_hosts=True), server.url("/files/first")) == b"hello"
    assert [request.split(" ")[1] for request in server.requests] == ["/files/first", requested]


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
    # A transport in front gives the first response, because a test has no public server.
    class PublicHost(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "a.example":
                return httpx.Response(302, headers={"Location": f"http://127.0.0.1:{server.port}/"})
            return await guarded.handle_async_request(request)

    guarded = GuardedTransport(allow_private_hosts=False)
    async with serving(OK) as server, guarded:
        with pytest.raises(ForbiddenUrlError, match="not public"):
            await get(httpx.AsyncClient(transport=PublicHost()), "http://a.example/")
    assert server.requests == []


async def test_redirect_loop_raises_error() -> None:
    async with serving(redirect("/")) as server:
        with pytest.raises(DownloadError, match="5 times") as caught:
            await get(guarded_client(allow_private_hosts=True), server.url("/?token=secret"))
    assert not caught.value.retryable
    assert "secret" not in str(caught.value)
    assert len(server.requests) == 6
