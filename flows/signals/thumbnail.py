"""A thumbnail of a poster."""

import io
from typing import Final

from PIL import Image

QUALITY: Final = 80


def thumbnail(poster: bytes, pixels: int) -> bytes | None:
    """A JPEG whose longest side has this many pixels; None: the poster cannot be read."""
    try:
        with Image.open(io.BytesIO(poster), formats=["JPEG"]) as image:
            image.thumbnail((pixels, pixels))
            made = io.BytesIO()
            image.save(made, "JPEG", quality=QUALITY)
    except (OSError, Image.DecompressionBombError):
        return None
    return made.getvalue()
