"""Takes the pictures of README and docs from the real pages: `make screenshots`. It needs a Chromium."""

import asyncio
import io
import sys
import tempfile
from pathlib import Path

import httpx
from PIL import Image
from prefect.client.base import PrefectHttpxAsyncClient

from deployments.local.stack_info import StackInfo
from tests.e2e.browser import CHROMIUM, Person, open_browser, person
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
"""A batch; the last one fails as APIXO fails what it does not allow."""


async def take(running: Running) -> None:
    """Makes the videos and takes the pictures."""
    batch = await running.start("generate-batch/generate-batch", requests=REQUESTS, key="spring")
    await running.ended(batch)
    request = {"prompt": "Paper lanterns rise over a lake, wide shot", "tags": ["autumn"]}
    run = await running.start("generate-video/generate-video", request=request, key="lanterns")
    await running.ended(run)
    form = await running.deployment("generate-video/generate-video")
    gallery, prefect = running.info.services["gallery"].url, running.api_url.removesuffix("/api")
    async with open_browser() as browser:
        visitor = await person(browser, gallery_url=gallery, prefect_url=prefect)
        page = visitor.page
        await visitor.open_gallery()
        await page.wait_for_function("() => [...document.images].every(image => image.naturalWidth > 0)")
        await save(visitor, "gallery")
        await visitor.open_gallery("/k/spring-kite")
        await page.wait_for_function("() => document.querySelector('video').readyState >= 1")
        await save(visitor, "gallery-video", still=True)
        await visitor.open_run(run["id"])
        await visitor.sees_state("Completed")
        await save(visitor, "prefect-run", still=True)
        await visitor.open_artifact(await running.artifact_id("video-lanterns"))
        await save(visitor, "prefect-artifact", still=True)
        await visitor.open_artifact(await running.artifact_id("sheet-spring"))
        await save(visitor, "prefect-batch", still=True)
        await visitor.open_form(form["id"])
        await save(visitor, "prefect-form", still=True)


async def save(visitor: Person, name: str, *, still: bool = False) -> None:
    """Writes what is to be seen as a WebP. Prefect's pages, and players, go on drawing a while."""
    if still:
        await visitor.page.wait_for_load_state("networkidle")
        await visitor.page.wait_for_timeout(1_500)
    shot = Image.open(io.BytesIO(await visitor.page.screenshot()))
    shot.save(PICTURES / f"{name}.webp", quality=82, method=6)
    sys.stdout.write(f"docs/pictures/{name}.webp\n")


async def main() -> None:
    """Starts a stack, and stops it when the pictures are taken."""
    if CHROMIUM is None:
        sys.exit("There is no Chromium: apt-get install chromium, or name one in SORA_CHROMIUM.")
    with tempfile.TemporaryDirectory() as folder, stack_up(Path(folder), video_height=720) as (local_dir, environment):
        info = StackInfo.read(local_dir)
        assert info is not None
        async with httpx.AsyncClient(timeout=120) as http, PrefectHttpxAsyncClient(timeout=120) as prefect:
            await take(Running(info, environment, local_dir, http, prefect))


if __name__ == "__main__":
    asyncio.run(main())
