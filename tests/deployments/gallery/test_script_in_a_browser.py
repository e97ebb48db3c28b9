"""The gallery's script in a browser. A gallery in this process answers its requests, some of them late."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from playwright.async_api import Page, Route, expect

from blocks.object_store import ObjectStore
from tests.deployments.gallery.sample_records import NOW, OpenGallery, make_generation, put_generations
from tests.e2e.browser import CHROMIUM, open_browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture
async def page(open_gallery: OpenGallery, store: ObjectStore) -> AsyncIterator[Page]:
    """The overview with three videos, newest first. The newest has no poster."""
    generations = [make_generation(f"kite-{number}", at=NOW - timedelta(minutes=number)) for number in (1, 2, 3)]
    without_poster = tuple(item for item in generations[0].objects if item.kind != "poster")
    await put_generations(store, generations[0].model_copy(update={"objects": without_poster}), *generations[1:])
    async with open_gallery(redirect=False) as gallery, open_browser() as browser:

        async def answer(route: Route) -> None:
            response = await gallery.get(route.request.url)
            await route.fulfill(status=response.status_code, headers=dict(response.headers), body=response.content)

        opened = await browser.new_page()
        await opened.route("**/*", answer)
        await opened.goto("http://localhost/")
        yield opened
        await opened.unroute_all(behavior="ignoreErrors")


async def hold_requests(page: Page, path: str) -> asyncio.Event:
    """Delays requests for this path until the event is set."""
    released = asyncio.Event()

    async def hold(route: Route) -> None:
        await released.wait()
        await route.fallback()

    await page.route(f"**{path}", hold)
    return released


async def test_video_without_poster_plays_while_its_card_is_hovered(page: Page) -> None:
    await hold_requests(page, "/v/kite-1/video.mp4")
    await page.locator('a.card[href$="/k/kite-1"]').hover()
    video = page.locator("a.card video.playing")
    await expect(video).to_be_attached(timeout=10_000)
    await page.mouse.move(0, 0)
    await expect(video).to_have_count(0)


async def test_viewer_shows_last_requested_video_and_late_response_does_not_reopen_it(page: Page) -> None:
    await page.locator('a.card[href$="/k/kite-1"]').click()
    shown = page.locator("#viewer h1")
    await expect(shown).to_have_text("kite-1")
    released = await hold_requests(page, "/k/kite-2")
    await page.keyboard.press("ArrowRight")
    await page.keyboard.press("ArrowRight")
    await expect(shown).to_have_text("kite-3")
    await page.keyboard.press("ArrowLeft")
    await page.keyboard.press("Escape")
    await expect(page.locator("#viewer")).to_be_hidden()
    released.set()
    await page.wait_for_timeout(300)
    await expect(page.locator("#viewer")).to_be_hidden()
    await expect(page.locator('a.card[href$="/k/kite-2"]')).to_be_focused()
