"""What a visitor sees and clicks: Prefect's own UI and the gallery, on a stack that `sora up` has started."""

from collections.abc import AsyncIterator

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped]
from playwright.async_api import Browser, expect

from flows.preview_then_final import FINAL_8
from tests.e2e.browser import CHROMIUM, Visitor, open_browser, open_visitor
from tests.e2e.running import Running
from tests.support import unique

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        CHROMIUM is None,  # .ci/run installs one
        reason="there is no Chromium: apt-get install chromium, or name one in SORA_CHROMIUM",
    ),
]

SERIOUS = {"serious", "critical"}
ATTACK_ONLY = pytest.mark.attack
"""For tests of forms and buttons. `tests/flows` and `test_reruns.py` send the same requests without a browser."""


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        yield opened


@pytest.fixture
async def visitor(browser: Browser, running: Running) -> AsyncIterator[Visitor]:
    """A visitor on a desktop screen. Any error in the gallery fails the test."""
    gallery = running.info.services["gallery"].url
    opened = await open_visitor(browser, gallery_url=gallery, prefect_url=running.api_url.removesuffix("/api"))
    yield opened
    await opened.page.close()
    assert opened.errors == []


@pytest.fixture(scope="module")
async def kite(up: object) -> str:
    return unique("kite")


async def generate(running: Running, key: str, prompt: str = "A red kite over dunes, golden hour") -> str:
    """Generates the video of this key. Returns the id of the run, once the video is archived."""
    run = await running.start("generate-video/generate-video", request={"prompt": prompt}, key=key)
    assert (await running.wait_for_end(run))["state_type"] == "COMPLETED"
    return str(run["id"])


async def test_gallery_shows_poster_and_plays_video_on_hover_and_in_viewer(
    visitor: Visitor, running: Running, kite: str
) -> None:
    await generate(running, kite)
    await visitor.open_gallery()
    card = visitor.page.locator(f'a.card[href$="/k/{kite}"]')
    await visitor.wait_for_image(f'a.card[href$="/k/{kite}"] img')
    await card.hover()
    await visitor.wait_until_playing(f'a.card[href$="/k/{kite}"] video')
    await visitor.open_video(kite)
    await visitor.wait_until_playing("#viewer video")
    await visitor.page.keyboard.press("Escape")
    await expect(visitor.page.locator("#viewer")).to_be_hidden()
    await expect(card).to_be_focused()


@ATTACK_ONLY
async def test_animated_gif_is_shown_as_image_in_gallery_and_artifact(visitor: Visitor, running: Running) -> None:
    key = unique("gif")
    await running.fault(call="result", kind="gif", prompt_contains=key, times=-1)
    await generate(running, key, f"A red kite, {key}")
    await visitor.open_gallery()
    await visitor.page.locator(f'a.card[href$="/k/{key}"]').hover()
    await visitor.wait_for_image(f'a.card[href$="/k/{key}"] img.playing')
    await visitor.open_video(key)
    await visitor.wait_for_image(f'#viewer img[src*="/v/{key}/"]')
    await visitor.open_artifact(await running.artifact_id(f"video-{key}"))
    await visitor.wait_for_image('img[alt="the video"]')


async def test_gallery_can_be_searched_and_navigated_by_keyboard(visitor: Visitor, running: Running) -> None:
    lantern = unique("lantern")
    await generate(running, lantern, "A paper lantern rises")
    await visitor.open_gallery()
    await visitor.page.keyboard.press("/")
    await visitor.page.keyboard.type("paper lantern")
    await expect(visitor.page.locator(".count")).to_contain_text(" of ")
    await visitor.page.keyboard.press("ArrowDown")
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.page.locator("#viewer h1")).to_have_text(lantern)


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=ATTACK_ONLY)])
async def test_axe_finds_no_serious_violations_in_gallery(
    scheme: str, visitor: Visitor, running: Running, kite: str
) -> None:
    await visitor.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    if not (await running.recorded(kite))[0]:
        await generate(running, kite)
    for path in ("/", f"/k/{kite}", "/?q=nothing-fits"):
        await visitor.open_gallery(path)
        found = (await Axe().run(visitor.page)).response["violations"]
        assert [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in SERIOUS] == [], path
    await visitor.open_gallery("/")
    await visitor.open_video(kite)
    found = (await Axe().run(visitor.page)).response["violations"]
    assert [(item["id"], item["nodes"][0]["html"]) for item in found if item["impact"] in SERIOUS] == []


async def test_gallery_fits_phone_screen(visitor: Visitor, running: Running, kite: str) -> None:
    if not (await running.recorded(kite))[0]:
        await generate(running, kite)
    await visitor.page.set_viewport_size({"width": 360, "height": 740})
    for path in ("/", f"/k/{kite}"):
        await visitor.open_gallery(path)
        assert await visitor.page.evaluate("document.documentElement.scrollWidth") <= 360, path


async def test_artifact_shows_poster_and_plays_video_in_classic_ui(
    visitor: Visitor, running: Running, kite: str
) -> None:
    if not (await running.recorded(kite))[0]:
        await generate(running, kite)
    await visitor.open_artifact(await running.artifact_id(f"video-{kite}"))
    await visitor.wait_for_image('img[src^="data:image/jpeg"]')
    await visitor.page.locator("video").first.evaluate("video => { video.muted = true; video.play() }")
    await visitor.wait_until_playing("video")


@ATTACK_ONLY
async def test_retry_button_resumes_without_paying_again(visitor: Visitor, running: Running) -> None:
    key = unique("retried")
    await running.fault(call="status", kind="http_401", prompt_contains=key, times=-1)  # as with a key that was revoked
    await running.fault(call="callback", kind="drop", prompt_contains=key)
    run = await running.start("generate-video/generate-video", request={"prompt": f"A harbor, {key}"}, key=key)
    failed = await running.wait_for_end(run)
    assert failed["state_type"] == "FAILED"
    (await running.http.delete(f"{running.sandbox_url}/sandbox/faults")).raise_for_status()
    await visitor.open_run(run["id"])
    await visitor.wait_for_state("Failed")
    await visitor.retry()
    assert (await running.wait_for_end(run, than=failed["state_id"]))["state_type"] == "COMPLETED"
    await visitor.wait_for_state("Completed")
    await running.wait_for_archived(key)
    assert len(await running.posts(key)) == 1


@ATTACK_ONLY
async def test_preview_can_be_approved_in_form_of_paused_run(visitor: Visitor, running: Running) -> None:
    key = unique("approved")
    run = await running.start("preview-then-final/preview-then-final", request={"prompt": f"A fox, {key}"}, key=key)
    await running.wait_for_archived(f"{key}-preview")
    await visitor.open_run(run["id"])
    await visitor.wait_for_state("Suspended")
    assert len(await running.posts(key)) == 1
    await visitor.resume_with(FINAL_8)
    (final,) = await running.wait_for_archived(f"{key}-final")
    assert final.request.duration == 8
    assert (await running.wait_for_end(run))["state_type"] == "COMPLETED"
    assert len(await running.posts(key)) == 2


@ATTACK_ONLY
async def test_unclear_payment_can_be_resolved_in_form(visitor: Visitor, running: Running) -> None:
    key = unique("unclear")
    await running.fault(call="submit", kind="reset_after", prompt_contains=key)
    # Without a callback, which would resolve it first.
    await running.fault(call="callback", kind="drop", prompt_contains=key)
    run = await running.start("generate-video/generate-video", request={"prompt": f"A fox, {key}"}, key=key)
    assert (await running.wait_for_end(run))["state_type"] == "FAILED"
    (task,) = [item["taskId"] for item in await running.tasks() if key in item["request"]["input"]["prompt"]]
    deployment = await running.deployment("resolve-video/resolve-video")
    await visitor.open_form(deployment["id"])
    await visitor.fill_resolution(key, task)
    await visitor.page.get_by_role("button", name="Submit").click()
    await running.wait_for_archived(key)
    assert len(await running.posts(key)) == 1
