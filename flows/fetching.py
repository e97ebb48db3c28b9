"""Downloads the results of a finished task to the local disk, and makes sure that they play."""

import asyncio
import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import httpx

from apixo import StatusClient, Succeeded, UnexpectedReplyError, VideoRequest
from flows.media.downloads import download, part_of
from flows.media.media_errors import CutDownloadError, DamagedVideoError, MediaError, ResultExpiredError, display_url
from flows.media.videos import VideoFacts, compare, decode, inspect_video
from flows.media.wrappings import is_error_page, unwrap
from flows.record.generation import Generation
from flows.record.object_names import video_name
from flows.signals.progress import report_progress

MAX_VIDEO_BYTES: Final = 2 * 1024**3
"""No limit is documented. 2 GiB is far above any 12 s video, and keeps a hostile host from filling the disk."""

KEEP_DAMAGED_AFTER: Final = timedelta(days=1)
"""How long after the provider's success a damaged result is fetched again. An older APIXO page says that results are
deleted after 24 hours, so nothing better can be expected later."""


@dataclass(frozen=True, slots=True)
class FetchedVideo:
    """A result on the local disk.

    Attributes:
        path, sha256, size_bytes: The file.
        facts: Its properties, if every frame decodes; None: it is damaged, and kept as it came.
        poster: Its poster, a JPEG made while it was decoded. A damaged video has none.
        warnings: What the user should know about it.
    """

    path: Path
    sha256: str
    size_bytes: int
    facts: VideoFacts | None
    poster: Path
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        facts = self.facts
        what = f"{facts.codec}, {facts.width} x {facts.height}, {facts.duration_seconds:.2f} s" if facts else "damaged"
        return f"{self.path.name}: {self.size_bytes} bytes, {what}, sha256 {self.sha256}"


async def poll_result(task_id: str, client: StatusClient, *, model: str) -> Succeeded:
    """Polls a task that has succeeded, for its current result.

    Raises:
        UnexpectedReplyError: the provider no longer reports a success.
        ApixoError: no usable answer.
    """
    status = await client.status(task_id, model=model)
    if isinstance(status, Succeeded):
        return status
    raise UnexpectedReplyError(
        f"APIXO reported task {task_id} as success before, and now says {status.state!r}.", task_id=task_id
    )


async def fetch_videos(
    found: Generation,
    urls: tuple[str, ...],
    folder: Path,
    web: httpx.AsyncClient,
    *,
    requested: VideoRequest,
    fresh: bool,
    last_try: bool,
    now: datetime,
) -> list[FetchedVideo]:
    """Fetches every result that is a video. If some are unavailable in the end, the others get a warning about them.

    Args:
        requested: the request of this task, which need not be the task that counts now.
        fresh: whether these URLs were just polled.
        last_try: whether no automatic retry follows.
        now: the time. A day after the provider's success, the last try keeps what it gets, even if it is damaged.

    Raises:
        MediaError: no result is available, or the next try may get a missing one.
    """
    since = found.succeeded_at or found.attempt.since
    keeps_damaged = last_try and now - since >= KEEP_DAMAGED_AFTER
    videos: list[FetchedVideo] = []
    errors: list[MediaError] = []
    for number, url in enumerate(urls, start=1):
        try:
            path = folder / video_name(number)
            video = await _fetch_one(
                found.key, requested, url, path, web, last_try=last_try, keeps_damaged=keeps_damaged
            )
        except MediaError as error:
            errors.append(error)
        else:
            videos.append(video)
    if not videos:
        raise max(errors, key=lambda error: error.retryable)  # the first retryable one, if any
    for problem in errors:
        expired = isinstance(problem, ResultExpiredError) and not fresh
        later = problem.retryable and not last_try and not isinstance(problem, DamagedVideoError)
        if expired or later:
            raise problem
    left_out = tuple(f"another result was left out: {error}" for error in errors)
    return [replace(videos[0], warnings=videos[0].warnings + left_out), *videos[1:]]


async def _fetch_one(
    key: str,
    requested: VideoRequest,
    url: str,
    path: Path,
    web: httpx.AsyncClient,
    *,
    last_try: bool,
    keeps_damaged: bool,
) -> FetchedVideo:
    def report(received_bytes: int) -> None:
        report_progress(key, "fetch", f"{received_bytes:,} bytes")

    warnings: list[str] = []
    cut: CutDownloadError | None = None
    facts: VideoFacts | None = None
    arrived = path
    try:
        await download(web, url, path, max_bytes=MAX_VIDEO_BYTES, report=report)
    except DamagedVideoError as error:  # empty
        raise _damaged_error(key, url, error) from error
    except CutDownloadError as error:
        if not last_try:
            raise
        cut, arrived = error, part_of(path)  # the host may announce a wrong length every time
    inner = await asyncio.to_thread(unwrap, arrived, max_bytes=MAX_VIDEO_BYTES)
    poster = poster_of(path)
    try:
        facts = await decode(inspect_video, inner.path, poster)
    except DamagedVideoError as error:
        is_kept = keeps_damaged and not await asyncio.to_thread(is_error_page, inner.path)
        await asyncio.to_thread(inner.discard)
        if not is_kept:
            if cut is not None:
                raise cut from error
            await asyncio.to_thread(path.unlink, missing_ok=True)  # the next try starts from nothing
            raise _damaged_error(key, url, error) from error
        warnings.append(f"the video is damaged; after a day of retries it is archived as it came: {error}")
    if cut is not None:
        if facts is not None and not facts.is_complete and not keeps_damaged:
            await asyncio.to_thread(inner.discard)
            raise cut  # it plays, but an unknown part of it is missing
        await asyncio.to_thread(arrived.replace, path)
        warnings.append(f"everything that the host sends is archived: {cut}")
    if facts is not None:
        await asyncio.to_thread(inner.replace, path)
        warnings += [f"the video came wrapped in {name}, and is archived unwrapped" for name in inner.removed]
        warnings += facts.doubts
        warnings += compare(facts, requested)
    sha256, size_bytes = await asyncio.to_thread(_digest, path)
    return FetchedVideo(path, sha256, size_bytes, facts, poster, tuple(warnings))


def poster_of(video: Path) -> Path:
    """The path of a video's poster, next to the video."""
    return video.with_name(f"{video.name}.poster.jpg")


def _damaged_error(key: str, url: str, error: DamagedVideoError) -> DamagedVideoError:
    return DamagedVideoError(
        f"The result of {key} at {display_url(url)} is not a whole video: {str(error).rstrip('.')}. It is not "
        "archived; the generation stays open, so a rerun can fetch it again.",
        retryable=error.retryable,
    )


def _digest(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size
