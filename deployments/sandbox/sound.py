"""The video's sound: a soft chord that swells and fades, quiet enough to run in a loop on a desk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

#: Samples a second. Enough for a chord below 2 kHz, and a third cheaper to encode than 48,000.
SAMPLE_RATE = 32_000
#: Loudest sample, of 1: about -16 dBFS.
PEAK = 0.16
#: Chords as frequencies in Hz: D major 9, A minor 7, F major 7, G sus 4, each over an open fifth.
CHORDS: tuple[tuple[float, ...], ...] = (
    (73.42, 110.0, 185.0, 220.0, 329.63),
    (55.0, 110.0, 164.81, 261.63, 392.0),
    (87.31, 130.81, 220.0, 261.63, 329.63),
    (98.0, 146.83, 196.0, 261.63, 293.66),
)


def chord(seed: int, seconds: float) -> npt.NDArray[np.float32]:
    """Stereo samples from -1 to 1, as (2, seconds * SAMPLE_RATE)."""
    count = round(seconds * SAMPLE_RATE)
    time = np.arange(count, dtype=np.float32) / np.float32(SAMPLE_RATE)
    sound = np.zeros((2, count), dtype=np.float32)
    for number, frequency in enumerate(CHORDS[seed % len(CHORDS)]):
        breath = 0.75 + 0.25 * np.sin(time * np.float32(0.9 + 0.17 * number) + np.float32(number))
        loudness = np.float32(1 / (1 + 0.45 * number)) * breath
        for side in range(2):
            # A fraction of a hertz apart, left and right beat slowly against each other: it sounds wide.
            cycles = (frequency + (0.31 if side else -0.31)) * np.arange(count) / SAMPLE_RATE
            sound[side] += loudness * np.sin(((cycles % 1) * (2 * np.pi)).astype(np.float32))
    swell = np.sin(np.pi * np.clip(time / np.float32(seconds), 0, 1)) ** 0.7
    sound *= swell * np.float32(PEAK / max(float(np.abs(sound).max()), 1e-6))
    return sound
