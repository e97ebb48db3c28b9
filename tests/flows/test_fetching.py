"""Fetching a result: only its bytes, not what the host says about them, decide whether a video is archived."""

import asyncio
import gzip
import hashlib
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from PIL import Image

from apixo import VideoRequest
from flows.fetching import FetchedVideo, fetch_videos
from flows.media.guarded_client import guarded_client
from flows.media.media_errors import CutDownloadError, DamagedVideoError, ForbiddenByHostError, MediaError
from flows.record.generation import Generation
from tests.flows.media.conftest import VideoFiles
from tests.flows.media.test_wrappings import framed
from tests.flows.record.changes import claimed
from tests.support import KITE

SUCCEEDED_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
SOON, A_DAY_LATER = SUCCEEDED_AT + timedelta(hours=23), SUCCEEDED_AT + timedelta(hours=24)


@dataclass
class Host:
    """Serves one body with these header lines, and keeps the requests it received."""

    body: bytes
    headers: str = ""
    length: int | None = None
    sends_length: bool = True
    user_agent: str = ""
    status: int = 200
    requests: list[str] = field(default_factory=list)
    url: str = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.requests.append(request)
        user_agent = next(line for line in request.split("\r\n") if line.lower().startswith("user-agent:"))
        if self.user_agent not in user_agent:
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 7\r\n\r\nblocked")
        else:
            length = len(self.body) if self.length is None else self.length
            length_header = f"Content-Length: {length}\r\n" if self.sends_length else ""
            writer.write(f"HTTP/1.1 {self.status} X\r\n{self.headers}{length_header}\r\n".encode() + self.body)
        writer.close()


@pytest.fixture
async def host(whole: bytes) -> AsyncIterator[Host]:
    made = Host(whole)
    listener = await asyncio.start_server(made.answer, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/v.mp4?sig=secret"
    yield made
    listener.close()
    await listener.wait_closed()


@pytest.fixture
async def web() -> AsyncIterator[httpx.AsyncClient]:
    async with guarded_client(allow_private_hosts=True) as client:
        yield client


@pytest.fixture
def found() -> Generation:
    return claimed().model_copy(update={"succeeded_at": SUCCEEDED_AT})


async def fetch(
    host: Host,
    web: httpx.AsyncClient,
    found: Generation,
    folder: Path,
    *,
    requested: VideoRequest = KITE,
    now: datetime = SOON,
    last_try: bool = True,
) -> FetchedVideo:
    urls = (host.url,)
    (video,) = await fetch_videos(found, urls, folder, web, requested=requested, fresh=True, last_try=last_try, now=now)
    return video


async def test_video_is_compared_with_the_request_of_its_own_task(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path
) -> None:
    """Not with the request of the current task, which may have another model and duration."""
    longer = KITE.model_copy(update={"duration": 12})
    longer_generation = found.model_copy(update={"request": longer})
    assert "requested" not in str((await fetch(host, web, longer_generation, tmp_path / "a")).warnings)
    assert "12 s were requested" in str((await fetch(host, web, found, tmp_path / "b", requested=longer)).warnings)


LABELS = [
    "aws-chunked", "gzip", "base64", "binary", "none", "utf-8", "UTF-8", "", "br", "deflate", "zstd",
    "aws-chunked,gzip", "x-unheard-of", "identity",
]  # fmt: skip


@pytest.mark.parametrize("label", LABELS)
async def test_content_type_and_encoding_headers_are_ignored(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path, whole: bytes, label: str
) -> None:
    host.headers = f"Content-Encoding: {label}\r\nContent-Type: text/html; charset=binary\r\n"
    video = await fetch(host, web, found, tmp_path, last_try=False)
    assert video.path.read_bytes() == whole
    assert (video.sha256, video.size_bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))
    assert video.warnings == ()
    assert "accept-encoding: identity" in host.requests[0].lower()
    assert len(host.requests) == 1


@pytest.mark.parametrize("label", ["gzip", "aws-chunked", ""])
@pytest.mark.parametrize(
    ("wrapped", "names"),
    [
        (gzip.compress, ["gzip"]),
        (framed, ["aws-chunked"]),
        (lambda data: framed(gzip.compress(data)), ["aws-chunked", "gzip"]),
    ],
)
async def test_wrapped_video_is_archived_unwrapped(
    host: Host,
    web: httpx.AsyncClient,
    found: Generation,
    tmp_path: Path,
    whole: bytes,
    label: str,
    wrapped: Callable[[bytes], bytes],
    names: list[str],
) -> None:
    host.body, host.headers = wrapped(whole), f'Content-Encoding: {label}\r\nETag: "1"\r\n'
    video = await fetch(host, web, found, tmp_path, last_try=False)
    assert video.path.read_bytes() == whole
    assert (video.sha256, video.size_bytes) == (hashlib.sha256(whole).hexdigest(), len(whole))
    assert [w for w in video.warnings if "wrapped" in w] == [
        f"the video came wrapped in {name}, and is archived unwrapped" for name in names
    ]


@pytest.mark.parametrize("excess", [1, 5_000_000])
async def test_complete_video_is_archived_despite_a_wrong_content_length(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path, whole: bytes, excess: int
) -> None:
    """This happens if a proxy decompresses the body, and keeps the length of the compressed bytes."""
    host.length = len(whole) + excess
    with pytest.raises(CutDownloadError):
        await fetch(host, web, found, tmp_path, last_try=False)
    video = await fetch(host, web, found, tmp_path)
    assert video.path.read_bytes() == whole
    assert any("everything that the host sends is archived" in warning for warning in video.warnings)
    assert "secret" not in str(video.warnings)


async def test_possibly_cut_video_without_an_index_is_accepted_only_after_a_day(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path
) -> None:
    made = VideoFiles(tmp_path).make("made.ts", container="mpegts", frames=96, width=320, height=180)
    content = made.read_bytes()
    host.body, host.length = content[: 188 * (len(content) // 376)], len(content)
    with pytest.raises(CutDownloadError):
        await fetch(host, web, found, tmp_path)
    video = await fetch(host, web, found, tmp_path, now=A_DAY_LATER)
    assert video.path.read_bytes() == host.body
    assert any("everything that the host sends" in warning for warning in video.warnings)


def zstd(data: bytes) -> bytes:
    """A zstd frame of uncompressed blocks."""
    size = 2**17
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    heads = [
        (len(block) << 3 | (number == len(blocks))).to_bytes(3, "little") for number, block in enumerate(blocks, 1)
    ]
    return b"\x28\xb5\x2f\xfd\0\x58" + b"".join(head + block for head, block in zip(heads, blocks, strict=True))


def animated_webp() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (64, 48), (40 * number, 0, 0)) for number in range(4)]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:], duration=100)
    return out.getvalue()


DAMAGE = [
    "cut, with the length of the cut file", "cut, with the full length", "junk in the middle", "unknown codec", "zstd",
    "animated WebP",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
async def test_a_damaged_video_is_fetched_again_for_a_day_and_then_kept(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path, whole: bytes, how: str
) -> None:
    start = whole.index(b"mdat") + 4
    match how:
        case "cut, with the length of the cut file":
            host.body = whole[: len(whole) // 2]
        case "cut, with the full length":
            host.body, host.length = whole[: len(whole) // 2], len(whole)
        case "zstd":
            host.body, host.headers = zstd(whole), "Content-Encoding: zstd\r\n"
        case "animated WebP":
            host.body = animated_webp()
        case "junk in the middle":
            host.body = whole[:start] + b"\xff" * (len(whole) - start)
        case _:
            host.body = whole.replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC")
    for now, last_try in ((SOON, True), (A_DAY_LATER, False)):
        with pytest.raises(MediaError) as caught:
            await fetch(host, web, found, tmp_path, now=now, last_try=last_try)
        assert caught.value.retryable
    video = await fetch(host, web, found, tmp_path, now=A_DAY_LATER)
    assert video.facts is None
    assert video.path.read_bytes() == host.body
    assert video.sha256 == hashlib.sha256(host.body).hexdigest()
    assert "the video is damaged; after a day of retries it is archived as it came" in video.warnings[0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<!doctype html><title>Sign in</title>\r\n\tThis link expired \xe2\x80\x93 ask again",
        b'{"code": 404}',
        b"#EXTM3U\n#EXTINF:2,\nv.ts\n",
    ],
)
async def test_page_is_never_archived_as_a_video(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path, body: bytes
) -> None:
    host.body = body
    with pytest.raises(DamagedVideoError, match=r"[^.]\. It is not archived.*stays open"):
        await fetch(host, web, found, tmp_path, now=SUCCEEDED_AT + timedelta(days=14))


async def test_host_that_requires_a_browser_gets_a_browser_style_user_agent(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path, whole: bytes
) -> None:
    host.user_agent = "Mozilla"
    assert (await fetch(host, web, found, tmp_path, last_try=False)).size_bytes == len(whole)
    first, second = host.requests
    assert "\r\nUser-Agent: sora-pipeline/" in first
    assert "\r\nUser-Agent: Mozilla/5.0 (compatible; sora-pipeline/" in second


async def test_error_for_a_host_that_forbids_us_does_not_mention_expiry(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path
) -> None:
    host.user_agent = "another program"
    with pytest.raises(ForbiddenByHostError, match="rejects this program or this network") as caught:
        await fetch(host, web, found, tmp_path)
    assert "15 days" not in str(caught.value)
    assert len(host.requests) == 2


async def test_url_with_spaces_is_fetched(
    host: Host, web: httpx.AsyncClient, found: Generation, tmp_path: Path, whole: bytes
) -> None:
    host.url = " " + host.url.replace("v.mp4", "a b/é.mp4").replace("http://", "HTTP:\\\\") + "%2F+=#t=0\n"
    assert (await fetch(host, web, found, tmp_path, last_try=False)).size_bytes == len(whole)
    assert host.requests[0].startswith("GET /a%20b/%C3%A9.mp4?sig=secret%2F+= HTTP/1.1\r\n")
