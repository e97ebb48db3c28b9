"""The inspection of videos that are made by PyAV, then truncated, renamed, rotated, or replaced by something else."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from apixo import VideoRequest
from flows.media import posters, videos
from flows.media.media_errors import DamagedVideoError
from flows.media.videos import VideoFacts, compare, inspect_video, poster_jpeg


def open_jpeg(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg), formats=["JPEG"])


def brightness(image: Image.Image) -> float:
    """Of the lower half, which shows the number of the frame."""
    pixels = np.asarray(image.convert("L"), dtype=float)
    return float(pixels[pixels.shape[0] // 2 + 4 :].mean())


def poster_is_frame(path: Path, number: int) -> bool:
    """Whether the poster of this video is its frame with this number, as decoded, so encoding losses do not matter."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"skip_loop_filter": "all"}  # as for posters
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = [brightness(Image.fromarray(frame)) for frame in pixels]
    poster = brightness(open_jpeg(poster_jpeg(path)))
    return min(range(len(frames)), key=lambda index: abs(frames[index] - poster)) == number


def test_inspection_returns_facts_about_video(video_files: Any) -> None:
    path = video_files.make("a.mp4", frames=96, width=64, height=48, audio=True)
    facts = inspect_video(path)
    assert facts == VideoFacts(
        codec="h264",
        width=64,
        height=48,
        duration_seconds=4.0,
        frame_count=96,
        has_audio=True,
        is_complete=True,
        media_type="video/mp4",
        has_c2pa=False,
        doubts=(),
    )


@pytest.mark.parametrize(
    ("name", "container", "options", "media_type"),
    [
        ("front.mp4", "mp4", {"movflags": "faststart"}, "video/mp4"),
        ("fragments.mp4", "mp4", {"movflags": "frag_keyframe+empty_moov"}, "video/mp4"),
        ("really-an-mkv.mp4", "matroska", {}, "video/x-matroska"),  # it plays, and was paid for
        ("really-a-ts.mp4", "mpegts", {}, "video/mp2t"),
        ("video.mov", "mov", {}, "video/quicktime"),
        ("no ending: 100%.ü", "mp4", {}, "video/mp4"),
    ],
)
def test_any_playable_video_is_accepted(
    video_files: Any, name: str, container: str, options: dict[str, str], media_type: str
) -> None:
    path = video_files.make(name, container=container, **options)
    facts = inspect_video(path)
    assert facts.media_type == media_type
    assert facts.is_complete == (media_type in ("video/mp4", "video/quicktime") and name != "fragments.mp4")
    assert facts.frame_count == 48
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)
    assert not facts.has_audio
    assert open_jpeg(poster_jpeg(path)).size == (64, 48)


def test_single_frame_in_mp4_is_a_video(video_files: Any) -> None:
    path = video_files.make("a.mp4", frames=1)
    assert inspect_video(path).frame_count == 1
    assert inspect_video(path).duration_seconds == pytest.approx(1 / 24)
    assert poster_jpeg(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!doctype html><title>Sign in</title>" * 100,
        b'{"code": 404}',
        b"\0" * 100_000,
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"ffconcat version 1.0\nfile 'good.mp4'\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\ngood.ts\n#EXT-X-ENDLIST\n",
        b"GIF89a" + bytes(1000),
        b"RIFF\x24\0\0\0WAVEfmt ",
    ],
)
def test_file_that_is_not_a_video_is_damaged(video_files: Any, content: bytes) -> None:
    video_files.make("good.mp4")
    video_files.make("good.ts", container="mpegts")
    path = video_files.folder / "x.mp4"
    path.write_bytes(content)
    for check in (inspect_video, poster_jpeg):
        with pytest.raises(DamagedVideoError, match=r"x\.mp4") as caught:
            check(path)
        assert caught.value.retryable


def test_playlist_does_not_open_other_files(video_files: Any) -> None:
    """The same playlist plays without the guard that limits FFmpeg to one file, so it is the guard that rejects it."""
    video_files.make("good.mp4")
    path = video_files.folder / "x.mp4"
    path.write_text("ffconcat version 1.0\nfile 'good.mp4'\n")
    with av.open(str(path), format="concat") as unguarded:
        assert next(unguarded.decode(video=0)).width == 64
    with pytest.raises(DamagedVideoError):
        inspect_video(path)


def test_missing_file_raises_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_video(tmp_path / "x.mp4")


def test_audio_without_picture_is_damaged(video_files: Any) -> None:
    with pytest.raises(DamagedVideoError, match="no picture"):
        inspect_video(video_files.make("x.mp4", picture=False, audio=True))


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov", ""])
@pytest.mark.parametrize("audio", [True, False])
def test_video_truncated_anywhere_is_damaged(video_files: Any, movflags: str, audio: bool) -> None:
    whole = video_files.make("a.mp4", audio=audio, **({"movflags": movflags} if movflags else {})).read_bytes()
    path = video_files.folder / "cut.mp4"
    last = max(whole.rfind(b"mdat"), whole.rfind(b"moov")) - 4
    last += int.from_bytes(whole[last : last + 4], "big")  # at most, an index that is not needed follows
    for length in {last - 1, last - 2, last - 100, *range(1, last, max(1, last // 40))}:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedVideoError):
            inspect_video(path)


def test_video_truncated_between_two_frames_is_damaged(video_files: Any) -> None:
    """With the index in front and the cut exactly at the end of a frame, only the frame count shows it."""
    whole = video_files.make("a.mp4", movflags="faststart")
    content = bytearray(whole.read_bytes())
    at = content.index(b"mdat")
    content[at - 4 : at] = bytes(4)  # size 0: up to the end of the file, wherever that is
    whole.write_bytes(content)
    assert inspect_video(whole).frame_count == 48
    with av.open(str(whole)) as container:
        ends = sorted({(packet.pos or 0) + packet.size for packet in container.demux(video=0) if packet.size})
    for end in ends[5:-1:10] + ends[-2:-1]:
        cut = video_files.folder / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[:end])
        with pytest.raises(DamagedVideoError, match="cut"):
            inspect_video(cut)


def test_transport_stream_with_gap_is_damaged(video_files: Any) -> None:
    whole = video_files.make("a.ts", container="mpegts", frames=240, width=320, height=180).read_bytes()
    path = video_files.folder / "hole.ts"
    path.write_bytes(whole[: 188 * 400] + whole[188 * 403 :])
    with pytest.raises(DamagedVideoError, match="a piece of it is missing"):
        inspect_video(path)


def test_truncated_matroska_is_damaged(video_files: Any) -> None:
    whole = video_files.make("a.mkv").read_bytes()
    path = video_files.folder / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedVideoError, match="was cut"):
        inspect_video(path)


def test_video_with_junk_frames_is_damaged(video_files: Any) -> None:
    whole = video_files.make("a.mp4", movflags="faststart").read_bytes()
    start = whole.index(b"mdat") + 4
    path = video_files.folder / "junk.mp4"
    path.write_bytes(whole[:start] + b"\xff" * (len(whole) - start))
    with pytest.raises(DamagedVideoError):
        inspect_video(path)


@pytest.mark.parametrize(("limit", "maximum"), [("MAX_FRAME_PIXELS", 64 * 48), ("MAX_FRAMES", 24)])
def test_video_beyond_limits_is_rejected_and_not_retryable(
    video_files: Any, monkeypatch: pytest.MonkeyPatch, limit: str, maximum: int
) -> None:
    path = video_files.make("a.mp4", width=64, height=48, frames=24)
    monkeypatch.setattr(videos, limit, maximum)
    assert inspect_video(path).frame_count == 24
    monkeypatch.setattr(videos, limit, maximum - 1)
    with pytest.raises(DamagedVideoError, match="unlike any generated video") as caught:
        inspect_video(path)
    assert not caught.value.retryable


def test_video_with_unknown_codec_is_damaged(video_files: Any) -> None:
    path = video_files.make("a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(DamagedVideoError, match="no picture"):
        inspect_video(path)


# Posters


def test_poster_is_frame_at_one_third_of_video(video_files: Any) -> None:
    path = video_files.make("a.mp4", frames=48)
    assert poster_is_frame(path, 16)
    assert poster_jpeg(path) == poster_jpeg(path)


def test_black_frame_is_skipped_for_poster(video_files: Any) -> None:
    assert poster_is_frame(video_files.make("a.mp4", frames=48, black=range(30)), 30)


def test_a_black_video_has_a_black_poster(video_files: Any) -> None:
    assert brightness(open_jpeg(poster_jpeg(video_files.make("a.mp4", black=range(48))))) < 20


def test_poster_is_shrunk_but_never_enlarged(video_files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video_files.make("a.mp4", width=320, height=180)
    assert open_jpeg(poster_jpeg(path)).size == (320, 180)
    monkeypatch.setattr(posters, "MAX_POSTER_SIDE", 160)
    assert open_jpeg(poster_jpeg(path)).size == (160, 90)


@pytest.mark.parametrize("options", [{}, {"black": range(30)}, {"rotation": 90}, {"frames": 1}])
def test_inspection_writes_same_poster(video_files: Any, options: dict[str, Any]) -> None:
    path, poster = video_files.make("a.mp4", **options), video_files.folder / "poster.jpg"
    inspect_video(path, poster)
    assert poster.read_bytes() == poster_jpeg(path)


def test_inspection_of_damaged_video_removes_earlier_poster(video_files: Any) -> None:
    path, poster = video_files.make("a.mp4"), video_files.folder / "poster.jpg"
    inspect_video(path, poster)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedVideoError):
        inspect_video(path, poster)
    assert not poster.exists()


def test_unwritable_poster_does_not_fail_inspection(video_files: Any) -> None:
    assert (
        inspect_video(video_files.make("a.mp4"), video_files.folder / "no such folder" / "poster.jpg").frame_count == 48
    )


# Comparison with the request

FACTS = VideoFacts("h264", 1280, 720, 4.0, 96, has_audio=True)


@pytest.mark.parametrize(
    ("changes", "requested", "warnings"),
    [
        ({}, (4, "landscape"), []),
        ({"duration_seconds": 4.5}, (4, "landscape"), []),
        ({"duration_seconds": 3.5}, (4, "landscape"), []),
        ({"width": 720, "height": 1280}, (4, "portrait"), []),
        ({"duration_seconds": 4.51}, (4, "landscape"), ["The video lasts 4.5 s; 4 s were requested."]),
        ({}, (8, "landscape"), ["The video lasts 4.0 s; 8 s were requested."]),
        ({}, (4, "portrait"), ["The video is landscape (1280 x 720); portrait was requested."]),
        ({"width": 720}, (4, "portrait"), ["The video is square (720 x 720); portrait was requested."]),
        ({"width": 720}, (4, "landscape"), ["The video is square (720 x 720); landscape was requested."]),
        (
            {"width": 720, "height": 1280, "duration_seconds": 12.0},
            (4, "landscape"),
            [
                "The video lasts 12.0 s; 4 s were requested.",
                "The video is portrait (720 x 1280); landscape was requested.",
            ],
        ),
    ],
)
def test_video_that_differs_from_request_gives_warnings(
    changes: dict[str, Any], requested: Any, warnings: list[str]
) -> None:
    duration, shape = requested
    request = VideoRequest(prompt="Dunes", duration=duration, aspect_ratio=shape)
    assert compare(replace(FACTS, **changes), request) == warnings
