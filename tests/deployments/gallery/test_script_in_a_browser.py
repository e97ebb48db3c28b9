"""The script in a browser whose requests are answered by a gallery in this process, some of them late."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from playwright.async_api import Page, Route, expect

from blocks.object_store import ObjectStore
from tests.deployments.gallery.shown import NOW, OpenGallery, made, put
from tests.e2e.browser import CHROMIUM, open_browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture
async def page(open_gallery: OpenGallery, store: ObjectStore) -> AsyncIterator[Page]:
    """The overview, with three videos from new to old; the newest has no poster."""
    found = [made(f"kite-{number}", at=NOW - timedelta(minutes=number)) for number in (1, 2, 3)]
    bare = tuple(item for item in found[0].objects if item.kind != "poster")
    await put(store, found[0].model_copy(update={"objects": bare}), *found[1:])
    async with open_gallery(redirect=False) as gallery, open_browser() as browser:

        async def answer(route: Route) -> None:
            told = await gallery.get(route.request.url)
            await route.fulfill(status=told.status_code, headers=dict(told.headers), body=told.content)

        opened = await browser.new_page()
        await opened.route("**/*", answer)
        await opened.goto("http://localhost/")
        yield opened
        await opened.unroute_all(behavior="ignoreErrors")


async def held(page: Page, path: str) -> asyncio.Event:
    """Holds requests of this path until the event is set."""
    released = asyncio.Event()

    async def hold(route: Route) -> None:
        await released.wait()
        await route.fallback()

    await page.route(f"**{path}", hold)
    return released


async def test_a_video_without_a_poster_plays_on_its_card_and_ends_with_the_hover(page: Page) -> None:
    await held(page, "/v/kite-1/video.mp4")
    await page.locator('a.card[href$="/k/kite-1"]').hover()
    video = page.locator("a.card video.playing")
    await expect(video).to_be_attached(timeout=10_000)
    await page.mouse.move(0, 0)
    await expect(video).to_have_count(0)


async def test_the_viewer_shows_the_last_one_asked_for_and_stays_closed(page: Page) -> None:
    await page.locator('a.card[href$="/k/kite-1"]').click()
    shown = page.locator("#viewer h1")
    await expect(shown).to_have_text("kite-1")
    released = await held(page, "/k/kite-2")
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
