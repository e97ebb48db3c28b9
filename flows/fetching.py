"""Brings the results of a finished task onto the local disk, and makes sure that they play."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx

from apixo import StatusClient, Succeeded, UnexpectedReplyError
from flows.media.downloads import download
from flows.media.errors import DamagedVideoError, MediaError, ResultExpiredError, display_url
from flows.media.videos import VideoFacts, compare, inspect_video
from flows.record.generation import Generation
from flows.record.object_names import video_name
from flows.signals.progress import report_progress

MAX_VIDEO_BYTES: Final = 2 * 1024**3
"""No documented limit exists. 2 GiB is far above any 12 s video and keeps a hostile host from filling the disk."""


@dataclass(frozen=True, slots=True)
class FetchedVideo:
    """A whole video on the local disk that decodes from its first frame to its last."""

    path: Path
    sha256: str
    facts: VideoFacts
    warnings: tuple[str, ...]


async def ask_for_addresses(task_id: str, client: StatusClient, *, model: str) -> Succeeded:
    """What the provider says now of a task that has ended well.

    Raises:
        UnexpectedReplyError: it says something else than before.
        ApixoError: it did not say.
    """
    status = await client.status(task_id, model=model)
    if isinstance(status, Succeeded):
        return status
    raise UnexpectedReplyError(
        f"APIXO reported task {task_id} as success before, and now says {status.state!r}.", task_id=task_id
    )


async def fetch_videos(
    found: Generation, urls: tuple[str, ...], folder: Path, web: httpx.AsyncClient, *, fresh: bool, last_try: bool
) -> list[FetchedVideo]:
    """Every result that is a video. One that cannot be had, beside one that can, is a warning in the end.

    Args:
        found: the record of the generation.
        urls, folder: what to fetch, and where to.
        web: the client for hosts outside.
        fresh: whether the provider was asked for these addresses just now.
        last_try: whether nobody tries again by himself.

    Raises:
        MediaError: no result can be had, or one of several that the next try may bring.
    """
    videos: list[FetchedVideo] = []
    odd: list[MediaError] = []
    for number, url in enumerate(urls, start=1):
        try:
            videos.append(await _fetch_one(found, number, url, folder, web))
        except MediaError as error:
            odd.append(error)
    if not videos:
        raise max(odd, key=lambda error: error.retryable)  # the first of those that may be whole at the next try
    for problem in odd:
        expired = isinstance(problem, ResultExpiredError) and not fresh
        later = problem.retryable and not last_try and not isinstance(problem, DamagedVideoError)
        if expired or later:
            raise problem
    left_out = tuple(f"another result was left out: {error}" for error in odd)
    return [replace(videos[0], warnings=videos[0].warnings + left_out), *videos[1:]]


async def _fetch_one(found: Generation, number: int, url: str, folder: Path, web: httpx.AsyncClient) -> FetchedVideo:
    key, path = found.key, folder / video_name(number)

    def report(received_bytes: int, total_bytes: int | None) -> None:
        fraction = received_bytes / total_bytes if total_bytes else None
        report_progress(key, "fetch", f"{received_bytes:,} bytes", fraction=fraction)

    try:
        file = await download(web, url, path, max_bytes=MAX_VIDEO_BYTES, report=report)
        facts = await asyncio.to_thread(inspect_video, path)
    except DamagedVideoError as error:
        path.unlink(missing_ok=True)  # the next try starts from nothing
        raise DamagedVideoError(
            f"The result of {key} at {display_url(url)} is not a whole video: {error} It is not archived; "
            "the generation stays open, so that a rerun can fetch it again.",
            url=url,
            retryable=error.retryable,
        ) from error
    warnings = compare(facts, duration_seconds=found.asked.seconds, aspect_ratio=found.asked.shape)
    return FetchedVideo(path, file.sha256, facts, tuple(warnings))
