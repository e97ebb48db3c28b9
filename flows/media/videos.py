"""Checks that a file plays and is what was requested, and makes stills from it.

These functions block and are slow (a 12 s video takes a second or two), so `decode` runs them in a thread.
"""

import asyncio
import functools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

import av
from av import VideoCodecContext
from av.container import InputContainer
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from apixo import VideoRequest
from flows.media.boxes import read_boxes
from flows.media.media_errors import DamagedVideoError
from flows.media.posters import PosterChoice, display_size, jpeg, unit_seconds

P = ParamSpec("P")
T = TypeVar("T")

DURATION_TOLERANCE_SECONDS = 0.5
"""Encoders round to whole frames and pad the sound, by some 0.1 s. APIXO's lengths (4, 8, 12 s) are 4 s apart."""

MAX_FRAME_PIXELS = 7680 * 4320
"""8K, some 50 MB per frame. A header may declare far more, and a decoder would allocate it."""

MAX_FRAMES = 36_000
"""Ten minutes at 60 frames per second; a 12 s video has some 360. A few megabytes can contain days of gray frames."""

# Formats that contain the whole video in one file. Not playlists (HLS, DASH, concat), which open other files.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,gif,apng,asf,mxf,ivf,"
# Raw streams without a container. A cut one looks like a whole one, so none of them counts as complete.
_CONTAINERS += "h264,hevc,mpegvideo,m4v,obu,yuv4mpegpipe"

# By FFmpeg's name of the container. All others are MP4.
_MEDIA_TYPES = {
    "matroska,webm": "video/x-matroska",
    "avi": "video/x-msvideo",
    "mpegts": "video/mp2t",
    "mpeg": "video/mpeg",
    "ogg": "video/ogg",
    "flv": "video/x-flv",
    "gif": "image/gif",
    "apng": "image/apng",
    "asf": "video/x-ms-wmv",
    "mxf": "application/mxf",
    "ivf": "video/x-ivf",
    "h264": "video/h264",
    "hevc": "video/h265",
    "mpegvideo": "video/mpeg",
    "m4v": "video/mp4v-es",
    "obu": "video/av1",
    "yuv4mpegpipe": "video/x-yuv4mpeg",
}
_BRANDED_TYPES = {b"qt  ": "video/quicktime", b"webm": "video/webm"}

# The declared end and the last frame's end may differ by rounding and by an unset last duration, but not by more.
_CUT_TOLERANCE_SECONDS = 0.5

# The minimum ratio of frames to packets. Some packets show no frame (VP8's alternate references), but not a quarter.
_LEAST_SHOWN = 0.75

# Hosts often send a GIF instead of a video. With a single frame, it is not a video.
_PICTURES = frozenset({"gif", "apng"})

_CLOCK = re.compile(r"(\d{1,4}):(\d\d):(\d\d(?:\.\d{1,9})?)")  # hours, minutes, seconds

# The loop filter takes a fifth of the decoding time. It finds no damage, and a poster without it was measured at a PSNR
# of 44 dB or more, an invisible difference. One thread needs less processor time than two, and several videos are
# decoded on a processor each anyway.
_DECODER = {"skip_loop_filter": "all", "threads": "1"}


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """A video whose every frame decodes.

    Attributes:
        codec: The picture's codec, such as ``h264``.
        width: In pixels as displayed: pixels made square, rotation applied.
        height: As width.
        duration_seconds: From the first frame to the end of the last.
        frame_count: Decoded frames.
        has_audio: Whether there is any sound data.
        is_complete: Whether the file lists all its packets, and all are there. Others can only be assumed complete.
        media_type: Such as ``video/mp4``, detected from its bytes.
        has_c2pa: Whether it has a C2PA manifest, which says how it was made.
        doubts: What is odd but does not prove damage, as sentences.
    """

    codec: str
    width: int
    height: int
    duration_seconds: float
    frame_count: int
    has_audio: bool
    is_complete: bool = False
    media_type: str = "video/mp4"
    has_c2pa: bool = False
    doubts: tuple[str, ...] = ()


async def decode(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Runs decoding outside the event loop, in one of this process's decoding threads: one per processor."""
    call = functools.partial(work, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, call)


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Not at a lower priority: a thread that is preempted while it holds the interpreter's lock delays the event loop, on a
# busy machine by two seconds when measured.
_DECODERS = ThreadPoolExecutor(processors(), thread_name_prefix="decoding")


def inspect_video(path: Path, poster: Path | None = None) -> VideoFacts:
    """Decodes every frame of a video once, returns its properties, and saves its poster. Blocks: run it in a thread.

    Only the main picture counts, and the main sound if its packets are listed. Captions, chapters, time codes, other
    pictures, and a wrong declared length are no reason to reject a video that plays.

    Args:
        path: The file; its name does not matter.
        poster: The file for the poster, see `poster_jpeg`; None: no poster.

    Raises:
        DamagedVideoError: empty, not a video, without a picture, cut, or a frame does not decode. Not retryable if the
            video is too large or too long to be a generated one.
        FileNotFoundError: there is no such file.
    """
    size_bytes = path.stat().st_size
    if poster is not None:
        poster.unlink(missing_ok=True)  # from an earlier try
    if size_bytes == 0:
        raise _damaged(path, "is empty")
    boxes = read_boxes(path)
    is_short = boxes.least_bytes > size_bytes
    if is_short and not boxes.has_index:  # otherwise the index shows whether a packet is missing
        raise _damaged(path, f"was cut: {size_bytes:,} of at least {boxes.least_bytes:,} bytes")
    declared = f"The file declares {boxes.least_bytes:,} bytes but has {size_bytes:,}, with every piece in it."
    with _opened(path) as (container, video):
        sound = container.streams.best("audio")
        played: list[Stream] = [video] if sound is None else [video, sound]
        tally = _Tally(path, video)
        choice = _poster_choice(container, video) if poster else None
        for packet in container.demux(*played):
            tally.count(packet)
            if packet.stream.index == video.index:
                for frame in packet.decode():
                    if isinstance(frame, VideoFrame):
                        tally.add(frame)
                        if choice is not None and not choice.made:
                            choice.consider(frame)
        tally.check_pieces(played, is_listed=boxes.has_index)
        seconds = tally.seconds()
        doubt = tally.doubt(container, is_listed=boxes.has_index)
        if poster is not None and choice is not None and choice.frame is not None:
            _save_poster(poster, choice.frame, video)
        return VideoFacts(
            codec=video.codec_context.codec.canonical_name,
            width=tally.size[0],
            height=tally.size[1],
            duration_seconds=float(seconds),
            frame_count=tally.frames,
            has_audio=sound is not None and tally.packets[sound.index] > 0,
            is_complete=boxes.has_index,
            media_type=_media_type(container, boxes.brand),
            has_c2pa=boxes.has_c2pa,
            doubts=(*((doubt,) if doubt else ()), *((declared,) if is_short else ())),
        )


def _save_poster(poster: Path, frame: VideoFrame, video: VideoStream) -> None:
    """Saves the poster, if possible. A failure or a full disk is no reason to reject the video."""
    try:
        poster.write_bytes(jpeg(frame, video))
    except (av.FFmpegError, ArithmeticError, OSError, ValueError):
        poster.unlink(missing_ok=True)


def compare(facts: VideoFacts, requested: VideoRequest) -> list[str]:
    """What differs from the request, as sentences: only warnings, because the video is paid for. Pure.

    A length or shape that is not in the request is not compared: the model or the image decides it. Lengths may differ
    by DURATION_TOLERANCE_SECONDS.
    """
    warnings = []
    if requested.seconds is not None and abs(facts.duration_seconds - requested.seconds) > DURATION_TOLERANCE_SECONDS:
        warnings.append(f"The video lasts {facts.duration_seconds:.1f} s; {requested.seconds} s were requested.")
    shape = "landscape" if facts.width > facts.height else "portrait"
    if facts.width == facts.height:
        shape = "square"
    if requested.shape is not None and shape != requested.shape:
        warnings.append(f"The video is {shape} ({facts.width} x {facts.height}); {requested.shape} was requested.")
    return warnings


def poster_jpeg(path: Path) -> bytes:
    """A representative frame as a JPEG: at a third of the video, or the first later one that is not black. Blocks.

    The same video gives the same bytes. `inspect_video` saves it too; this is for videos that it rejects.

    Raises:
        DamagedVideoError: no frame decodes.
    """
    with _opened(path) as (container, video):
        choice = _poster_choice(container, video)
        for frame in container.decode(video):
            choice.consider(frame)
            if choice.made:
                break
        if choice.frame is None:
            raise _damaged(path, "has no frame that decodes")
        return jpeg(choice.frame, video)


def _poster_choice(container: InputContainer, video: VideoStream) -> PosterChoice:
    return PosterChoice(_declared_seconds(container, video)[1] / 3 / unit_seconds(video))


class _Tally:
    """Counts what was decoded of a video. Times are whole numbers, in the unit of the picture's stream."""

    def __init__(self, path: Path, video: VideoStream) -> None:
        self._path = path
        self._video = video
        self.packets: Counter[int] = Counter()
        self._hidden = 0
        """Packets that an edit list hides."""
        self.frames = 0
        self.size: tuple[int, int] = (0, 0)
        self._unit, self._index = unit_seconds(video), video.index
        self._begin: int | None = None
        self._end = self._frames_end = 0

    def count(self, packet: "av.Packet[Stream]") -> None:
        if packet.is_corrupt:
            raise _damaged(self._path, "is cut in the middle, or a piece of it is missing")
        index = packet.stream.index
        if packet.size:  # the demuxer ends each stream with an empty one
            self.packets[index] += 1
        if index != self._index:
            return
        self._hidden += packet.is_discard
        if packet.pts is not None:
            self._end = max(self._end, packet.pts + (packet.duration or 0))

    def add(self, frame: VideoFrame) -> None:
        if frame.is_corrupt:
            raise _damaged(self._path, f"has a damaged frame after {self.frames}")
        self.frames += 1
        if self.frames > MAX_FRAMES:
            what = f"has more than {MAX_FRAMES:,} frames, unlike any generated video"
            raise _damaged(self._path, what, retryable=False)
        if self.frames == 1:
            self.size = display_size(frame, self._video)
        begin = frame.pts
        if begin is not None:
            self._begin = begin if self._begin is None else min(self._begin, begin)
            self._frames_end = max(self._frames_end, begin + (frame.duration or 0))

    def check_pieces(self, played: Sequence[Stream], *, is_listed: bool) -> None:
        """Rejects a video if a packet is provably missing, or too many packets show no frame."""
        seen = self.packets[self._video.index] - self._hidden
        if self.frames == 0:
            raise _damaged(self._path, "has no frame that decodes")
        if self.frames == 1 and self._video.codec_context.name in _PICTURES:
            raise _damaged(self._path, "is a single picture")
        if self.frames < seen * _LEAST_SHOWN:
            raise _damaged(self._path, f"gives only {self.frames} frames out of {seen} pieces")
        for stream in played if is_listed else ():
            # `stream.frames` would also count those that an edit list hides.
            listed = sum(entry.size > 0 for entry in stream.index_entries)
            if self.packets[stream.index] < listed:
                raise _damaged(self._path, f"was cut: {self.packets[stream.index]} of {listed} {stream.type} pieces")

    def seconds(self) -> Fraction:
        """How long the picture lasts."""
        seconds = (self._frames_end - (self._begin or 0)) * self._unit
        if seconds <= 0 and self._video.average_rate:
            seconds = self.frames / self._video.average_rate
        if seconds <= 0:
            raise _damaged(self._path, "has no duration")
        return seconds

    def doubt(self, container: InputContainer, *, is_listed: bool) -> str | None:
        """A sentence if the declared picture is longer than the real one. Rejects the video if that proves a cut."""
        begin = min(Fraction(container.start_time or 0, av.time_base), Fraction(0))
        got = max(self._end, self._frames_end) * self._unit - begin
        own, declared = _declared_seconds(container, self._video)
        if declared - got <= _CUT_TOLERANCE_SECONDS:
            return None
        if own and not is_listed:
            raise _damaged(self._path, f"was cut: {float(got):.2f} s of {float(declared):.2f} s")
        if own or not is_listed:
            return f"The file declares {float(declared):.1f} s; its picture lasts {float(got):.1f} s."
        return None  # another track is longer


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The video and its picture, safely: one file, no network, whatever the file asks for."""
    options = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS, "max_pixels": str(MAX_FRAME_PIXELS)}
    try:
        # "file:" keeps FFmpeg from interpreting a part of the name as a protocol.
        with av.open(f"file:{path.absolute()}", options=options) as container:
            still = Disposition.attached_pic | Disposition.timed_thumbnails  # a sound file's cover is not a video
            pictures = [
                # A single frame next to a video is its cover, whatever its size; players show the default track.
                (stream.frames != 1, Disposition.default in stream.disposition, context.width * context.height, stream)
                for stream in container.streams.video
                # If FFmpeg does not know the codec, there is no context, whatever PyAV's types say.
                if (context := cast("VideoCodecContext | None", stream.codec_context))
                and not stream.disposition & still
            ]
            if not pictures:
                raise _damaged(path, "has no picture that can be decoded")
            *_, pixels, video = max(pictures, key=lambda picture: picture[:3])
            if pixels > MAX_FRAME_PIXELS:
                raise _damaged(path, f"has frames of {pixels:,} pixels, unlike any generated video", retryable=False)
            video.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS), **_DECODER}
            yield container, video
    except (av.FFmpegError, ArithmeticError, ValueError) as error:
        raise _damaged(path, f"is not a video that plays ({error})") from error


def _damaged(path: Path, what: str, *, retryable: bool = True) -> DamagedVideoError:
    return DamagedVideoError(f"{path.name} {what}: fetch it again, or look at the file", retryable=retryable)


def _declared_seconds(container: InputContainer, video: VideoStream) -> tuple[bool, Fraction]:
    """Whether the declared length is that of the picture itself (else of all tracks together), and the length."""
    if video.duration and video.time_base:
        return True, video.duration * video.time_base
    tag = _CLOCK.fullmatch(video.metadata.get("DURATION", ""))  # Matroska
    if tag is not None:
        return True, int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3])
    alone = all(stream.type in ("video", "audio") for stream in container.streams)
    return alone, Fraction(container.duration or 0, av.time_base)


def _media_type(container: InputContainer, brand: bytes) -> str:
    return _BRANDED_TYPES.get(brand) or _MEDIA_TYPES.get(container.format.name, "video/mp4")
