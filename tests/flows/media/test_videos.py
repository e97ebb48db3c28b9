"""The inspection of films: made here by PyAV, then cut, renamed, turned and replaced by something else."""

import io
import math
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from av.subtitles.codeccontext import SubtitleCodecContext
from PIL import Image

from flows.media.boxes import C2PA_UUID, read_boxes
from flows.media.errors import DamagedVideoError
from flows.media.videos import VideoFacts, compare, inspect_video, poster_jpeg


def picture(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg), formats=["JPEG"])


def brightness(jpeg: bytes, *, of: str = "dark half") -> float:
    """Of the lower half, which tells the number of the frame."""
    pixels = np.asarray(picture(jpeg).convert("L"), dtype=float)
    return float(pixels[pixels.shape[0] // 2 + 4 :].mean())


def test_a_film_is_described(films: Any) -> None:
    path = films.make("a.mp4", frames=96, width=64, height=48, audio=True)
    facts = inspect_video(path)
    assert replace(facts, size_bytes=0) == VideoFacts(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        codec="h264",
        width=64,
        height=48,
        duration_seconds=4.0,
        frame_count=96,
        frames_per_second=24.0,
        has_audio=True,
        size_bytes=0,
        is_complete=True,
        media_type="video/mp4",
        has_c2pa=False,
        doubts=(),
    )
    assert facts.size_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("name", "container", "options", "media_type"),
    [
        ("front.mp4", "mp4", {"movflags": "faststart"}, "video/mp4"),
        ("fragments.mp4", "mp4", {"movflags": "frag_keyframe+empty_moov"}, "video/mp4"),
        ("really-an-mkv.mp4", "matroska", {}, "video/x-matroska"),  # it plays, and it is paid for
        ("really-a-ts.mp4", "mpegts", {}, "video/mp2t"),
        ("film.mov", "mov", {}, "video/quicktime"),
        ("no ending: 100%.ü", "mp4", {}, "video/mp4"),
    ],
)
def test_any_video_that_plays_is_let_through(
    films: Any, name: str, container: str, options: dict[str, str], media_type: str
) -> None:
    path = films.make(name, container=container, **options)
    facts = inspect_video(path)
    assert facts.media_type == media_type
    assert facts.is_complete == (media_type in ("video/mp4", "video/quicktime") and name != "fragments.mp4")
    assert container[:2] in facts.container
    assert facts.frame_count == 48
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)
    assert not facts.has_audio
    assert math.isfinite(facts.frames_per_second)
    assert picture(poster_jpeg(path)).size == (64, 48)


def test_one_frame_is_a_video(films: Any) -> None:
    path = films.make("a.mp4", frames=1)
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
def test_what_is_no_video_is_damaged(films: Any, content: bytes) -> None:
    films.make("good.mp4")
    films.make("good.ts", container="mpegts")
    path = films.folder / "x.mp4"
    path.write_bytes(content)
    for look in (inspect_video, poster_jpeg):
        with pytest.raises(DamagedVideoError, match=r"x\.mp4") as caught:
            look(path)
        assert caught.value.retryable


def test_a_playlist_that_names_a_film_opens_nothing(films: Any) -> None:
    """The same playlist plays when FFmpeg is not told to stay in one file: so it is the guard that refuses it."""
    films.make("good.mp4")
    path = films.folder / "x.mp4"
    path.write_text("ffconcat version 1.0\nfile 'good.mp4'\n")
    with av.open(str(path), format="concat") as unguarded:
        assert next(unguarded.decode(video=0)).width == 64
    with pytest.raises(DamagedVideoError):
        inspect_video(path)


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect_video(tmp_path / "x.mp4")


def test_sound_without_a_picture_is_damaged(films: Any) -> None:
    with pytest.raises(DamagedVideoError, match="no picture"):
        inspect_video(films.make("x.mp4", picture=False, audio=True))


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov", ""])
@pytest.mark.parametrize("audio", [True, False])
def test_a_film_cut_anywhere_is_damaged(films: Any, movflags: str, audio: bool) -> None:
    whole = films.make("a.mp4", audio=audio, **({"movflags": movflags} if movflags else {})).read_bytes()
    path = films.folder / "cut.mp4"
    last = max(whole.rfind(b"mdat"), whole.rfind(b"moov")) - 4
    last += int.from_bytes(whole[last : last + 4], "big")  # behind it comes, at most, an index that nobody needs
    for length in {last - 1, last - 2, last - 100, *range(1, last, max(1, last // 40))}:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedVideoError):
            inspect_video(path)


def test_a_film_cut_between_two_frames_is_damaged(films: Any) -> None:
    """With the index in front and the cut at the very end of a frame, nothing but the count tells."""
    whole = films.make("a.mp4", movflags="faststart")
    content = bytearray(whole.read_bytes())
    at = content.index(b"mdat")
    content[at - 4 : at] = bytes(4)  # "up to the end of the file", wherever that is
    whole.write_bytes(content)
    assert inspect_video(whole).frame_count == 48
    with av.open(str(whole)) as container:
        ends = sorted({(packet.pos or 0) + packet.size for packet in container.demux(video=0) if packet.size})
    for end in ends[5:-1:10] + ends[-2:-1]:
        cut = films.folder / "cut.mp4"
        cut.write_bytes(whole.read_bytes()[:end])
        with pytest.raises(DamagedVideoError, match="cut"):
            inspect_video(cut)


def test_a_transport_stream_with_a_hole_is_damaged(films: Any) -> None:
    whole = films.make("a.ts", container="mpegts", frames=240, width=320, height=180).read_bytes()
    path = films.folder / "hole.ts"
    path.write_bytes(whole[: 188 * 400] + whole[188 * 403 :])
    with pytest.raises(DamagedVideoError, match="a piece of it is missing"):
        inspect_video(path)


def test_a_cut_matroska_is_damaged(films: Any) -> None:
    whole = films.make("a.mkv").read_bytes()
    path = films.folder / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedVideoError, match="was cut"):
        inspect_video(path)


def test_frames_that_are_junk_are_damaged(films: Any) -> None:
    whole = films.make("a.mp4", movflags="faststart").read_bytes()
    start = whole.index(b"mdat") + 4
    path = films.folder / "junk.mp4"
    path.write_bytes(whole[:start] + b"\xff" * (len(whole) - start))
    with pytest.raises(DamagedVideoError):
        inspect_video(path)


def test_a_film_beyond_the_limits_is_refused_for_good(films: Any) -> None:
    path = films.make("a.mp4", width=64, height=48, frames=24)
    assert inspect_video(path, max_pixels=64 * 48, max_frames=24).frame_count == 24
    for limits in ({"max_pixels": 64 * 48 - 1}, {"max_frames": 23}):
        with pytest.raises(DamagedVideoError, match="no generated video") as caught:
            inspect_video(path, None, **limits)
        assert not caught.value.retryable


def test_a_codec_nobody_knows_is_damaged(films: Any) -> None:
    path = films.make("a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    with pytest.raises(DamagedVideoError, match="no picture"):
        inspect_video(path)


# What stands beside the picture


ASS = b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\nFormat: Name\nStyle: Default\n[Events]\nFormat: Text\n"
"""What FFmpeg's encoders of captions want to know before they begin."""


def with_caption(path: Path, *, until_seconds: float, codec: str, container: str) -> Path:
    """The same video with one caption that lasts until then."""
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
def test_a_caption_that_lasts_longer_than_the_picture_does_not_matter(
    films: Any, until_seconds: float, codec: str, container: str, audio: bool
) -> None:
    whole = films.make("a.mp4", audio=audio)
    path = with_caption(whole, until_seconds=until_seconds, codec=codec, container=container)
    facts = inspect_video(path)
    assert (facts.frame_count, facts.has_audio, facts.doubts) == (48, audio, ())
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)


def test_a_length_that_may_be_that_of_a_caption_is_a_doubt(films: Any) -> None:
    path = with_caption(films.make("a.mp4"), until_seconds=60, codec="subrip", container="matroska")
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"XURATION"))  # of each track; that of the file stays
    assert inspect_video(path).doubts == ("The file declares 60.0 s, its picture lasts 2.0 s.",)


def test_a_cut_matroska_with_a_short_caption_is_damaged(films: Any) -> None:
    path = with_caption(films.make("a.mp4"), until_seconds=1, codec="subrip", container="matroska")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"Hello") + (len(content) - content.index(b"Hello")) // 2])
    with pytest.raises(DamagedVideoError, match="was cut"):
        inspect_video(path)


@pytest.mark.parametrize("first", ["main", "beside"])
def test_a_second_picture_track_does_not_matter(films: Any, first: str) -> None:
    """A longer one, larger than the one that players show; and a cover of one frame, larger still."""
    path = films.folder / "two.mp4"
    sizes = {"main": (64, 48, 48), "beside": (128, 96, 144), "cover": (640, 480, 1)}
    with av.open(str(path), "w") as out:
        streams = {}
        for name in sorted(sizes, key=lambda name: name != first):
            streams[name] = out.add_stream("libx264", rate=24)
            streams[name].width, streams[name].height, streams[name].pix_fmt = *sizes[name][:2], "yuv420p"
            streams[name].disposition = av.stream.Disposition.default if name != "beside" else av.stream.Disposition(0)
        for name, (width, height, frames) in sizes.items():
            for number in range(frames):
                pixels = np.full((height, width, 3), number, np.uint8)
                out.mux(streams[name].encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            out.mux(streams[name].encode(None))
    facts = inspect_video(path)
    assert (facts.width, facts.height, facts.frame_count, facts.doubts) == (64, 48, 48, ())
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)


def test_what_an_edit_list_leaves_out_is_not_missing(films: Any) -> None:
    """As cameras and `ffmpeg -ss … -c copy` write it: the pieces before the beginning are there, and not shown."""
    path = films.make("a.mp4")
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 4
    version_and_count, seconds, start = struct.unpack_from(">QIi", content, at)
    assert (version_and_count, seconds) == (1, 2000)
    rate = 12_288  # ticks a second
    struct.pack_into(">Ii", content, at + 8, 500, start + rate * 3 // 2)
    path.write_bytes(content)
    facts = inspect_video(path)
    assert facts.duration_seconds == pytest.approx(0.5, abs=0.1)
    assert facts.frame_count == pytest.approx(12, abs=2)


@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("kind", [b"uuid" + C2PA_UUID, b"jumb"])
def test_a_provenance_manifest_is_seen(films: Any, kind: bytes, large: bool) -> None:
    path = films.make("a.mp4", movflags="faststart")
    content = path.read_bytes()
    after_ftyp = int.from_bytes(content[:4], "big")
    name, rest = kind[:4], kind[4:] + bytes(1000)
    size = 8 + len(rest)
    box = struct.pack(">I4sQ", 1, name, size + 8) + rest if large else struct.pack(">I4s", size, name) + rest
    # Behind everything, where it moves no offset; and in front, as the standard has it.
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
def test_a_turned_video_is_upright(films: Any, rotation: int, size: tuple[int, int], bright_corner: str) -> None:
    path = films.make("a.mp4", frames=12, rotation=rotation)
    facts = inspect_video(path)
    assert (facts.width, facts.height) == size
    poster = picture(poster_jpeg(path)).convert("L")
    assert poster.size == size
    width, height = size
    corners = {
        "up left": poster.getpixel((4, 4)),
        "up right": poster.getpixel((width - 5, 4)),
        "down left": poster.getpixel((4, height - 5)),
        "down right": poster.getpixel((width - 5, height - 5)),
    }
    assert max(corners, key=lambda name: corners[name]) == bright_corner  # type: ignore[arg-type,return-value]


def test_a_phones_portrait_is_upright(films: Any) -> None:
    """The matrix written by hand, as phones do for a film to be turned clockwise, to rely on no library's sign."""
    path = films.make("a.mp4", frames=12)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    assert struct.unpack_from(">9i", content, at) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", content, at, 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    assert (inspect_video(path).width, inspect_video(path).height) == (48, 64)
    poster = picture(poster_jpeg(path)).convert("L")
    assert poster.getpixel((43, 4)) > poster.getpixel((4, 4)) + 50  # type: ignore[operator]


def test_pixels_that_are_not_square_are_made_so(films: Any) -> None:
    path = films.make("a.mp4", frames=12, pixel_shape=Fraction(3, 2))
    assert (inspect_video(path).width, inspect_video(path).height) == (96, 48)
    assert picture(poster_jpeg(path)).size == (96, 48)


# Pictures


def test_the_poster_is_from_a_third_of_the_video(films: Any) -> None:
    path = films.make("a.mp4", frames=48)
    assert brightness(poster_jpeg(path)) == pytest.approx(60 + 3 * 16 + 10, abs=4)
    assert poster_jpeg(path) == poster_jpeg(path)


def test_a_black_frame_is_passed_over(films: Any) -> None:
    assert brightness(poster_jpeg(films.make("a.mp4", frames=48, black=range(30)))) == pytest.approx(160, abs=4)


def test_a_black_film_has_a_black_poster(films: Any) -> None:
    assert brightness(poster_jpeg(films.make("a.mp4", black=range(48)))) < 20


def test_pictures_are_made_smaller_and_never_larger(films: Any) -> None:
    poster = poster_jpeg(films.make("a.mp4", width=320, height=180), max_side=160)
    assert picture(poster).size == (160, 90)
    larger = poster_jpeg(films.make("b.mp4", width=320, height=180), max_side=640)
    assert picture(larger).size == (320, 180)


@pytest.mark.parametrize("options", [{}, {"black": range(30)}, {"rotation": 90}, {"frames": 1}])
def test_the_check_takes_the_same_poster_on_its_way(films: Any, options: dict[str, Any]) -> None:
    path, poster = films.make("a.mp4", **options), films.folder / "poster.jpg"
    inspect_video(path, poster)
    assert poster.read_bytes() == poster_jpeg(path)


def test_no_poster_of_an_earlier_try_stays_beside_a_damaged_video(films: Any) -> None:
    path, poster = films.make("a.mp4"), films.folder / "poster.jpg"
    inspect_video(path, poster)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedVideoError):
        inspect_video(path, poster)
    assert not poster.exists()


def test_a_poster_that_cannot_be_kept_refuses_no_film(films: Any) -> None:
    assert inspect_video(films.make("a.mp4"), films.folder / "no such folder" / "poster.jpg").frame_count == 48


# What was asked for

FACTS = VideoFacts("mp4", "h264", 1280, 720, 4.0, 96, 24.0, True, 1000)


@pytest.mark.parametrize(
    ("changes", "asked", "warnings"),
    [
        ({}, (4, "landscape"), []),
        ({"duration_seconds": 4.5}, (4, "landscape"), []),
        ({"duration_seconds": 3.5}, (4, "landscape"), []),
        ({"width": 720, "height": 1280}, (4, "portrait"), []),
        ({"duration_seconds": 4.51}, (4, "landscape"), ["The video lasts 4.5 s, 4 s were asked for."]),
        ({}, (8, "landscape"), ["The video lasts 4.0 s, 8 s were asked for."]),
        ({}, (4, "portrait"), ["The video is landscape (1280 x 720), portrait was asked for."]),
        ({"width": 720}, (4, "portrait"), ["The video is square (720 x 720), portrait was asked for."]),
        ({"width": 720}, (4, "landscape"), ["The video is square (720 x 720), landscape was asked for."]),
        (
            {"width": 720, "height": 1280, "duration_seconds": 12.0},
            (4, "landscape"),
            [
                "The video lasts 12.0 s, 4 s were asked for.",
                "The video is portrait (720 x 1280), landscape was asked for.",
            ],
        ),
    ],
)
def test_another_video_than_asked_is_a_warning(changes: dict[str, Any], asked: Any, warnings: list[str]) -> None:
    duration, shape = asked
    assert compare(replace(FACTS, **changes), duration_seconds=duration, aspect_ratio=shape) == warnings
