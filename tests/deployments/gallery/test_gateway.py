"""Links to videos: who may use one, where it leads, which requests are allowed, and that nothing else is served."""

import logging
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import StoreUnavailableError
from deployments.gallery.app import create_app
from deployments.gallery.delivery import redirects
from deployments.gallery.index import ArchiveIndex
from flows.record.generation import Generation, State
from tests.deployments.gallery.sample_records import (
    GUARDED,
    PASSWORD,
    VIDEO,
    NoPrefect,
    OpenGallery,
    make_generation,
    put_generations,
)

PATH = "/v/kite/video.mp4"


async def test_link_with_token_redirects_to_fresh_signed_url_that_supports_ranges(
    open_gallery: OpenGallery, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with open_gallery(redirect=True, **GUARDED) as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        answer = await gallery.get(PATH, params={"t": gallery.token("kite")})
    assert answer.status_code == 302
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    async with httpx.AsyncClient() as browser:
        part = await browser.get(answer.headers["location"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, VIDEO[10:20])
    assert part.headers["content-type"] == "video/mp4"
    own_messages = [
        record.getMessage() for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert not any("X-Amz-Signature" in line or gallery.token("kite") in line for line in own_messages)


@pytest.mark.parametrize(
    ("fields", "host"),
    [
        ({"endpoint": "s3.example.com:9000"}, "s3.example.com:9000"),
        ({"endpoint": "s3.example.com:9000", "virtual_host": True}, "kites.s3.example.com:9000"),
        # For these hosts, minio-py itself prepends the bucket and adds the region.
        ({"endpoint": "s3.eu-west-3.amazonaws.com"}, "kites.s3.eu-west-3.amazonaws.com"),
        ({"endpoint": "s3.amazonaws.com"}, "kites.s3.eu-west-3.amazonaws.com"),
        ({"endpoint": "s3.amazonaws.com", "bucket": "my.kites"}, "s3.eu-west-3.amazonaws.com"),
        ({"endpoint": "oss-eu-west-1.aliyuncs.com"}, "kites.oss-eu-west-1.aliyuncs.com"),
    ],
)
async def test_content_policy_allows_the_host_that_videos_redirect_to(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], host: str
) -> None:
    """Browsers check the policy again after the redirect."""

    async def find(_: ArchiveIndex, key: str, *, fresh: bool) -> Generation:
        assert not fresh
        return make_generation(key)

    monkeypatch.setattr(ArchiveIndex, "find", find)
    values = {"access_key": "a", "secret_key": SecretStr("s"), "region": "eu-west-3", "bucket": "kites", **fields}
    block = VideoArchive(**values)
    app = create_app(block, block.store(), redirect=True, links=NoPrefect())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get(PATH)
    sent_to = urlsplit(answer.headers["location"])
    policy = answer.headers["content-security-policy"]
    assert f"{sent_to.scheme}://{sent_to.netloc}" == f"https://{host}"
    assert f"img-src 'self' https://{host}; media-src 'self' https://{host}; " in policy


async def test_video_archived_after_the_last_listing_is_served(open_gallery: OpenGallery) -> None:
    made = make_generation("kite")
    async with open_gallery() as gallery:
        await put_generations(gallery.store, made)
        await gallery.get("/")
        path = PATH.replace("video.mp4", "video-2.mp4")
        assert (await gallery.get(path)).status_code == 404
        more = made.objects[0].model_copy(update={"name": made.objects[0].name.replace("video.mp4", "video-2.mp4")})
        await put_generations(gallery.store, made.model_copy(update={"objects": (*made.objects, more)}))
        assert (await gallery.get(path)).status_code == 302


async def test_download_has_a_descriptive_file_name(open_gallery: OpenGallery) -> None:
    async with open_gallery() as gallery:
        await put_generations(gallery.store, make_generation("kite", "A réd kite!"))
        to_store = await gallery.get(PATH, params={"download": 1})
    async with httpx.AsyncClient() as browser:
        saved = await browser.get(to_store.headers["location"])
    assert saved.headers["content-disposition"] == 'attachment; filename="kite-a-red-kite.mp4"'
    async with open_gallery(redirect=False) as gallery:
        streamed = await gallery.get(PATH, params={"download": 1})
    assert streamed.headers["content-disposition"] == 'attachment; filename="kite-a-red-kite.mp4"'
    assert streamed.content == VIDEO


@pytest.mark.parametrize(
    ("requested", "status", "part", "content_range"),
    [
        (None, 200, VIDEO, None),
        ("bytes=0-", 206, VIDEO, "bytes 0-102399/102400"),
        ("bytes=100-199", 206, VIDEO[100:200], "bytes 100-199/102400"),
        ("bytes=102000-999999", 206, VIDEO[102000:], "bytes 102000-102399/102400"),
        ("bytes=-10", 206, VIDEO[-10:], "bytes 102390-102399/102400"),
        ("bytes=102400-", 416, b"", "bytes */102400"),
        ("bytes=-0", 416, b"", "bytes */102400"),
        ("bytes=9-3", 200, VIDEO, None),
        ("bytes=0-1,4-5", 200, VIDEO, None),
        ("junk", 200, VIDEO, None),
    ],
)
async def test_ranges_work_when_the_gallery_streams_from_the_store(
    open_gallery: OpenGallery, requested: str | None, status: int, part: bytes, content_range: str | None
) -> None:
    async with open_gallery(redirect=False) as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        headers = {"Range": requested} if requested else {}
        answer = await gallery.get(PATH, headers=headers)
        head = await gallery.client.head(PATH, headers=headers)
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, part, content_range)
    assert (head.status_code, head.content) == (status, b"")
    if status != 416:
        assert answer.headers["content-length"] == head.headers["content-length"] == str(len(part))
        assert answer.headers["content-type"] == "video/mp4"


async def test_range_of_another_version_returns_the_whole_video(open_gallery: OpenGallery) -> None:
    async with open_gallery(redirect=False) as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        answer = await gallery.get(PATH, headers={"Range": "bytes=0-9", "If-Range": '"other"'})
        etag = answer.headers["etag"]
        same = await gallery.get(PATH, headers={"Range": "bytes=0-9", "If-Range": etag})
    assert (answer.status_code, same.status_code) == (200, 206)


async def test_video_with_matching_etag_is_not_sent_again(open_gallery: OpenGallery) -> None:
    async with open_gallery(redirect=False) as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        etag = (await gallery.get(PATH)).headers["etag"]
        same = await gallery.get(PATH, headers={"If-None-Match": etag})
        other = await gallery.get(PATH, headers={"If-None-Match": '"other"'})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert same.headers["cache-control"] == "private, no-cache"
    assert (other.status_code, other.content) == (200, VIDEO)


async def test_head_is_not_redirected_because_signed_urls_only_allow_get(open_gallery: OpenGallery) -> None:
    async with open_gallery(redirect=True) as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        answer = await gallery.client.head(PATH)
    assert (answer.status_code, answer.headers["content-length"]) == (200, str(len(VIDEO)))


async def test_every_path_gets_the_same_answer_without_a_valid_token(open_gallery: OpenGallery) -> None:
    async with open_gallery(**GUARDED) as gallery:
        await put_generations(gallery.store, make_generation("kite"), make_generation("other"))
        right, other = gallery.token("kite"), gallery.token("other")
        denied = [
            await gallery.get(path, **options)
            for path, options in (
                (PATH, {}),
                ("/v/kite/poster.jpg", {}),
                ("/v/kite/card.jpg", {}),
                ("/v/missing/video.mp4", {}),
                ("/v/..%2e/video.mp4", {}),
                ("/v/KITE/passwd", {}),
                (PATH, {"params": {"t": other}}),
                (PATH, {"params": {"t": right[:-1]}}),
                (PATH, {"params": {"t": ""}}),
                (PATH, {"params": {"t": "é\ud800".encode("utf-8", "replace").decode()}}),
                (PATH, {"headers": {"Authorization": f"Bearer {other}"}}),
                (PATH, {"headers": {"Authorization": f"Basic {right}"}}),
                (PATH, {"headers": {"Cookie": f"sora_gallery={right}"}}),
                (PATH, {"headers": {"Cookie": "sora_gallery=99999999999.abc"}}),
            )
        ]
        allowed = await gallery.get(PATH, headers={"Authorization": f"Bearer {right}"})
    assert {(answer.status_code, answer.content) for answer in denied} == {(401, denied[0].content)}
    assert len({str(sorted(answer.headers.items())) for answer in denied}) == 1
    assert allowed.status_code in (200, 302)


@pytest.mark.parametrize(
    "path",
    [
        "/v/kite/generation.json", "/v/kite/..%2f..%2fledger%2fkite.json", "/v/kite/video.mp4/", "/v/kite//video.mp4",
        "/v/%2e%2e/ledger", "/v/-kite/video.mp4", "/v/kite%00/video.mp4", "/v/kite/video-2.mp4", "/v/a%0a/video.mp4",
        "/v/" + "a" * 129 + "/video.mp4", "/static/..%2fapp.py", "/static/app.py", "/k/..%2f", "/k/%22%3E%3Cb%3E",
        "/ledger/kite.json", "//evil.example/", "/k/nothing",
    ],
)  # fmt: skip
async def test_hostile_path_is_not_found(open_gallery: OpenGallery, path: str) -> None:
    async with open_gallery() as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        answer = await gallery.get(f"http://localhost{path}")
    assert answer.status_code == 404
    assert "evil" not in answer.text + str(answer.headers)
    assert "<b>" not in answer.text


async def test_unarchived_video_and_removed_poster_are_not_found(open_gallery: OpenGallery) -> None:
    async with open_gallery(redirect=False) as gallery:
        await put_generations(gallery.store, make_generation("soon", state=State.SUBMITTED), make_generation("gone"))
        await gallery.store.remove("videos/2026/03/10/gone/poster.jpg")
        assert (await gallery.get("/v/soon/video.mp4")).status_code == 404
        assert (await gallery.get("/v/gone/poster.jpg")).status_code == 404
        assert (await gallery.get("/v/gone/card.jpg")).status_code == 404


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=100-199"}])
async def test_streaming_reports_removed_video_and_unavailable_store(
    open_gallery: OpenGallery, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    async def unavailable(*_: Any) -> None:
        raise StoreUnavailableError("away")

    await put_generations(store, make_generation("gone"), make_generation("kite"))
    async with open_gallery(redirect=False) as gallery:
        await store.remove("videos/2026/03/10/gone/video.mp4")
        gone = await gallery.get("/v/gone/video.mp4", headers=headers)
        head = await gallery.client.head("/v/gone/video.mp4", headers=headers)
        monkeypatch.setattr(store, "_call", unavailable)
        failed = await gallery.get(PATH, headers=headers)
    assert (gone.status_code, head.status_code, failed.status_code) == (404, 404, 503)
    assert "content-range" not in gone.headers
    assert failed.headers["retry-after"] == "10"


async def test_video_archived_after_a_404_is_found(open_gallery: OpenGallery) -> None:
    async with open_gallery(redirect=True) as gallery:
        assert (await gallery.get(PATH)).status_code == 404
        await put_generations(gallery.store, make_generation("kite"))
        assert (await gallery.get(PATH)).status_code == 302


async def test_posters_are_streamed_and_cached_only_by_the_browser(open_gallery: OpenGallery) -> None:
    async with open_gallery() as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        card, poster = await gallery.get("/v/kite/card.jpg"), await gallery.get("/v/kite/poster.jpg")
    for answer in (card, poster):
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
        assert answer.headers["cache-control"].startswith("private, ")
    assert len(card.content) < len(poster.content)


async def test_password_as_bearer_token_opens_every_video(open_gallery: OpenGallery) -> None:
    async with open_gallery(**GUARDED) as gallery:
        await put_generations(gallery.store, make_generation("kite"))
        answer = await gallery.get(PATH, headers={"Authorization": f"Bearer {PASSWORD}"})
        wrong = [await gallery.get(PATH, headers={"Authorization": "Bearer guess"}) for _ in range(25)]
        blocked = await gallery.get(PATH, headers={"Authorization": f"Bearer {PASSWORD}"})
        link = await gallery.get(PATH, params={"t": gallery.token("kite")})
    assert answer.status_code == 200  # streamed: the store speaks http, the gallery https
    assert {item.status_code for item in wrong} == {401}
    assert blocked.status_code == 401  # too many guesses; links still work
    assert link.status_code == 200


@pytest.mark.parametrize(
    ("store_url", "gateway_url", "expected"),
    [
        ("http://127.0.0.1:9000", "http://127.0.0.1:8720", True),
        ("http://127.0.0.1:9000", "http://videos.example.com", False),
        ("http://minio.example.com:9000", "http://videos.example.com", True),
        ("http://minio.example.com:9000", "https://videos.example.com", False),
        ("https://s3.example.com", "https://videos.example.com", True),
        ("https://localhost:9000", "https://videos.example.com", False),
        ("http://[::1]:9000", "http://localhost:8720", True),
    ],
)
def test_browsers_are_redirected_only_to_stores_they_can_reach(
    store_url: str, gateway_url: str, *, expected: bool
) -> None:
    assert redirects(store_url, gateway_url) is expected
