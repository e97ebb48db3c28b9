"""The sandbox's result URLs: signatures, ranges, expiry, and every fault of a download."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from io import BytesIO

import av
import httpx
import pytest

from deployments.sandbox import Fault, SandboxServer
from tests.deployments.sandbox.caller import KEY, Caller, urls
from tests.deployments.sandbox.conftest import StartSandbox


def test_video_downloads_whole_and_by_range(call: Caller) -> None:
    url = call.video_url()
    whole = call.http.get(url)
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert int(whole.headers["content-length"]) == len(whole.content)
    head = call.http.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]
    etag = whole.headers["etag"]
    part = call.http.get(url, headers={"Range": "bytes=1000-", "If-Range": etag})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 1000-{len(whole.content) - 1}/{len(whole.content)}"
    assert part.content == whole.content[1000:]
    assert call.http.get(url, headers={"Range": "bytes=1000-", "If-Range": '"other"'}).status_code == 200
    assert call.http.get(url, headers={"Range": "bytes=99999999-"}).status_code == 416


def test_slow_reply_without_a_body_is_complete(sandbox: SandboxServer, call: Caller) -> None:
    url = call.video_url()
    size = int(call.http.head(url).headers["content-length"])
    sandbox.faults.add(Fault(call="result", kind="slow", seconds=0.1))
    reply = call.http.get(url, headers={"Range": f"bytes={size}-"})
    assert (reply.status_code, reply.headers["content-range"], reply.content) == (416, f"bytes */{size}", b"")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda url: url.replace("sig=", "sig=0"),
        lambda url: url.split("?")[0],
        lambda url: url.replace("expires=", "expires=9"),
        lambda url: url.replace("/video.mp4", "/video-2.mp4"),
        lambda url: url.replace("/video.mp4", "0/video.mp4"),
        lambda url: url.replace("/results/task_", "/results/task_0"),
        lambda url: url + "%C3%BC",
    ],
)
def test_modified_result_url_is_403(call: Caller, tamper: Callable[[str], str]) -> None:
    assert call.http.get(tamper(call.video_url())).status_code == 403


def test_result_urls_expire_after_15_days(start_sandbox: StartSandbox, http: httpx.Client) -> None:
    # At this speed, 15 days take 0.65 s.
    sandbox = start_sandbox(speed=2_000_000)
    url = Caller(sandbox.base_url, http, KEY).video_url()
    assert http.get(url).status_code == 200
    time.sleep(0.7)
    assert http.get(url).status_code == 410
    assert "expired" in http.get(sandbox.base_url + "/").text


def test_result_url_has_the_host_that_the_caller_used(sandbox: SandboxServer, call: Caller) -> None:
    task_id = call.task()
    call.final_status(task_id)
    other_host = Caller(sandbox.base_url.replace("127.0.0.1", "localhost"), call.http, KEY)
    (url,) = urls(other_host.final_status(task_id))
    assert url.startswith(other_host.base_url + "/results/")


Check = Callable[[httpx.Client, str], None]


def _probe(content: bytes) -> tuple[float, int, int, int]:
    """The declared duration in seconds, the width, the height, and how many frames decode."""
    with av.open(BytesIO(content), "r") as container:
        stream = container.streams.video[0]
        frames = 0
        try:
            for _ in container.decode(stream):
                frames += 1
        except av.FFmpegError:
            pass
        return float((stream.duration or 0) * (stream.time_base or 0)), stream.width, stream.height, frames


def _cut(http: httpx.Client, url: str) -> None:
    with http.stream("GET", url) as reply:
        received = bytearray()
        with pytest.raises(httpx.RemoteProtocolError):
            received.extend(piece for chunk in reply.iter_raw() for piece in chunk)
    with http.stream("GET", url) as reply:
        total = int(reply.headers["content-length"])
    assert int(total) > 0


def _html(http: httpx.Client, url: str) -> None:
    reply = http.get(url)
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")


def _empty(http: httpx.Client, url: str) -> None:
    reply = http.get(url)
    assert (reply.status_code, reply.content) == (200, b"")


def _truncated(http: httpx.Client, url: str) -> None:
    part, whole = http.get(url), http.get(url)
    assert int(part.headers["content-length"]) == len(part.content) == int(len(whole.content) * 0.6)
    assert _probe(part.content)[3] < 96


def _other_duration(http: httpx.Client, url: str) -> None:
    assert _probe(http.get(url).content) == (8.0, 160, 90, 192)


def _other_orientation(http: httpx.Client, url: str) -> None:
    assert _probe(http.get(url).content) == (4.0, 90, 160, 96)


def _redirect(http: httpx.Client, url: str) -> None:
    assert http.get(url).status_code == 302
    assert http.get(url, follow_redirects=True).status_code == 200


def _redirect_private(http: httpx.Client, url: str) -> None:
    assert http.get(url).headers["location"] == "http://169.254.169.254/x"


def _no_range(http: httpx.Client, url: str) -> None:
    reply = http.get(url, headers={"Range": "bytes=100-"})
    assert reply.status_code == 200
    assert _probe(reply.content)[3] == 96


def _no_length(http: httpx.Client, url: str) -> None:
    reply = http.get(url)
    assert "content-length" not in reply.headers
    assert _probe(reply.content)[3] == 96


def _is(status: int) -> Check:
    def check(http: httpx.Client, url: str) -> None:
        assert http.get(url).status_code == status

    return check


def _reset(http: httpx.Client, url: str) -> None:
    with pytest.raises(httpx.ReadError):
        http.get(url)


def _hang(http: httpx.Client, url: str) -> None:
    with pytest.raises(httpx.ReadTimeout):
        http.get(url, timeout=0.3)


def _huge(http: httpx.Client, url: str) -> None:
    with http.stream("GET", url) as reply:
        assert reply.headers["content-length"] == str(3 * 1024**3)
        with pytest.raises(httpx.RemoteProtocolError):
            reply.read()


def _whole(http: httpx.Client, url: str) -> None:
    assert _probe(http.get(url).content)[3] == 96


def _labeled(http: httpx.Client, url: str) -> None:
    reply = http.get(url)
    assert reply.headers["content-encoding"] == "aws-chunked"
    assert _probe(reply.content) == (4.0, 160, 90, 96)


def _framed(http: httpx.Client, url: str) -> None:
    size, rest = http.get(url).content.split(b"\r\n", 1)
    body = rest[: int(size, 16)]
    assert rest[len(body) :] == b"\r\n0\r\n\r\n"
    assert _probe(body) == (4.0, 160, 90, 96)


def _long_length(http: httpx.Client, url: str) -> None:
    with http.stream("GET", url) as reply:
        received = bytearray()
        with contextlib.suppress(httpx.RemoteProtocolError):
            for chunk in reply.iter_raw():
                received += chunk
    assert len(received) == int(reply.headers["content-length"]) - 1
    assert _probe(bytes(received)) == (4.0, 160, 90, 96)


def _gif(http: httpx.Client, url: str) -> None:
    reply = http.get(url)
    assert reply.headers["content-type"] == "video/mp4"
    assert reply.content.startswith(b"GIF89a")
    duration_seconds, *_, frames = _probe(reply.content)
    assert duration_seconds == pytest.approx(4, abs=0.2)
    assert frames == 32


DOWNLOADS: dict[str, Check] = {
    "cut": _cut,
    "html_200": _html,
    "empty": _empty,
    "truncated_mp4": _truncated,
    "other_duration": _other_duration,
    "other_orientation": _other_orientation,
    "redirect": _redirect,
    "redirect_private": _redirect_private,
    "http_403": _is(403),
    "http_404": _is(404),
    "http_500": _is(500),
    "http_502_html": _is(502),
    "http_429": _is(429),
    "reset_before": _reset,
    "hang": _hang,
    "slow": _whole,
    "huge_body": _huge,
    "no_range": _no_range,
    "no_length": _no_length,
    "labeled": _labeled,
    "framed": _framed,
    "long_length": _long_length,
    "gif": _gif,
}


@pytest.mark.parametrize("kind", DOWNLOADS)
def test_each_download_fault_applies_once(sandbox: SandboxServer, call: Caller, kind: str) -> None:
    url = call.video_url()
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind}))
    assert call.http.head(url).status_code == 200
    DOWNLOADS[kind](call.http, url)
    assert kind in [request.fault for request in sandbox.record.results()]
    assert sandbox.faults.pending() == []
    assert _probe(call.http.get(url).content) == (4.0, 160, 90, 96)


def test_download_fault_does_not_apply_to_unknown_videos(sandbox: SandboxServer, call: Caller) -> None:
    sandbox.faults.add(Fault(call="result", kind="cut", times=-1))
    assert call.http.get(f"{sandbox.base_url}/results/task_0/0/video.mp4?expires=1&sig=0").status_code == 403
    assert call.http.get(f"{sandbox.base_url}/results/").status_code == 404


def test_cut_download_delivers_half_and_can_be_resumed(sandbox: SandboxServer, call: Caller) -> None:
    url = call.video_url()
    whole = call.http.get(url).content
    sandbox.faults.add(Fault(call="result", kind="cut", times=2))
    received = b""
    for _ in range(2):
        with call.http.stream("GET", url, headers={"Range": f"bytes={len(received)}-"}) as reply:
            try:
                for chunk in reply.iter_raw():
                    received += chunk
            except httpx.RemoteProtocolError:
                pass
    assert len(received) == len(whole) // 2 + (len(whole) - len(whole) // 2) // 2
    received += call.http.get(url, headers={"Range": f"bytes={len(received)}-"}).content
    assert received == whole
