"""Stills from a video: chooses the poster frame, and renders frames as displayed: upright, with square pixels."""

import io
from fractions import Fraction
from typing import Final

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

MAX_POSTER_SIDE: Final = 1280
"""The longer side in pixels."""

_BLACK = 24.0  # mean brightness of 0 to 255 up to which a frame counts as black; pure black is 0, or 16 in video range
_JPEG_QUALITY = 85


class PosterChoice:
    """Chooses a representative frame among the frames that it is given, in order.

    Args:
        at_ticks: the choice is the last frame up to this time; if that is black, the first later one that is not.
            In the stream's own units: computing fractions for a thousand frames takes as long as decoding them.

    Attributes:
        frame: the choice so far.
        made: whether the choice is final.
    """

    def __init__(self, at_ticks: Fraction) -> None:
        self._at_ticks = at_ticks
        self._start: int | None = None
        self._is_black: bool | None = None
        self.frame: VideoFrame | None = None
        self.made = False

    def consider(self, frame: VideoFrame) -> None:
        """Considers the next frame. A frame without a timestamp counts as the beginning."""
        at = frame.pts or 0
        self._start = at if self._start is None else self._start
        if self.frame is None or at - self._start <= self._at_ticks:
            self.frame = frame
            return
        if self._is_black is None:
            self._is_black = _is_black(self.frame)
        if self._is_black and not _is_black(frame):
            self.frame, self._is_black = frame, False
        self.made = not self._is_black


def unit_seconds(stream: VideoStream) -> Fraction:
    """The time unit of a stream. FFmpeg uses it for the stream's packets and frames too."""
    unit = stream.time_base  # a `Fraction`; since PyAV 19, which needs Python 3.12, its own type
    return Fraction(unit.numerator, unit.denominator) if unit else Fraction(1, av.time_base)


def display_size(frame: VideoFrame, video: VideoStream) -> tuple[int, int]:
    """Width and height as displayed: pixels made square, rotation applied."""
    width, height = _stored_size(frame, video)
    return (height, width) if _rotation(frame) % 180 else (width, height)


def jpeg(frame: VideoFrame, video: VideoStream) -> bytes:
    """The frame as displayed, with at most MAX_POSTER_SIDE pixels on its longer side."""
    width, height = _stored_size(frame, video)
    scale = min(1.0, MAX_POSTER_SIDE / max(width, height))
    # FFmpeg converts and scales in one step.
    small = frame.reformat(width=max(1, round(width * scale)), height=max(1, round(height * scale)), format="rgb24")
    out = io.BytesIO()
    Image.fromarray(small.to_ndarray()).rotate(_rotation(frame), expand=True).save(out, "JPEG", quality=_JPEG_QUALITY)
    return out.getvalue()


def _stored_size(frame: VideoFrame, video: VideoStream) -> tuple[int, int]:
    """Width and height with square pixels, not yet rotated."""
    shape = video.sample_aspect_ratio
    if not shape or not Fraction(1, 10) <= shape <= 10:
        return frame.width, frame.height  # absent or nonsense
    return max(1, round(frame.width * shape)), frame.height


def _rotation(frame: VideoFrame) -> int:
    """How far to rotate it, counterclockwise, to the nearest 90 degrees, as players do."""
    return round(frame.rotation / 90) * 90


def _is_black(frame: VideoFrame) -> bool:
    # The default scaling takes 16 ms for a 720p frame, a hundred times as long as this one.
    gray = frame.reformat(width=32, height=32, format="gray", interpolation="AREA").to_ndarray()
    return float(gray.mean()) <= _BLACK
