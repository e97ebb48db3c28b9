"""A painted landscape that moves: sky, sun, clouds, northern lights, ridges in haze, and water that reflects them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from deployments.sandbox.palettes import RGB, Palette

Floats = npt.NDArray[np.float32]
Picture = npt.NDArray[np.uint8]

#: Ridges from far to near. Five read as depth; more cost time and melt into each other.
RIDGES = 5
#: Where sky ends and water begins, as a part of the picture's height.
WATERLINE = 0.72
#: How far the nearest ridge drifts in a second, as a part of the picture's long side.
DRIFT = 0.022


class Scenery:
    """One landscape, painted for any moment. What never moves is painted once, so that a frame costs milliseconds.

    The same palette, seed and size always give the same pictures.
    """

    def __init__(self, palette: Palette, *, seed: int, width: int, height: int) -> None:
        """`width` and `height` in pixels."""
        self._palette = palette
        self._width, self._height = width, height
        self._long = max(width, height)
        random = np.random.default_rng(seed)
        self._water = round(height * WATERLINE)
        self._sun = (random.uniform(0.26, 0.74) * width, self._water - random.uniform(0.17, 0.3) * height)
        self._direction = float(random.choice((-1.0, 1.0)))
        self._ridges = [_ridge(random, number) for number in range(RIDGES)]
        self._sky = self._paint_sky(random)
        self._clouds = _clouds(random, self._water, width + self._long // 8)
        self._colors = [self._ridge_colors(number) for number in range(RIDGES)]
        depth = np.linspace(0, 1, height - self._water, dtype=np.float32)
        self._depth = depth
        self._ripple = random.uniform(0, 6.28, size=4)
        self._glitter = _smooth(random.random((height - self._water, width), dtype=np.float32), 1)
        self._columns = np.arange(width, dtype=np.float32)

    def frame(self, seconds: float) -> Picture:
        """The landscape at that moment, as (height, width, 3) RGB."""
        picture = np.empty((self._height, self._width, 3), dtype=np.float32)
        above = picture[: self._water]
        above[:] = self._sky
        self._add_clouds(above, seconds)
        if any(self._palette.aurora):
            self._add_aurora(above, seconds)
        for number in range(RIDGES):
            self._add_ridge(above, number, seconds)
        self._reflect(picture, seconds)
        np.clip(picture, 0, 255, out=picture)
        return picture.astype(np.uint8)

    def _paint_sky(self, random: np.random.Generator) -> Floats:
        palette, width, height = self._palette, self._width, self._water
        stops = np.array((0.0, 0.42, 0.78, 1.0))
        down = np.linspace(0, 1, height)
        sky = np.stack([np.interp(down, stops, [c[channel] for c in palette.sky]) for channel in range(3)], axis=-1)
        picture = np.repeat(sky[:, None, :], width, axis=1).astype(np.float32)
        if any(palette.aurora):
            _scatter_stars(picture, random)
        x = np.arange(width, dtype=np.float32)[None, :] - np.float32(self._sun[0])
        y = np.arange(height, dtype=np.float32)[:, None] - np.float32(self._sun[1])
        distance = np.sqrt(x * x + y * y) / np.float32(self._long)
        for reach, strength in ((0.36, 0.42), (0.13, 0.5), (0.05, 0.55)):
            _mix(picture, palette.glow, strength * np.exp(-((distance / reach) ** 1.35)))
        radius = 0.024
        _mix(picture, palette.sun, np.clip((radius - distance) * self._long / 1.6 + 0.5, 0, 1))
        return picture

    def _add_clouds(self, above: Floats, seconds: float) -> None:
        room = self._clouds.shape[1] - self._width - 1
        where = min(seconds * 0.006 * self._long, room)
        whole = int(where)
        part = np.float32(where - whole)
        left = self._clouds[:, whole : whole + self._width]
        right = self._clouds[:, whole + 1 : whole + 1 + self._width]
        density = (left * (1 - part) + right * part) * np.float32(0.2 if any(self._palette.aurora) else 0.55)
        lit = np.average([self._palette.glow, self._palette.sun], axis=0, weights=(0.55, 0.45)).astype(np.float32)
        above += (lit - above) * density[..., None]

    def _add_aurora(self, above: Floats, seconds: float) -> None:
        # The curtain is soft: painted at a sixth of the size and scaled up, it costs a thirtieth.
        wide, high = max(self._width // 6, 24), max(self._water // 6, 16)
        x = np.linspace(0, self._width / self._long, wide, dtype=np.float32)
        y = np.linspace(0, 1, high, dtype=np.float32)[:, None]
        light = np.zeros((high, wide), dtype=np.float32)
        for ribbon in range(3):
            phase = float(self._ripple[ribbon])
            slow = np.float32(seconds * (0.22 + 0.07 * ribbon))
            base = 0.52 - 0.1 * ribbon + 0.09 * np.sin(5.2 * x + phase + slow)
            base += 0.04 * np.sin(13 * x - 1.7 * slow + phase)
            folds = 0.55 + 0.3 * np.sin(31 * x + 9 * np.sin(3 * x + phase) + 2 * slow)
            folds += 0.15 * np.sin(71 * x - 3 * slow)
            rise = base - y
            light += folds * np.where(rise > 0, np.exp(-rise * 5.5), np.exp(rise * 26)) * np.float32(0.62)
        smooth = Image.fromarray(light).resize((self._width, self._water), Image.Resampling.BICUBIC)
        strength = np.clip(np.asarray(smooth, dtype=np.float32), 0, 1)
        above += np.array(self._palette.aurora, dtype=np.float32) * (strength * np.float32(0.62))[..., None]

    def _heights(self, number: int, seconds: float) -> Floats:
        """The ridge's upper edge for every column, in pixels from the top. Computed, so that it drifts smoothly."""
        near = (number + 1) / RIDGES
        shift = self._direction * seconds * DRIFT * near**2.2
        x = self._columns / np.float32(self._long) + np.float32(shift)
        profile = np.zeros(self._width, dtype=np.float32)
        for frequency, size, phase, sharp in self._ridges[number]:
            wave: Floats = np.sin(x * np.float32(frequency) + np.float32(phase))
            # An absolute sine has a crest: it makes peaks where a plain one makes hills.
            profile += np.float32(size) * (1 - 2 * np.abs(wave) if sharp else wave)
        base = 0.56 + 0.135 * near
        return np.asarray((base - profile * (0.15 - 0.095 * near)) * self._height, dtype=np.float32)

    def _ridge_colors(self, number: int) -> Floats:
        near = (number / (RIDGES - 1)) ** 1.25
        far, close = np.array(self._palette.far, dtype=np.float32), np.array(self._palette.near, dtype=np.float32)
        color = far + (close - far) * near
        haze = np.array(self._palette.sky[3], dtype=np.float32)
        top = (0.42 + 0.05 * number) * self._height
        below = np.clip((np.arange(self._water, dtype=np.float32) - top) / (0.3 * self._height), 0, 1)[:, None]
        mist = below**1.6 * (0.62 - 0.4 * near)
        return np.asarray(color + (haze - color) * mist, dtype=np.float32)

    def _add_ridge(self, above: Floats, number: int, seconds: float) -> None:
        heights = self._heights(number, seconds)
        top = max(int(heights.min()) - 1, 0)
        band = above[top:]
        if not band.size:
            return
        rows = np.arange(top, self._water, dtype=np.float32)[:, None]
        cover = np.clip(rows - heights[None, :] + np.float32(0.5), 0, 1)
        colors = self._colors[number][top:, None, :]
        # Light from the sun catches the crest: warmest where the ridge passes under it.
        reach = np.exp(-(((self._columns - np.float32(self._sun[0])) / np.float32(0.24 * self._long)) ** 2))
        crest = np.exp(-np.clip(rows - heights[None, :], 0, None) / np.float32(0.03 * self._height)) * reach[None, :]
        glow = np.array(self._palette.glow, dtype=np.float32)
        lit = colors + (glow - colors) * (crest * np.float32(0.34 * (1 - number / RIDGES)))[..., None]
        band += (lit - band) * cover[..., None]

    def _reflect(self, picture: Floats, seconds: float) -> None:
        depth, waves = self._depth, self._ripple
        rows = len(depth)
        wobble = (0.35 + depth * 2.6) * np.sin(depth**0.55 * 64 - seconds * 2.3 + waves[0])
        wobble += (0.2 + depth * 1.8) * np.sin(depth**0.7 * 151 + seconds * 3.1 + waves[1])
        source = self._water - 1 - np.arange(rows) * 1.12 + wobble * self._height / 180
        mirrored = picture[np.clip(source, 0, self._water - 1).astype(np.intp)]
        # Water takes light away rather than adding grey: a reflected sun stays warm.
        tint = 0.1 + 0.4 * np.array(self._palette.far, dtype=np.float32) / 255
        water = mirrored * (1 - (0.22 + 0.5 * depth)[:, None, None] * (1 - tint))
        spread = np.float32(self._long) * (0.018 + 0.075 * depth[:, None])
        path = np.exp(-(((self._columns[None, :] - np.float32(self._sun[0])) / spread) ** 2))
        flicker = np.sin(self._glitter * 40 + np.float32(seconds * 4.2)) * 0.5 + 0.5
        streaks = 0.5 + 0.5 * np.sin(depth**0.6 * 190 - seconds * 2.7)[:, None]
        spark = path * flicker * streaks * (0.85 - 0.5 * depth)[:, None]
        water += (np.array(self._palette.sun, dtype=np.float32) - water) * np.clip(spark, 0, 1)[..., None]
        picture[self._water :] = water


def _ridge(random: np.random.Generator, number: int) -> list[tuple[float, float, float, bool]]:
    """The waves one ridge is the sum of: (frequency, size, phase, whether it has crests)."""
    peaks = number < RIDGES - 2
    waves = []
    for octave in range(7):
        frequency = (3.1 + 1.1 * number) * 1.92**octave * random.uniform(0.88, 1.14)
        waves.append((frequency, 0.62 * 0.5**octave, random.uniform(0, 6.28), peaks and octave < 4))
    return waves


def _clouds(random: np.random.Generator, height: int, width: int) -> Floats:
    """Streaks of cloud, denser towards the horizon, each value from 0 (clear) to 1."""
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(4):
        grid = random.random((5 * 2**octave + 1, 3 * 2**octave + 1), dtype=np.float32)
        layer = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(layer, dtype=np.float32) * np.float32(0.5**octave)
    total = (total - total.min()) / max(float(np.ptp(total)), 1e-6)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    streaks: Floats = np.clip((total - 0.5) * 2.6, 0, 1) * np.abs(np.sin(down * np.pi)) ** np.float32(0.8)
    return streaks


def _scatter_stars(picture: Floats, random: np.random.Generator) -> None:
    height, width, _ = picture.shape
    for _ in range(round(170 * width * height / 230_000) + 20):
        y, x = int(random.random() ** 1.6 * height * 0.8), int(random.integers(width))
        picture[y, x] += (255 - picture[y, x]) * random.uniform(0.15, 0.85)


def _smooth(noise: Floats, times: int) -> Floats:
    for _ in range(times):
        total = noise + np.roll(noise, 1, axis=1) + np.roll(noise, 2, axis=1) + np.roll(noise, -1, axis=1)
        noise = total * np.float32(0.25)
    return noise


def _mix(picture: Floats, color: RGB, strength: Floats) -> None:
    picture += (np.array(color, dtype=np.float32) - picture) * strength[..., None].astype(np.float32)
