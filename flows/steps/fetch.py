"""Brings the result onto the local disk and makes sure that it plays."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from apixo import Succeeded, UnexpectedReplyError
from flows.media.downloads import download
from flows.media.errors import DamagedVideoError, MediaError, ResultExpiredError, display_url
from flows.media.videos import VideoFacts, compare, inspect_video
from flows.record.generation import Generation, PaidTask, State
from flows.record.ledger import Entry
from flows.record.object_names import video_name
from flows.resources import Resources
from flows.signals.progress import report_progress, run_logger
from flows.steps.retrying import JITTER_FACTOR, RETRIES, retry_transient

MAX_VIDEO_BYTES: Final = 2 * 1024**3
"""No documented limit exists. 2 GiB is far above any 12 s video and keeps a hostile host from filling the disk."""


@dataclass(frozen=True, slots=True)
class FetchedVideo:
    """A whole video on the local disk that decodes from its first frame to its last."""

    path: Path
    sha256: str
    facts: VideoFacts
    warnings: tuple[str, ...]


@task(
    name="fetch",
    task_run_name="fetch {paid.key}",
    retries=RETRIES,
    retry_jitter_factor=JITTER_FACTOR,
    retry_condition_fn=retry_transient,
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def fetch(
    paid: PaidTask, known: Entry, status: Succeeded | None, folder: Path, resources: Resources
) -> list[FetchedVideo] | None:
    """Downloads every result into the folder and inspects it. None: the ledger says that all is archived.

    Retried after transient errors, cut downloads and damaged files; a cut one goes on where it was cut.

    Args:
        paid: the task.
        known: the record as it was seen last.
        status: what the provider said last; None after a rerun, then it is asked again for fresh addresses.
        folder: where the files go, and where an earlier run may have left them.
        resources: the API and the client for hosts outside.

    Raises:
        MediaError: the result cannot be fetched, or is not a whole video.
        ApixoError: the provider gave no addresses.
    """
    logger, key, found = run_logger(), paid.key, known.generation
    if found.state is State.ARCHIVED and found.task_id == paid.task_id:
        logger.info("%s is archived already.", key)
        report_progress(key, "fetch", "done before", done=True)
        return None
    async with resources.fetching:
        urls = (status or await _ask(paid.task_id, resources)).result_urls
        try:
            videos = await _fetch_all(found, urls, folder, resources, fresh=status is None)
        except ResultExpiredError:
            if status is None:
                raise
            fresh = await _ask(paid.task_id, resources)  # the addresses may have been signed for a short while only
            videos = await _fetch_all(found, fresh.result_urls, folder, resources, fresh=True)
    for video in videos:
        logger.info(
            "Fetched %s of %s: %d bytes, %s, %d x %d, %.2f s, sha256 %s.", video.path.name, key, video.facts.size_bytes,
            video.facts.codec, video.facts.width, video.facts.height, video.facts.duration_seconds, video.sha256,
        )  # fmt: skip
        for warning in video.warnings:
            logger.warning("%s of %s: %s", video.path.name, key, warning)
    report_progress(key, "fetch", f"{sum(video.facts.size_bytes for video in videos):,} bytes", fraction=1.0, done=True)
    return videos


async def _ask(task_id: str, resources: Resources) -> Succeeded:
    status = await resources.client.status(task_id)
    if isinstance(status, Succeeded):
        return status
    raise UnexpectedReplyError(
        f"APIXO reported task {task_id} as success before, and now says {status.state!r}.", task_id=task_id
    )


async def _fetch_all(
    found: Generation, urls: tuple[str, ...], folder: Path, resources: Resources, *, fresh: bool
) -> list[FetchedVideo]:
    """Every result that is a video. One that cannot be had, beside one that can, is a warning in the end.

    Args:
        found, urls, folder, resources: what to fetch, where to, and by what.
        fresh: whether the provider was asked for these addresses just now.
    """
    videos: list[FetchedVideo] = []
    odd: list[MediaError] = []
    for number, url in enumerate(urls, start=1):
        try:
            videos.append(await _fetch_one(found, number, url, folder, resources))
        except MediaError as error:
            odd.append(error)
    if not videos:
        raise max(odd, key=lambda error: error.retryable)  # the first of those that may be whole at the next try
    last_try = not 0 < task_run.run_count <= RETRIES  # 0: outside of a run
    for problem in odd:
        expired = isinstance(problem, ResultExpiredError) and not fresh
        later = problem.retryable and not last_try and not isinstance(problem, DamagedVideoError)
        if expired or later:
            raise problem
    left_out = tuple(f"another result was left out: {error}" for error in odd)
    return [replace(videos[0], warnings=videos[0].warnings + left_out), *videos[1:]]


async def _fetch_one(found: Generation, number: int, url: str, folder: Path, resources: Resources) -> FetchedVideo:
    key, path = found.key, folder / video_name(number)

    def report(received_bytes: int, total_bytes: int | None) -> None:
        fraction = received_bytes / total_bytes if total_bytes else None
        report_progress(key, "fetch", f"{received_bytes:,} bytes", fraction=fraction)

    try:
        file = await download(resources.web, url, path, max_bytes=MAX_VIDEO_BYTES, report=report)
        facts = await asyncio.to_thread(inspect_video, path)
    except DamagedVideoError as error:
        path.unlink(missing_ok=True)  # the next try starts from nothing
        raise DamagedVideoError(
            f"The result of {key} at {display_url(url)} is not a whole video: {error} It is not archived; "
            "the generation stays open, so that a rerun can fetch it again.",
            url=url,
            retryable=error.retryable,
        ) from error
    warnings = compare(facts, duration_seconds=found.request.duration, aspect_ratio=found.request.aspect_ratio)
    return FetchedVideo(path, file.sha256, facts, tuple(warnings))
