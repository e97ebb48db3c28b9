"""Takes the pictures of README and docs from the real pages: `make screenshots`. It needs a Chromium."""

import asyncio
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from prefect.client.base import PrefectHttpxAsyncClient

from deployments.local.stack_info import StackInfo
from tests.e2e.browser import CHROMIUM, Visitor, open_browser, open_visitor
from tests.e2e.running import ROOT, Running
from tests.e2e.stack import stack_up

PICTURES = ROOT / "docs" / "pictures"
REQUESTS = [
    {"id": "kite", "prompt": "A red kite climbs over dunes, slow dolly in, golden hour", "tags": ["spring"]},
    {"id": "harbor", "prompt": "A harbor wakes in morning mist, orbiting shot", "tags": ["spring"]},
    {"id": "fox", "prompt": "A fox in fresh snow, tracking shot, dawn light", "aspect_ratio": "portrait"},
    {"id": "lighthouse", "prompt": "Aerial view of a lighthouse at dusk, soft light", "duration": 8},
    {"id": "market", "prompt": "A night market in the rain, handheld, neon reflections"},
    {"id": "forest", "prompt": "An old oak in a misty forest at dawn, descending crane shot"},
    {"id": "banner", "prompt": "A banner with a forbidden emblem"},
]
"""A batch. The last row fails, as with a prompt that APIXO does not allow."""


async def take_screenshots(running: Running) -> None:
    """Generates the videos and takes the screenshots."""
    batch = await running.start("generate-batch/generate-batch", requests=REQUESTS, key="spring")
    await running.wait_for_end(batch)
    request: dict[str, Any] = {"prompt": "Paper lanterns rise over a lake, wide shot", "tags": ["autumn"]}
    form = await running.deployment("generate-video/generate-video")
    gallery, prefect = running.info.services["gallery"].url, running.api_url.removesuffix("/api")
    async with open_browser() as browser:
        visitor = await open_visitor(browser, gallery_url=gallery, prefect_url=prefect)
        page = visitor.page
        await visitor.open_form(form["id"])
        images = {"prefect-form": await save(visitor, "prefect-form", still=True)}
        await page.locator("textarea").first.fill(request["prompt"])
        images["filled in"] = await shot(visitor)
        run = await running.start("generate-video/generate-video", request=request, key="lanterns")
        await visitor.open_run(run["id"])
        await visitor.wait_for_state("Running")
        await page.wait_for_timeout(1_000)
        images["running"] = await shot(visitor)
        await running.wait_for_end(run)
        await visitor.open_run(run["id"])
        await visitor.wait_for_state("Completed")
        images["run"] = await save(visitor, "prefect-run", still=True)
        await visitor.open_artifact(await running.artifact_id("video-lanterns"))
        images["artifact"] = await save(visitor, "prefect-artifact", still=True)
        await visitor.open_artifact(await running.artifact_id("sheet-spring"))
        images["batch"] = await save(visitor, "prefect-batch", still=True)
        await visitor.open_gallery()
        await page.wait_for_function("() => [...document.images].every(image => image.naturalWidth > 0)")
        images["gallery"] = await save(visitor, "gallery")
        await visitor.open_gallery("/k/spring-kite")
        await page.wait_for_function("() => document.querySelector('video').readyState >= 1")
        images["video"] = await save(visitor, "gallery-video", still=True)
    first, *others = (image.resize((960, 600)) for image in images.values())
    first.save(
        PICTURES / "tour.webp", save_all=True, append_images=others, duration=2_500, loop=0, quality=80, method=6
    )
    sys.stdout.write("docs/pictures/tour.webp\n")


async def shot(visitor: Visitor) -> Image.Image:
    """A screenshot of the visible part."""
    return Image.open(io.BytesIO(await visitor.page.screenshot())).convert("RGB")


async def save(visitor: Visitor, name: str, *, still: bool = False) -> Image.Image:
    """Writes the visible part as a WebP. Prefect's pages, and players, take a while to finish drawing."""
    if still:
        await visitor.page.wait_for_load_state("networkidle")
        await visitor.page.wait_for_timeout(1_500)
    image = await shot(visitor)
    image.save(PICTURES / f"{name}.webp", quality=82, method=6)
    sys.stdout.write(f"docs/pictures/{name}.webp\n")
    return image


async def main() -> None:
    """Starts a stack, and stops it after the screenshots are taken."""
    if CHROMIUM is None:
        sys.exit("There is no Chromium: apt-get install chromium, or name one in SORA_CHROMIUM.")
    with tempfile.TemporaryDirectory() as folder, stack_up(Path(folder), video_height=720) as (local_dir, environment):
        info = StackInfo.read(local_dir)
        assert info is not None
        async with httpx.AsyncClient(timeout=120) as http, PrefectHttpxAsyncClient(timeout=120) as prefect:
            await take_screenshots(Running(info, environment, local_dir, http, prefect))


if __name__ == "__main__":
    asyncio.run(main())
