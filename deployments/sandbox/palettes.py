"""Color palettes of the painted landscapes. A prompt always gets the same one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

RGB = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Palette:
    """The colors of one landscape, each as RGB from 0 to 255."""

    name: str
    #: Sky from the zenith down to the horizon.
    sky: tuple[RGB, RGB, RGB, RGB]
    #: Sun or moon, and the light it throws into the haze around it.
    sun: RGB
    glow: RGB
    #: The farthest ridge, where it melts into the haze, and the nearest.
    far: RGB
    near: RGB
    #: Northern lights; black where there are none.
    aurora: RGB = (0, 0, 0)


PALETTES: tuple[Palette, ...] = (
    Palette(
        "golden hour",
        sky=((58, 84, 140), (150, 138, 168), (244, 176, 128), (255, 214, 148)),
        sun=(255, 246, 214),
        glow=(255, 176, 92),
        far=(214, 152, 128),
        near=(38, 28, 44),
    ),
    Palette(
        "rose dusk",
        sky=((44, 40, 92), (116, 72, 132), (222, 118, 136), (252, 188, 150)),
        sun=(255, 232, 206),
        glow=(255, 128, 110),
        far=(186, 110, 136),
        near=(28, 20, 46),
    ),
    Palette(
        "clear morning",
        sky=((54, 120, 190), (112, 170, 216), (182, 214, 228), (250, 236, 208)),
        sun=(255, 252, 236),
        glow=(255, 226, 168),
        far=(160, 186, 200),
        near=(20, 52, 58),
    ),
    Palette(
        "teal dawn",
        sky=((16, 46, 76), (34, 98, 118), (120, 172, 160), (250, 212, 152)),
        sun=(255, 240, 208),
        glow=(255, 190, 116),
        far=(112, 152, 150),
        near=(10, 26, 36),
    ),
    Palette(
        "northern lights",
        sky=((8, 12, 34), (12, 28, 62), (20, 62, 88), (54, 112, 116)),
        sun=(232, 240, 255),
        glow=(104, 160, 176),
        far=(42, 84, 100),
        near=(5, 10, 20),
        aurora=(86, 240, 170),
    ),
    Palette(
        "violet night",
        sky=((12, 10, 40), (36, 26, 84), (92, 58, 130), (196, 116, 150)),
        sun=(250, 236, 255),
        glow=(214, 132, 190),
        far=(112, 76, 134),
        near=(12, 8, 28),
        aurora=(178, 110, 255),
    ),
)


def seed_of(text: str) -> int:
    """A number that depends on the text alone. `hash()` would differ from process to process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6])


def palette_of(text: str) -> Palette:
    """The palette a prompt or a sample's name gets."""
    return PALETTES[seed_of(text) % len(PALETTES)]
