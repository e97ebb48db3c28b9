"""Renders the sandbox's videos: real MP4s that any player plays, in about a quarter of a second of work a second."""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from deployments.sandbox.captions import Overlay, draw_caption
from deployments.sandbox.palettes import palette_of, seed_of
from deployments.sandbox.scenery import Scenery
from deployments.sandbox.sound import SAMPLE_RATE, chord

AspectRatio = Literal["landscape", "portrait"]
Planes = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]

FRAMES_PER_SECOND = 24
#: The landscape is painted with at most this many pixels on its short side and scaled up: painting costs by the pixel,
#: and the scene is soft anyway. The writing is drawn at full size.
PAINTED_HEIGHT = 240
#: Videos this small are made by tests, hundreds at a time: every picture is held for some frames, which nobody watches.
THUMBNAIL_HEIGHT = 120
THUMBNAIL_HOLD = 6
#: How much the Ken Burns move zooms in over a whole video.
ZOOM = 0.12
#: ITU-R BT.709, the colors a player assumes for HD.
BT709 = 1


class RenderingCancelledError(Exception):
    """The sandbox was stopped while it rendered this video. Nothing was left behind."""


def video_size(aspect_ratio: AspectRatio, height: int) -> tuple[int, int]:
    """Width and height in pixels for a short side of `height`, rounded to the even numbers H.264 needs."""
    short, long = height // 2 * 2, round(height * 16 / 9 / 2) * 2
    return (long, short) if aspect_ratio == "landscape" else (short, long)


def render_video(
    path: Path,
    *,
    prompt: str,
    duration_seconds: int,
    aspect_ratio: AspectRatio,
    height: int,
    image: Image.Image | None,
    watermark: bool,
    cancelled: threading.Event | None = None,
) -> None:
    """Writes an MP4 (H.264, AAC, 24 frames a second, moov first) to `path`, which appears only once it is complete.

    `height` is the short side in pixels. With an image the video is a slow move over it, without one a landscape.
    Raises `RenderingCancelledError` soon after `cancelled` is set.
    """
    width, tall = video_size(aspect_ratio, height)
    seed, palette = seed_of(prompt), palette_of(prompt)
    overlay = Overlay(draw_caption(width, tall, prompt=prompt, watermark=watermark, accent=palette.glow))
    paint = _landscape(prompt, width, tall) if image is None else _ken_burns(image, width, tall, seed, duration_seconds)
    hold = THUMBNAIL_HOLD if height <= THUMBNAIL_HEIGHT else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name keeps the ending: FFmpeg chooses the container by it.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.mp4")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            stream.width, stream.height, stream.pix_fmt = width, tall, "yuv420p"
            # One thread: two videos at once are what the pool is for, and the same input gives the same bytes.
            stream.options = {"preset": "ultrafast", "crf": "26", "threads": "1"}
            context = stream.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
            audio.bit_rate = 96_000
            audio.options = {"aac_coder": "fast"}
            for sound in _audio_frames(seed, duration_seconds):
                _check_going_on(cancelled, path)
                container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
            for number in range(duration_seconds * FRAMES_PER_SECOND):
                _check_going_on(cancelled, path)
                if number % hold == 0:
                    frame = paint(number / FRAMES_PER_SECOND)
                    overlay.lay_over(_planes(frame))
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)  # noqa: PTH108 - missing is the good case


def _check_going_on(cancelled: threading.Event | None, path: Path) -> None:
    if cancelled is not None and cancelled.is_set():
        raise RenderingCancelledError(f"stopped while rendering {path.name}")


Paint = Callable[[float], av.VideoFrame]


def _landscape(prompt: str, width: int, height: int) -> Paint:
    """The scene that belongs to the prompt, painted small and scaled up."""
    scale = min(1.0, PAINTED_HEIGHT / min(width, height))
    scenery = Scenery(
        palette_of(prompt), seed=seed_of(prompt), width=round(width * scale), height=round(height * scale)
    )
    return lambda moment: _yuv(scenery.frame(moment), width, height)


def _ken_burns(image: Image.Image, width: int, height: int, seed: int, seconds: float) -> Paint:
    """A slow zoom over the image with a drift to one side, easing in and out."""
    # A little larger than the video: what the zoom ends on is still sharp.
    roomy = (round(width * (1 + ZOOM) / 2) * 2, round(height * (1 + ZOOM) / 2) * 2)
    fitted = ImageOps.fit(image.convert("RGB"), roomy, Image.Resampling.LANCZOS)
    # Cut out of the Y, U and V planes, not out of RGB: half the samples, and no conversion for every frame.
    sources = [Image.fromarray(plane) for plane in _planes(_yuv(np.asarray(fitted), *roomy))]
    toward_x, toward_y = ((0.0, 0.3), (1.0, 0.3), (0.15, 0.7), (0.85, 0.5))[seed % 4]

    def paint(moment: float) -> av.VideoFrame:
        part = moment / seconds
        shrink = ZOOM / (1 + ZOOM) * part * part * (3 - 2 * part)
        frame = av.VideoFrame(width, height, "yuv420p")
        for plane, source in zip(_planes(frame), sources, strict=True):
            wide, tall = (side * (1 - shrink) for side in source.size)
            left, top = (source.width - wide) * toward_x, (source.height - tall) * toward_y
            box = (left, top, left + wide, top + tall)
            plane[:] = np.asarray(source.resize(plane.shape[::-1], Image.Resampling.BILINEAR, box=box))
        return frame

    return paint


def _yuv(picture: npt.NDArray[np.uint8], width: int, height: int) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
        width,
        height,
        "yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        interpolation="BICUBIC" if picture.shape[0] != height else "FAST_BILINEAR",
    )


def _planes(frame: av.VideoFrame) -> Planes:
    """The frame's own memory, without the padding at the end of each row."""
    views = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(plane.height, plane.line_size)
        views.append(rows[:, : plane.width])
    luma, blue, red = views
    return luma, blue, red


def _audio_frames(seed: int, seconds: float) -> Iterator[av.AudioFrame]:
    samples = chord(seed, seconds)
    # 1024 samples are one AAC frame.
    for start in range(0, samples.shape[1], 1024):
        piece = np.ascontiguousarray(samples[:, start : start + 1024])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        yield frame
