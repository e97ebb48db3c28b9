"""Captions, second video tracks, edit lists, provenance manifests, rotation and the shape of pixels."""

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.subtitles.codeccontext import SubtitleCodecContext
from PIL import Image

from flows.media.boxes import C2PA_UUID, read_boxes
from flows.media.media_errors import DamagedVideoError
from flows.media.videos import inspect_video, poster_jpeg


def open_jpeg(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg), formats=["JPEG"])


ASS = b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\nFormat: Name\nStyle: Default\n[Events]\nFormat: Text\n"
"""The header that FFmpeg's caption encoders need."""


def with_caption(path: Path, *, until_seconds: float, codec: str, container: str) -> Path:
    """A copy of the video with one caption that ends at this time."""
    out_path = path.with_name(f"captioned-{path.name}")
    with av.open(str(path)) as source, av.open(str(out_path), "w", format=container) as out:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in source.streams}
        captions = out.add_stream(codec)
        captions.time_base = Fraction(1, 1000)
        cast("SubtitleCodecContext", captions.codec_context).subtitle_header = ASS
        text = b"Hello"
        caption = av.Packet(len(text).to_bytes(2, "big") + text if codec == "mov_text" else text)
        caption.stream, caption.time_base = captions, Fraction(1, 1000)
        caption.pts = caption.dts = 500
        caption.duration = round(until_seconds * 1000) - 500
        out.mux(caption)
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return out_path


@pytest.mark.parametrize("until_seconds", [1.0, 2.7, 60.0])
@pytest.mark.parametrize(("codec", "container"), [("mov_text", "mp4"), ("subrip", "matroska")])
@pytest.mark.parametrize("audio", [True, False])
def test_caption_that_outlasts_picture_is_ignored(
    video_files: Any, until_seconds: float, codec: str, container: str, audio: bool
) -> None:
    whole = video_files.make("a.mp4", audio=audio)
    path = with_caption(whole, until_seconds=until_seconds, codec=codec, container=container)
    facts = inspect_video(path)
    assert (facts.frame_count, facts.has_audio, facts.doubts) == (48, audio, ())
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)


def test_declared_length_that_may_be_of_caption_is_doubt(video_files: Any) -> None:
    path = with_caption(video_files.make("a.mp4"), until_seconds=60, codec="subrip", container="matroska")
    # Hide the duration of each track; that of the file stays.
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))
    assert inspect_video(path).doubts == ("The file declares 60.0 s; its picture lasts 2.0 s.",)


def test_truncated_matroska_with_short_caption_is_damaged(video_files: Any) -> None:
    path = with_caption(video_files.make("a.mp4"), until_seconds=1, codec="subrip", container="matroska")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"Hello") + (len(content) - content.index(b"Hello")) // 4])
    with pytest.raises(DamagedVideoError, match=r"was cut|no frame"):
        inspect_video(path)


@pytest.mark.parametrize("first", ["main", "second"])
def test_second_video_track_is_ignored(video_files: Any, first: str) -> None:
    """Besides the track that players show: a larger second track, and a cover of one frame that is larger still."""
    path = video_files.folder / "two.mp4"
    sizes = {"main": (64, 48, 48), "second": (128, 96, 144), "cover": (640, 480, 1)}
    with av.open(str(path), "w") as out:
        streams = {}
        for name in sorted(sizes, key=lambda name: name != first):
            streams[name] = out.add_stream("libx264", rate=24)
            streams[name].width, streams[name].height, streams[name].pix_fmt = *sizes[name][:2], "yuv420p"
            streams[name].disposition = av.stream.Disposition.default if name != "second" else av.stream.Disposition(0)
        for name, (width, height, frames) in sizes.items():
            for number in range(frames):
                pixels = np.full((height, width, 3), number, np.uint8)
                out.mux(streams[name].encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(streams[name].encode(None))
    facts = inspect_video(path)
    assert (facts.width, facts.height, facts.frame_count, facts.doubts) == (64, 48, 48, ())
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)


def test_frames_left_out_by_edit_list_are_not_missing(video_files: Any) -> None:
    """Cameras and `ffmpeg -ss … -c copy` write this: frames before the start are in the file, but not shown."""
    path = video_files.make("a.mp4")
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4
    version_and_count, seconds, start = struct.unpack_from(">QIi", content, at)
    assert (version_and_count, seconds) == (1, 2000)
    rate = 12_288  # ticks per second
    struct.pack_into(">Ii", content, at + 8, 500, start + rate * 3 // 2)
    path.write_bytes(content)
    facts = inspect_video(path)
    assert facts.duration_seconds == pytest.approx(0.5, abs=0.1)
    assert facts.frame_count == pytest.approx(12, abs=2)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("kind", [b"uuid" + C2PA_UUID, b"jumb"])
def test_c2pa_manifest_is_detected(video_files: Any, kind: bytes, large: bool) -> None:
    path = video_files.make("a.mp4", movflags="faststart")
    content = path.read_bytes()
    after_ftyp = int.from_bytes(content[:4], "big")
    name, rest = kind[:4], kind[4:] + bytes(1000)
    size = 8 + len(rest)
    box = struct.pack(">I4sQ", 1, name, size + 8) + rest if large else struct.pack(">I4s", size, name) + rest
    # At the end, where it moves no offset, and at the start, as the standard has it.
    path.write_bytes(content + box)
    assert inspect_video(path).has_c2pa
    path.write_bytes(content[:after_ftyp] + box + content[after_ftyp:])
    assert read_boxes(path).has_c2pa
    path.write_bytes(content + struct.pack(">I4s", 24, b"uuid") + bytes(16))
    assert not inspect_video(path).has_c2pa


@pytest.mark.parametrize(
    ("rotation", "size", "bright_corner"),
    [(0, (64, 48), "up left"), (90, (48, 64), "down left"), (-90, (48, 64), "up right"), (180, (64, 48), "down right")],
)
def test_rotated_video_is_shown_upright(
    video_files: Any, rotation: int, size: tuple[int, int], bright_corner: str
) -> None:
    path = video_files.make("a.mp4", frames=12, rotation=rotation)
    facts = inspect_video(path)
    assert (facts.width, facts.height) == size
    poster = open_jpeg(poster_jpeg(path)).convert("L")
    assert poster.size == size
    width, height = size
    corners = {
        "up left": poster.getpixel((4, 4)),
        "up right": poster.getpixel((width - 5, 4)),
        "down left": poster.getpixel((4, height - 5)),
        "down right": poster.getpixel((width - 5, height - 5)),
    }
    assert max(corners, key=lambda name: corners[name]) == bright_corner  # type: ignore[arg-type,return-value]


def test_portrait_video_from_phone_is_shown_upright(video_files: Any) -> None:
    """With a handwritten matrix, as phones write it for a clockwise rotation, so as not to rely on a library's sign."""
    path = video_files.make("a.mp4", frames=12)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, at, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    assert (inspect_video(path).width, inspect_video(path).height) == (48, 64)
    poster = open_jpeg(poster_jpeg(path)).convert("L")
    assert poster.getpixel((43, 4)) > poster.getpixel((4, 4)) + 50  # type: ignore[operator]


def test_non_square_pixels_are_corrected(video_files: Any) -> None:
    path = video_files.make("a.mp4", frames=12, pixel_shape=Fraction(3, 2))
    assert (inspect_video(path).width, inspect_video(path).height) == (96, 48)
    assert open_jpeg(poster_jpeg(path)).size == (96, 48)
