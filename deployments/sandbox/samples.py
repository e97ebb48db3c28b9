"""Start images to try image-to-video with: landscapes with the grain of a photograph, painted on demand."""

from __future__ import annotations

import functools
from io import BytesIO

import numpy as np
from PIL import Image

from deployments.sandbox.palettes import PALETTES, Palette, seed_of
from deployments.sandbox.scenery import Scenery

#: The named samples and the palette of each; any other name is painted too, in the palette its letters give.
SAMPLES = {"harbour": 0, "mountains": 2, "lake": 3, "dusk": 1, "aurora": 4, "night": 5}
FORMATS = {"jpg": ("JPEG", "image/jpeg"), "png": ("PNG", "image/png"), "webp": ("WEBP", "image/webp")}
SIZE = (1280, 720)
#: Strength of the film grain, as a standard deviation in steps of 255.
GRAIN = 4.0


@functools.lru_cache(maxsize=32)
def sample(name: str, ending: str) -> bytes:
    """The encoded picture. `ending` is a key of `FORMATS`. The same name always gives the same picture."""
    drawn = BytesIO()
    _picture(name).save(drawn, FORMATS[ending][0], quality=90)
    return drawn.getvalue()


@functools.lru_cache(maxsize=32)
def _picture(name: str) -> Image.Image:
    seed = seed_of(f"sample {name}")
    palette: Palette = PALETTES[SAMPLES.get(name, seed % len(PALETTES))]
    width, height = SIZE
    picture = Scenery(palette, seed=seed, width=width, height=height).frame(0).astype(np.float32)
    random = np.random.default_rng(seed)
    grain = random.normal(0, GRAIN, size=(height, width, 1)) + random.normal(0, GRAIN / 3, size=(height, width, 3))
    x, y = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    vignette = 1 - 0.16 * np.clip(x**2 + y**2 - 0.5, 0, 1)
    return Image.fromarray(np.clip(picture * vignette[..., None] + grain, 0, 255).astype(np.uint8))
