"""The writing on a video: the prompt as a lower third, and the watermark. Drawn once, then laid over every frame."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from deployments.sandbox.palettes import RGB

Plane = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

#: A prompt may be 10,000 characters long; no more than this is ever measured, and an ellipsis stands for the rest.
LONGEST_CAPTION = 420
MOST_LINES = 4
WATERMARK = "sandbox"


def draw_caption(width: int, height: int, *, prompt: str, watermark: bool, accent: RGB) -> Image.Image:
    """An RGBA picture of the video's size, transparent but for the writing and the shade it stands on."""
    layer = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    short = min(width, height)
    size = max(round(short * 0.047), 7)
    font = ImageFont.load_default(size=size)
    margin = round(width * 0.065)
    lines = wrap(prompt, font, width - 2 * margin - size)
    step = round(size * 1.36)
    bottom = height - round(height * 0.075)
    top = bottom - step * len(lines)
    _shade(layer, round(top - height * 0.12))
    bar = max(round(short * 0.006), 1)
    draw.rectangle((margin, top + size * 0.12, margin + bar, bottom - size * 0.2), fill=(*accent, 255))
    for number, line in enumerate(lines):
        where = (margin + bar + round(size * 0.7), top + number * step)
        draw.text((where[0] + max(bar // 3, 1), where[1] + max(bar // 3, 1)), line, font=font, fill=(0, 0, 0, 110))
        draw.text(where, line, font=font, fill=(255, 255, 255, 240))
    if watermark:
        small = ImageFont.load_default(size=max(round(short * 0.034), 6))
        length = draw.textlength(WATERMARK, font=small)
        edge = round(short * 0.045)
        draw.text((width - edge - length, edge), WATERMARK, font=small, fill=(255, 255, 255, 150))
    return layer


def wrap(text: str, font: Font, width: float) -> list[str]:
    """The text in at most `MOST_LINES` lines of at most that many pixels; a cut one ends in an ellipsis."""
    flat = " ".join(text.split())
    cut = len(flat) > LONGEST_CAPTION
    words = flat[:LONGEST_CAPTION].split(" ")
    lines: list[str] = []
    line = ""
    while words:
        word = words.pop(0)
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
        elif line:
            lines.append(line)
            line = ""
            words.insert(0, word)
        else:
            # One word wider than the line: a long address, or a language written without spaces.
            fits = max(bisect_right(range(len(word)), width, key=lambda n: font.getlength(word[:n])) - 1, 1)
            lines.append(word[:fits])
            words.insert(0, word[fits:])
        if len(lines) == MOST_LINES:
            break
    if line and len(lines) < MOST_LINES:
        lines.append(line)
        line = ""
    if cut or words or line:
        last = lines[-1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines[-1] = f"{last.rstrip(' ,.;')}..."
    return lines


def _shade(layer: Image.Image, top: int) -> None:
    """Darkens the lower part, softly: white writing is readable on any picture."""
    width, height = layer.size
    rows = np.clip((np.arange(height) - max(top, 0)) / max(height - max(top, 0), 1), 0, 1)
    alpha = (rows**0.8 * 178).astype(np.uint8)
    pixels = np.zeros((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = (8, 9, 14)
    pixels[..., 3] = alpha[:, None]
    layer.paste(Image.fromarray(pixels, "RGBA"))


@dataclass(frozen=True, slots=True)
class _Strip:
    """Rows of one plane that the overlay changes: `new = (old * keep + add) >> 8`."""

    plane: int
    rows: slice
    keep: npt.NDArray[np.uint16]
    add: npt.NDArray[np.uint16]


class Overlay:
    """An RGBA picture ready to be laid over yuv420p frames. Integer sums on only the rows it touches: it costs 1 ms."""

    def __init__(self, layer: Image.Image) -> None:
        pixels = np.asarray(layer, dtype=np.float32)
        alpha = pixels[..., 3] / np.float32(255)
        red, green, blue = (pixels[..., channel] for channel in range(3))
        # ITU-R BT.709 in the limited range, as the frames are.
        luma = 16 + (0.2126 * red + 0.7152 * green + 0.0722 * blue) * (219 / 255)
        chroma_blue = 128 + (-0.1146 * red - 0.3854 * green + 0.5 * blue) * (224 / 255)
        chroma_red = 128 + (0.5 * red - 0.4542 * green - 0.0458 * blue) * (224 / 255)
        self._strips = [
            *_strips(0, luma, alpha),
            *_strips(1, _halved(chroma_blue), _halved(alpha)),
            *_strips(2, _halved(chroma_red), _halved(alpha)),
        ]

    def lay_over(self, planes: tuple[Plane, Plane, Plane]) -> None:
        """Changes the Y, U and V planes in place."""
        for strip in self._strips:
            area = planes[strip.plane][strip.rows]
            area[:] = (area * strip.keep + strip.add) >> 8


def _halved(plane: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    height, width = plane.shape
    small: npt.NDArray[np.float32] = plane.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3), dtype=np.float32)
    return small


def _strips(number: int, value: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]) -> list[_Strip]:
    touched = np.flatnonzero(alpha.max(axis=1) > 0)
    if not touched.size:
        return []
    runs = np.split(touched, np.flatnonzero(np.diff(touched) > 1) + 1)
    strips = []
    for run in runs:
        rows = slice(int(run[0]), int(run[-1]) + 1)
        weight = np.round(alpha[rows] * 256)
        add = np.round(value[rows] * weight).astype(np.uint16)
        strips.append(_Strip(number, rows, (256 - weight).astype(np.uint16), add))
    return strips
