"""Paints landscapes from a text: for text-to-video, and as sample start images for image-to-video."""

import functools
import hashlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

#: Names of the start images on the front page. Any other name works too.
SAMPLES = ("harbor", "mountains", "lake", "coast")
SAMPLE_SIZE = (1280, 720)
FORMATS = {"jpg": ("JPEG", "image/jpeg"), "png": ("PNG", "image/png"), "webp": ("WEBP", "image/webp")}
#: The colors of a landscape: the sky above and at the horizon, the light around the sun, and the nearest ridge.
PALETTES = (
    ("#3a548c", "#ffd694", "#ffb05c", "#261c2c"),  # golden hour
    ("#2c285c", "#fcbc96", "#ff806e", "#1c142e"),  # rose dusk
    ("#3678be", "#faecd0", "#ffe2a8", "#14343a"),  # clear morning
    ("#102e4c", "#fad498", "#ffbe74", "#0a1a24"),  # teal dawn
    ("#0c0a28", "#c47496", "#d684be", "#0c081c"),  # violet night
)
#: The number of ridges, from far to near. Five give an impression of depth.
RIDGES = 5
#: Where the sky ends and the water begins, as a fraction of the height.
WATERLINE = 0.72

Floats = npt.NDArray[np.floating[Any]]


def seed_of(text: str) -> int:
    """A number that depends only on the text. `hash()` would differ between processes."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def landscape(text: str, width: int, height: int) -> Image.Image:
    """Sun and ridges in haze over water; width and height in pixels. The same text always gives the same picture."""
    random = np.random.default_rng(seed_of(text))
    colors = (np.array(ImageColor.getrgb(color), dtype=np.float32) for color in random.choice(PALETTES))
    zenith, horizon, glow, near = colors
    water = round(height * WATERLINE)
    # Coordinates in units of the height, so that nothing is stretched.
    x = (np.arange(width, dtype=np.float32) / height)[None, :, None]
    y = (np.arange(water, dtype=np.float32) / height)[:, None, None]
    picture: Floats = zenith + (horizon - zenith) * (y / WATERLINE)
    distance = np.hypot(x - random.uniform(0.25, 0.75) * width / height, y - random.uniform(0.35, 0.55))
    for reach, strength in ((0.5, 0.5), (0.15, 0.6)):
        picture = _mixed(picture, glow, strength * np.exp(-((distance / reach) ** 1.4)))
    picture = _mixed(picture, np.full(3, 255.0), np.clip((0.035 - distance) * height, 0, 1))
    for number in range(1, RIDGES + 1):
        part = number / RIDGES
        crest = np.full_like(x, 0.5 + 0.17 * part)
        for octave in range(6):
            frequency = (3 + 2 * number) * 1.9**octave
            crest += (0.07 - 0.04 * part) * 0.5**octave * np.sin(x * frequency + random.uniform(0, 6.3))
        picture = _mixed(picture, horizon + (near - horizon) * part**1.3, np.clip((y - crest) * height, 0, 1))
    mirrored = picture[::-1][: height - water] * np.linspace(0.8, 0.4, height - water, dtype=np.float32)[:, None, None]
    return Image.fromarray(np.concatenate([picture, mirrored]).astype(np.uint8))


@functools.lru_cache(maxsize=32)
def sample(name: str, ending: str) -> bytes:
    """An encoded start image. `ending` is a key of `FORMATS`. The same name always gives the same picture."""
    drawn = BytesIO()
    landscape(f"sample {name}", *SAMPLE_SIZE).save(drawn, FORMATS[ending][0], quality=90)
    return drawn.getvalue()


def _mixed(picture: Floats, color: Floats, strength: Floats) -> Floats:
    return picture + (color - picture) * strength
