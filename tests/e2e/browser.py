"""A visitor of Prefect's UI and the gallery: Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from playwright.async_api import Browser, ConsoleMessage, Page, Response, async_playwright, expect

from flows.resolve_video import GO_ON

CHROMIUM: Final = os.environ.get("SORA_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
"""The path of the installed browser, or None. Playwright does not download one."""
WIDTH, HEIGHT = 1280, 800
IS_PLAYING: Final = "video => video.readyState >= 2 && video.currentTime > 0.1"
RESUMED: Final = "Flow run resumed"
NOT_RESUMED: Final = "Failed to resume flow run"
MAX_PRESSES: Final = 3
RUN_MILLISECONDS: Final = 90_000
"""A run in its own process takes 4 to 8 s on two idle cores. Several in parallel take longer."""


@asynccontextmanager
async def open_browser() -> AsyncIterator[Browser]:
    """Chromium without a window."""
    async with async_playwright() as playwright:
        # Containers forbid the sandbox of Chromium, and only pages of this machine are opened.
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Visitor:
    """A page, and the errors that occurred in it.

    Attributes:
        page: the page.
        errors: console messages, script errors and HTTP errors of the gallery. Those of Prefect's pages are ignored.
    """

    page: Page
    gallery_url: str
    prefect_url: str
    errors: list[str] = field(default_factory=list)

    def watch(self) -> None:
        """From now on, records errors in the gallery."""
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("response", self._on_response)

    def _note(self, what: str) -> None:
        if self.page.url.startswith(self.gallery_url):
            self.errors.append(what)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._note(message.text)

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self._note(f"{response.status} {response.url}")

    # The gallery.

    async def open_gallery(self, path: str = "/") -> None:
        await self.page.goto(self.gallery_url + path)

    async def open_video(self, key: str) -> None:
        """Opens the viewer with a click on the card."""
        await self.page.locator(f'a.card[href$="/k/{key}"]').click()
        await expect(self.page.locator("#viewer h1")).to_have_text(key)

    async def wait_until_playing(self, selector: str) -> None:
        """Waits until a video shows a later frame than its first."""
        video = await self.page.locator(selector).element_handle()
        await self.page.wait_for_function(IS_PLAYING, arg=video)

    async def wait_for_image(self, selector: str) -> None:
        """Waits until a picture has loaded."""
        picture = await self.page.locator(selector).first.element_handle()
        await self.page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture)

    # Prefect's classic UI, which plays videos in artifacts. The V2 UI shows only their posters.

    async def open_run(self, run_id: str) -> None:
        await self.page.goto(f"{self.prefect_url}/runs/flow-run/{run_id}")

    async def open_artifact(self, artifact_id: str) -> None:
        await self.page.goto(f"{self.prefect_url}/artifacts/artifact/{artifact_id}")

    async def retry(self) -> None:
        """Clicks Retry and confirms it."""
        await self.page.get_by_role("button", name="Retry").first.click()
        await self.page.get_by_role("button", name="Retry", exact=True).last.click()

    async def wait_for_state(self, state: str) -> None:
        await expect(self.page.get_by_text(state, exact=True).first).to_be_visible(timeout=RUN_MILLISECONDS)

    async def open_form(self, deployment_id: str) -> None:
        await self.page.goto(f"{self.prefect_url}/deployments/deployment/{deployment_id}/run")

    async def fill_resolution(self, key: str, task_id: str) -> None:
        """Fills in the form of resolve-video, with a known task."""
        await self.page.locator("textarea").first.fill(key)
        await self.choose(GO_ON)
        await self.page.locator("textarea").nth(1).fill(task_id)

    async def choose(self, choice: str) -> None:
        """Chooses an option in the last drop-down, which belongs to the form."""
        await self.page.locator(".p-select-button__control").last.focus()
        await self.page.keyboard.press("ArrowDown")
        await self.page.get_by_text(choice, exact=True).last.click()

    async def resume_with(self, choice: str) -> None:
        """Fills in and submits the form of a paused run, which the Resume button opens."""
        await self.page.get_by_role("button", name="Resume").first.click()
        await expect(self.page.get_by_text("Decision").first).to_be_visible()
        await self.page.wait_for_timeout(1_000)  # the form ignores input until its animation has ended
        await self.choose(choice)
        await expect(self.page.get_by_role("dialog").get_by_text(choice)).to_be_visible()
        # A busy server on SQLite sometimes answers 503, and the form stays open: the visitor clicks again.
        resumed, rejected = (self.page.get_by_text(text, exact=True).first for text in (RESUMED, NOT_RESUMED))
        for _ in range(MAX_PRESSES):
            await self.page.get_by_role("button", name="Submit").last.click()
            await expect(resumed.or_(rejected).first).to_be_visible()
            if await resumed.is_visible():
                return
            await expect(rejected).not_to_be_visible(timeout=RUN_MILLISECONDS)
        raise AssertionError(f"the form was rejected {MAX_PRESSES} times")


async def open_visitor(browser: Browser, *, gallery_url: str, prefect_url: str, **options: Any) -> Visitor:
    """Opens a page for a new visitor."""
    page = await browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, **options)
    page.set_default_timeout(RUN_MILLISECONDS)
    visitor = Visitor(page, gallery_url, prefect_url)
    visitor.watch()
    return visitor
