"""Videos that players play but strict programs reject: wrong lengths, empty samples, containers of all kinds."""

import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from flows.media.media_errors import DamagedVideoError
from flows.media.videos import inspect_video, poster_jpeg


@pytest.fixture
def whole(video_files: Any) -> bytes:
    content: bytes = video_files.make("a.mp4", audio=True, frames=96, movflags="faststart").read_bytes()
    return content


def write_video(folder: Path, content: bytes) -> Path:
    path = folder / "odd.mp4"
    path.write_bytes(content)
    return path


def change_box_size(content: bytes, kind: bytes, more: int) -> bytes:
    """Makes the box declare that it is this many bytes longer than it is."""
    at = content.index(kind) - 4
    return content[:at] + struct.pack(">I", struct.unpack_from(">I", content, at)[0] + more) + content[at + 4 :]


@pytest.mark.parametrize("more", [1, 8, 1_000, 2**20])
def test_declared_length_beyond_end_is_doubt_if_nothing_is_missing(tmp_path: Path, whole: bytes, more: int) -> None:
    facts = inspect_video(write_video(tmp_path, change_box_size(whole, b"mdat", more)))
    assert (facts.frame_count, facts.is_complete) == (96, True)
    expected = f"The file declares {len(whole) + more:,} bytes but has {len(whole):,}, with every piece in it."
    assert facts.doubts == (expected,)


def test_64_bit_box_size_before_index_at_end_is_read(tmp_path: Path, video_files: Any) -> None:
    """Programs that do not know the length in advance write this, even for short videos."""
    content: bytes = video_files.make("end.mp4", audio=True, frames=96).read_bytes()
    at = content.index(b"mdat") - 4  # after an empty box of 8 bytes, which leaves room for a 64-bit size
    assert content[at - 4 : at] == b"free"
    size = struct.unpack_from(">I", content, at)[0] + 8
    facts = inspect_video(
        write_video(tmp_path, content[: at - 8] + struct.pack(">I4sQ", 1, b"mdat", size) + content[at + 8 :])
    )
    assert (facts.frame_count, facts.is_complete, facts.doubts) == (96, True, ())


def test_unfinished_box_after_video_is_doubt(tmp_path: Path, whole: bytes) -> None:
    facts = inspect_video(write_video(tmp_path, whole + struct.pack(">I4s", 10**6, b"mdat") + bytes(10)))
    assert facts.frame_count == 96
    assert len(facts.doubts) == 1


@pytest.mark.parametrize("missing", [1, 2, 30, 300, 3_000])
def test_missing_data_is_damage_not_doubt(tmp_path: Path, whole: bytes, missing: int) -> None:
    for content in (
        whole[:-missing],
        change_box_size(whole, b"mdat", -missing)[:-missing],
        change_box_size(whole, b"mdat", 9)[:-missing],
    ):
        with pytest.raises(DamagedVideoError, match="cut"):
            inspect_video(write_video(tmp_path, content))


@pytest.mark.parametrize("track", [0, 1])
@pytest.mark.parametrize("sample", [1, 30, -1])
def test_empty_sample_does_not_count_as_missing_data(tmp_path: Path, whole: bytes, track: int, sample: int) -> None:
    at = [at for at in range(len(whole)) if whole.startswith(b"stsz", at)][track]
    count = struct.unpack_from(">I", whole, at + 12)[0]
    entry = at + 16 + 4 * (sample % count)
    facts = inspect_video(write_video(tmp_path, whole[:entry] + bytes(4) + whole[entry + 4 :]))
    assert facts.frame_count == 96 - (track == 0)
    assert facts.is_complete


@pytest.mark.parametrize(
    ("container", "codec", "pixels", "media_type"),
    [
        ("gif", "gif", "rgb8", "image/gif"),
        ("apng", "apng", "rgb24", "image/apng"),
        ("asf", "wmv2", "yuv420p", "video/x-ms-wmv"),
        ("mxf", "mpeg2video", "yuv420p", "application/mxf"),
        ("ivf", "libvpx-vp9", "yuv420p", "video/x-ivf"),
        ("webm", "libvpx", "yuv420p", "video/webm"),
        ("webm", "libvpx-vp9", "yuv420p", "video/webm"),
        ("matroska", "libvpx-vp9", "yuv420p", "video/x-matroska"),
        ("h264", "libx264", "yuv420p", "video/h264"),
        ("hevc", "libx265", "yuv420p", "video/h265"),
        ("mpeg2video", "mpeg2video", "yuv420p", "video/mpeg"),
        ("m4v", "mpeg4", "yuv420p", "video/mp4v-es"),
        ("yuv4mpegpipe", "rawvideo", "yuv420p", "video/x-yuv4mpeg"),
    ],
)
def test_every_playable_format_is_a_video(
    tmp_path: Path, container: str, codec: str, pixels: str, media_type: str
) -> None:
    facts = inspect_video(made := make_video(tmp_path / "video.mp4", container, codec, pixels))
    assert (facts.frame_count, facts.media_type, facts.doubts) == (48, media_type, ())
    assert facts.duration_seconds == pytest.approx(2, abs=0.1)
    assert poster_jpeg(made).startswith(b"\xff\xd8\xff")


@pytest.mark.parametrize(("container", "pixels"), [("gif", "rgb8"), ("apng", "rgb24")])
def test_single_picture_is_not_a_video(tmp_path: Path, container: str, pixels: str) -> None:
    with pytest.raises(DamagedVideoError):
        inspect_video(make_video(tmp_path / "notice", container, container, pixels, frames=1))


def make_video(path: Path, container: str, codec: str, pixels: str, frames: int = 48) -> Path:
    with av.open(str(path), "w", format=container) as out:
        video: Any = out.add_stream(codec, rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, pixels
        for number in range(frames):
            picture = np.full((48, 64, 3), 40 + 4 * number, np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(video.encode(None))
    return path
