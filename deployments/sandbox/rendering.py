"""The sandbox's videos: real MP4s that any player plays, a slow pan over a picture with the prompt on it.

Each is rendered once for its inputs, two at a time, beside the event loop.
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
#: How far the view moves over a whole video, as a part of its width.
PAN = 0.12
MOST_LINES = 4
WATERMARK = "sandbox"
#: ITU-R BT.709, the colors a player assumes for HD.
BT709 = 1
#: Sound samples a second. Enough for a chord, and a third cheaper to encode than 48,000.
SAMPLE_RATE = 32_000
#: Loudest sample, of 1: quiet enough to run in a loop on a desk.
PEAK = 0.16
#: One AAC frame.
SAMPLES_A_FRAME = 1024
#: Raised when videos look different, so that a kept `data_dir` does not serve the old ones.
LOOK = 2
#: Videos rendered at one time. More would only take the processor from those who wait for an answer.
RENDERERS = 2


class VideoStore:
    """Gives videos their place in a folder. Used on the event loop; only the rendering is in threads."""

    def __init__(self, folder: Path | None, height: int) -> None:
        """`folder` keeps the videos; without one they live in a temporary folder until `close`."""
        self._height = height
        self._closing = contextlib.ExitStack()
        self._folder = folder or Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="apixo-sandbox-")))
        self._pool = ThreadPoolExecutor(RENDERERS, thread_name_prefix="sandbox-video")
        self._stopped = threading.Event()
        self._under_way: dict[Path, asyncio.Future[None]] = {}

    async def video(
        self, *, prompt: str, duration: int, aspect_ratio: str, image: bytes | None, watermark: bool
    ) -> Path:
        """The video for these inputs, rendered unless it is there. `duration` in seconds; `image` an encoded one."""
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
            rendering = self._under_way.get(path)
            if rendering is None:
                rendering = asyncio.get_running_loop().run_in_executor(self._pool, render)
                self._under_way[path] = rendering
                rendering.add_done_callback(lambda _: self._under_way.pop(path, None))
            # Shielded: others may wait for the same video when this caller goes away.
            await asyncio.shield(rendering)
        return path

    async def close(self) -> None:
        """Ends what is being rendered and removes the temporary folder."""
        self._stopped.set()
        waiting = list(self._under_way.values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*waiting, return_exceptions=True)
        self._pool.shutdown(wait=True)
        self._closing.close()


class RenderingCancelledError(Exception):
    """The sandbox was stopped while it rendered this video. Nothing was left behind."""


def video_size(aspect_ratio: str, height: int) -> tuple[int, int]:
    """Width and height in pixels for a short side of `height`, rounded to the even numbers H.264 needs.

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
    """Writes an MP4 (H.264, AAC, 24 frames a second, moov first) to `path`, which appears only once it is complete.

    `height` is the short side in pixels. Without an image the video shows a landscape painted for the prompt.
    Raises `RenderingCancelledError` soon after `cancelled` is set.
    """
    size = video_size(aspect_ratio, height)
    wider = (round(size[0] * (1 + PAN)), size[1])
    picture = landscape(prompt, *wider) if image is None else ImageOps.fit(image.convert("RGB"), wider)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name keeps the ending: FFmpeg chooses the container by it.
    unfinished = path.with_name(f".{uuid.uuid4().hex}.mp4")
    try:
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            video = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            video.width, video.height, video.pix_fmt = *size, "yuv420p"
            # One thread: two videos at once are what the pool is for, and the same input gives the same bytes.
            video.options = {"preset": "ultrafast", "crf": "26", "threads": "1"}
            context = video.codec_context
            context.colorspace = context.color_primaries = context.color_trc = BT709
            audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
            audio.bit_rate = 96_000
            audio.options = {"aac_coder": "fast"}
            streams: list[tuple[Any, Iterator[Any]]] = [
                (audio, _sound(seed_of(prompt), duration_seconds)),
                (video, _frames(picture, _writing(size, prompt, watermark=watermark), duration_seconds)),
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


def _frames(picture: Image.Image, writing: Image.Image, seconds: int) -> Iterator[av.VideoFrame]:
    """A slow pan over the picture, under writing that stands still."""
    count = seconds * FRAMES_PER_SECOND
    written = writing.getbbox() or (0, 0, 1, 1)
    words = writing.crop(written)
    for number in range(count):
        left = round((picture.width - writing.width) * number / (count - 1))
        drawn = picture.crop((left, 0, left + writing.width, picture.height))
        drawn.paste(words, written[:2], words)
        frame = av.VideoFrame.from_ndarray(np.asarray(drawn), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        frame.pts = number
        yield frame


def _writing(size: tuple[int, int], prompt: str, *, watermark: bool) -> Image.Image:
    """The prompt at the bottom, cut after some lines, and the watermark in a corner, on a transparent picture."""
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
        for side, beat in enumerate((-0.3, 0.3)):  # a fraction of a hertz apart, left and right sound wide
            sound[side] += PEAK / 4 * np.sin(2 * np.pi * (root * part + beat) * time)
    samples = (sound * np.sin(np.pi * time / seconds) ** 0.7).astype(np.float32)
    for start in range(0, count, SAMPLES_A_FRAME):
        piece = np.ascontiguousarray(samples[:, start : start + SAMPLES_A_FRAME])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = SAMPLE_RATE, start
        yield frame
