"""Renders the sandbox's videos: real MP4s for any player, with a slow pan over a picture that shows the prompt.

Each is rendered only once for the same inputs, two at a time, outside the event loop.
"""

import asyncio
import contextlib
import hashlib
import json
import re
import tempfile
import textwrap
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageDraw, ImageFont, ImageOps

from deployments.sandbox.landscapes import landscape, seed_of

FRAMES_PER_SECOND = 24
#: How far the view moves during a video, as a fraction of its width.
PAN = 0.12
MOST_LINES = 4
WATERMARK = "sandbox"
#: ITU-R BT.709, the color space that players assume for HD.
BT709 = 1
#: Sound samples per second. Enough for a chord, and a third cheaper to encode than 48,000.
SAMPLE_RATE = 32_000
#: The loudest sample, where 1 is the maximum: quiet enough to play in a loop.
PEAK = 0.16
#: The length of an AAC frame.
SAMPLES_A_FRAME = 1024
#: Increased when the look of videos changes, so that old ones in `data_dir` are not used.
LOOK = 2
#: Videos rendered at the same time. More would only take processor time from answering requests.
RENDERERS = 2


class VideoStore:
    """Renders videos into a folder. Used on the event loop; only the rendering runs in threads."""

    def __init__(self, folder: Path | None, height: int) -> None:
        """`folder` is where videos are kept. Without one, they are in a temporary folder until `close`."""
        self._height = height
        self._closing = contextlib.ExitStack()
        self._folder = folder or Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="apixo-sandbox-")))
        self._pool = ThreadPoolExecutor(RENDERERS, thread_name_prefix="sandbox-video")
        self._stopped = threading.Event()
        self._in_progress: dict[Path, asyncio.Future[None]] = {}

    async def video(
        self, *, prompt: str, duration: int, aspect_ratio: str, image: bytes | None, watermark: bool
    ) -> Path:
        """The video for these inputs, rendered unless it exists. `duration` in seconds; `image` is encoded."""
        digest = None if image is None else hashlib.sha256(image).hexdigest()
        about = [LOOK, self._height, prompt, duration, aspect_ratio, watermark, digest]
        path = self._folder / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.mp4"

        def render() -> None:
            picture = None if image is None else Image.open(BytesIO(image))
            render_video(
                path,
                prompt=prompt,
                duration_seconds=duration,
                aspect_ratio=aspect_ratio,
                height=self._height,
                image=picture,
                watermark=watermark,
                cancelled=self._stopped,
            )

        while not path.exists():
            if self._stopped.is_set():
                raise RenderingCancelledError("the sandbox is stopped")
            rendering = self._in_progress.get(path)
            if rendering is None:
                rendering = asyncio.get_running_loop().run_in_executor(self._pool, render)
                self._in_progress[path] = rendering
                rendering.add_done_callback(lambda _: self._in_progress.pop(path, None))
            # Shielded: if this caller is cancelled, others may still wait for the same video.
            await asyncio.shield(rendering)
        return path

    async def close(self) -> None:
        """Cancels rendering in progress and removes the temporary folder."""
        self._stopped.set()
        waiting = list(self._in_progress.values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*waiting, return_exceptions=True)
        self._pool.shutdown(wait=True)
        self._closing.close()


class RenderingCancelledError(Exception):
    """The sandbox was stopped while it rendered this video. No file was left behind."""


def video_size(aspect_ratio: str, height: int) -> tuple[int, int]:
    """Width and height in pixels for a short side of `height`, rounded to even numbers, as H.264 requires.

    `aspect_ratio` is `landscape`, `portrait`, a ratio such as `4:3`, or a size such as `1280*720`.
    """
    named = {"landscape": "16:9", "portrait": "9:16"}.get(aspect_ratio, aspect_ratio)
    found = re.fullmatch(r"([1-9]\d{0,4})[:*x]([1-9]\d{0,4})", named)
    wide, high = (int(found[1]), int(found[2])) if found else (16, 9)
    short, long = height // 2 * 2, round(height * max(wide, high) / min(wide, high) / 2) * 2
    return (long, short) if wide > high else (short, long)


def render_video(
    path: Path,
    *,
    prompt: str,
    duration_seconds: int,
    aspect_ratio: str,
    height: int,
    image: Image.Image | None,
    watermark: bool,
    cancelled: threading.Event | None = None,
) -> None:
    """Writes an MP4 (H.264, AAC, 24 frames per second, moov first) to `path`, which exists only once it is complete.

    `height` is the short side in pixels. Without an image, the video shows a landscape painted from the prompt.
    Raises `RenderingCancelledError` soon after `cancelled` is set.
    """
    size = video_size(aspect_ratio, height)
    wider = (round(size[0] * (1 + PAN)), size[1])
    picture = landscape(prompt, *wider) if image is None else ImageOps.fit(image.convert("RGB"), wider)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name has the same extension: FFmpeg chooses the container by it.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.mp4")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            video = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            # One thread per video: the pool already renders two at once, and the same input gives the same bytes.
            video.options = {"preset": "ultrafast", "crf": "26", "threads": "1"}
            context = video.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
            audio.bit_rate = 96_000
            audio.options = {"aac_coder": "fast"}
            streams: list[tuple[Any, Iterator[Any]]] = [
                (audio, _sound(seed_of(prompt), duration_seconds)),
                (video, _frames(picture, _text_layer(size, prompt, watermark=watermark), duration_seconds)),
            ]
            for stream, frames in streams:
                for frame in frames:
                    if cancelled is not None and cancelled.is_set():
                        raise RenderingCancelledError(f"stopped while rendering {path.name}")
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _frames(picture: Image.Image, text_layer: Image.Image, seconds: int) -> Iterator[av.VideoFrame]:
    """A slow pan over the picture, under text that does not move."""
    count = seconds * FRAMES_PER_SECOND
    written = text_layer.getbbox() or (0, 0, 1, 1)
    words = text_layer.crop(written)
    for number in range(count):
        left = round((picture.width - text_layer.width) * number / (count - 1))
        drawn = picture.crop((left, 0, left + text_layer.width, picture.height))
        drawn.paste(words, written[:2], words)
        frame = av.VideoFrame.from_ndarray(np.asarray(drawn), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts = number
        yield frame


def _text_layer(size: tuple[int, int], prompt: str, *, watermark: bool) -> Image.Image:
    """A transparent picture with the prompt at the bottom, cut after some lines, and the watermark in a corner."""
    width, height = size
    layer = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    letter = max(min(size) // 20, 7)
    font = ImageFont.load_default(size=letter)
    lines = textwrap.wrap(
        prompt, width=round(width * 0.85 / font.getlength("n")), max_lines=MOST_LINES, placeholder="…"
    )
    for where, text, anchor in (
        ((width * 0.07, height * 0.93), "\n".join(lines), "ld"),
        ((width * 0.95, height * 0.05), WATERMARK if watermark else "", "ra"),
    ):
        draw.text(where, text, "white", font, anchor, stroke_width=letter // 12, stroke_fill="#00000099")
    return layer


def _sound(seed: int, seconds: int) -> Iterator[av.AudioFrame]:
    """A soft chord that swells and fades."""
    count = seconds * SAMPLE_RATE
    time = np.arange(count) / SAMPLE_RATE
    root = 55 * 2 ** (seed % 12 / 12)
    sound = np.zeros((2, count))
    for part in (1, 2, 3, 5):
        for side, beat in enumerate((-0.3, 0.3)):  # a fraction of a hertz apart, for a wide stereo sound
            sound[side] += PEAK / 4 * np.sin(2 * np.pi * (root * part + beat) * time)
    samples = (sound * np.sin(np.pi * time / seconds) ** 0.7).astype(np.float32)
    for start in range(0, count, SAMPLES_A_FRAME):
        piece = np.ascontiguousarray(samples[:, start : start + SAMPLES_A_FRAME])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        yield frame
