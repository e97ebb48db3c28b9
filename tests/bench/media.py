"""The time to check a video and draw its poster, compared with one plain decoding of the same file by FFmpeg."""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Final

import av
import numpy as np
from PIL import Image, ImageFilter
from pydantic import BaseModel

from flows.media.videos import decode, inspect_video

SIZE: Final = (1280, 720)
FRAMES_PER_SECOND: Final = 30
TRIES: Final = 5
PAUSE_SECONDS: Final = 0.005


class Decoding(BaseModel):
    """Processor seconds for one video, as medians.

    Attributes:
        seconds, size_bytes: duration and size of the video.
        plain: PyAV decodes every frame with default settings, and discards it.
        ours: the check, the facts and the poster.
        ratio: the median of the ratios of neighboring tries.
        late_ms, late_idle_ms: how late the event loop wakes a sleeping coroutine, such as a run whose callback has
            arrived: the 95th percentile while videos are decoded without pause, and while nothing is decoded.
    """

    seconds: int
    size_bytes: int
    plain: float
    ours: float
    ratio: float
    late_ms: float | None = None
    late_idle_ms: float | None = None


def make_video(path: Path, seconds: int) -> None:
    """Writes a 720p video with grain and a moving camera, in H.264 with the defaults of x264."""
    random = np.random.default_rng(1)
    speckles = Image.fromarray((random.random((90, 480, 3)) * 255).astype(np.uint8))
    picture = speckles.resize((SIZE[0] * 3, SIZE[1]), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2))
    pixels = np.asarray(picture, dtype=np.int16)
    grain = random.normal(0, 2, (*SIZE[::-1], 1)).round().astype(np.int16)
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        video = out.add_stream("libx264", rate=FRAMES_PER_SECOND)
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.options = {"preset": "medium", "crf": "20"}
        for number in range(seconds * FRAMES_PER_SECOND):
            left = number * 4
            grainy = pixels[:, left : left + SIZE[0]] + np.roll(grain, 7919 * number, axis=(0, 1))
            frame = grainy.clip(0, 255).astype(np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(video.encode(None))


def measure_decoding(path: Path, seconds: int) -> Decoding:
    """Measures both several times, alternating between them."""
    plain, ours = [], []
    for _ in range(TRIES):
        began = time.process_time()
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for _frame in container.decode(video=0):
                pass
        between = time.process_time()
        inspect_video(path, path.with_suffix(".jpg"))
        plain.append(between - began)
        ours.append(time.process_time() - between)
    return Decoding(
        seconds=seconds,
        size_bytes=path.stat().st_size,
        plain=statistics.median(plain),
        ours=statistics.median(ours),
        ratio=statistics.median(mine / theirs for mine, theirs in zip(ours, plain, strict=True)),
    )


async def measure_lateness(path: Path, *, videos: int) -> float:
    """How late the event loop is, in milliseconds, while this many videos are decoded; without videos, for a second."""
    late: list[float] = []

    async def decode_all() -> None:
        await asyncio.gather(*(decode(inspect_video, path) for _ in range(videos)))

    decoding = asyncio.create_task(decode_all())
    ends = time.monotonic() + 1
    while not decoding.done() or time.monotonic() < ends:
        due = time.monotonic() + PAUSE_SECONDS
        await asyncio.sleep(PAUSE_SECONDS)
        late.append(time.monotonic() - due)
    await decoding
    return sorted(late)[len(late) * 95 // 100] * 1000
