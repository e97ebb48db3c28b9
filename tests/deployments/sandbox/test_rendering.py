"""The videos that the sandbox renders, decoded frame by frame."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
from PIL import Image

from deployments.sandbox.landscapes import landscape
from deployments.sandbox.rendering import RenderingCancelledError, render_video, video_size

Aspect = Literal["landscape", "portrait"]


def render(path: Path, **changes: object) -> Path:
    requested: dict[str, object] = {
        "prompt": "A slow dolly in on a lighthouse",
        "duration_seconds": 1,
        "aspect_ratio": "landscape",
        "height": 90,
        "image": None,
        "watermark": False,
    }
    render_video(path, **(requested | changes))  # type: ignore[arg-type]
    return path


def decode_frames(path: Path) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(np.uint8) for frame in container.decode(video=0)]


PHOTO = landscape("a photo", 320, 200)


@pytest.mark.parametrize(
    ("duration", "aspect", "image"),
    [
        pytest.param(4, "landscape", None, id="text"),
        pytest.param(4, "portrait", None, id="text, portrait"),
        pytest.param(4, "landscape", PHOTO, id="image"),
        pytest.param(4, "portrait", PHOTO, id="image, portrait"),
        pytest.param(8, "landscape", None, id="8 s"),
        pytest.param(12, "portrait", PHOTO, id="12 s"),
    ],
)
def test_every_frame_decodes_and_the_length_is_correct(
    tmp_path: Path, duration: int, aspect: Aspect, image: Image.Image | None
) -> None:
    path = render(tmp_path / "video.mp4", duration_seconds=duration, aspect_ratio=aspect, image=image)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height) == video_size(aspect, 90)
        assert (video.width > video.height) == (aspect == "landscape")
        assert (video.codec_context.name, video.pix_fmt, audio.codec_context.name) == ("h264", "yuv420p", "aac")
        assert video.average_rate == 24
        assert video.duration is not None
        assert video.time_base is not None
        assert abs(float(video.duration * video.time_base) - duration) <= 1 / 24
        assert container.duration is not None
        assert abs(container.duration / 1_000_000 - duration) <= 1 / 24
        times = [frame.time for frame in container.decode(video)]
    assert times == pytest.approx([number / 24 for number in range(24 * duration)], abs=1e-3)
    with av.open(str(path)) as container:
        loudness = [float(np.abs(frame.to_ndarray()).max()) for frame in container.decode(audio=0)]
    assert 0.05 < max(loudness) < 0.3


def test_index_comes_first_so_playback_starts_before_full_download(tmp_path: Path) -> None:
    content = render(tmp_path / "video.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_video_size_at_height_720_is_hd(tmp_path: Path) -> None:
    assert video_size("landscape", 720) == (1280, 720)
    assert video_size("portrait", 720) == (720, 1280)
    assert video_size("landscape", 91) == (162, 90)


def test_frames_change_over_time(tmp_path: Path) -> None:
    for image in (None, PHOTO):
        frames = decode_frames(render(tmp_path / "video.mp4", image=image))
        assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 1


def test_video_shows_the_start_image(tmp_path: Path) -> None:
    red = Image.new("RGB", (300, 300), (220, 20, 20))
    first_frame = decode_frames(render(tmp_path / "video.mp4", image=red))[0]
    top = first_frame[5:30].reshape(-1, 3).mean(axis=0)
    assert top == pytest.approx([220, 20, 20], abs=14)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "LA", "1", "I;16"])
def test_images_of_every_color_mode_become_videos(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (40, 31)) if mode == "I;16" else PHOTO.resize((40, 31)).convert(mode)
    assert len(decode_frames(render(tmp_path / "video.mp4", image=image))) == 24


def test_same_prompt_gives_same_video_and_other_prompt_differs(tmp_path: Path) -> None:
    first_video, same_prompt, other_prompt = (
        render(tmp_path / f"{n}.mp4", prompt=p) for n, p in enumerate(("one", "one", "other"))
    )
    assert first_video.read_bytes() == same_prompt.read_bytes() != other_prompt.read_bytes()


def test_watermark_is_drawn_only_if_requested(tmp_path: Path) -> None:
    black = Image.new("RGB", (64, 36))
    corner = [
        int(np.max(decode_frames(render(tmp_path / "video.mp4", image=black, watermark=watermark))[0][:20, 80:]))
        for watermark in (False, True)
    ]
    assert corner[0] < 40 < corner[1]


@pytest.mark.parametrize(
    "prompt",
    [
        "x",
        "word " * 2000,
        "w" * 10_000,
        "一只狐狸在雪中奔跑" * 60,
        "a\n\n\tb\x00c",
        "🦊" * 500,
        "\ud7ff",
        "e\u0301" * 99,
    ],
)
@pytest.mark.parametrize("aspect", ["landscape", "portrait"])
def test_any_prompt_can_be_rendered(tmp_path: Path, prompt: str, aspect: Aspect) -> None:
    assert len(decode_frames(render(tmp_path / "video.mp4", prompt=prompt, aspect_ratio=aspect))) == 24


def test_cancelled_rendering_leaves_no_file(tmp_path: Path) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(RenderingCancelledError):
        render(tmp_path / "video.mp4", cancelled=cancelled)
    assert list(tmp_path.iterdir()) == []
