"""Downloads the result to the local disk and checks that it plays."""

from functools import partial
from pathlib import Path

from prefect import task
from prefect.runtime import task_run

from apixo import Succeeded
from flows.fetching import FetchedVideo, fetch_videos, poll_result
from flows.media.media_errors import ResultExpiredError
from flows.record.generation import PaidTask, State
from flows.record.ledger import Entry
from flows.resources import Resources
from flows.signals.progress import report_progress, run_logger
from flows.steps.retrying import FREE_STEP, RETRIES


@task(name="fetch", task_run_name="fetch {paid.key}", **FREE_STEP)
async def fetch(
    paid: PaidTask, known: Entry, status: Succeeded | None, folder: Path, resources: Resources
) -> list[FetchedVideo] | None:
    """Downloads every result into the folder and inspects it. None: the ledger says that everything is archived.

    Retried after transient errors, cut downloads and damaged files; a cut download resumes where it was cut.

    Args:
        status: the provider's last answer; None after a rerun, which polls again for fresh URLs.
        folder: where the files go, and where an earlier run may have left some.

    Raises:
        MediaError: the result cannot be fetched, or is not a complete video.
        ApixoError: the provider gave no URLs.
    """
    logger, key, found = run_logger(), paid.key, known.generation
    if found.state is State.ARCHIVED and found.task_id == paid.task_id:
        logger.info("%s is already archived.", key)
        report_progress(key, "fetch", "done before", done=True)
        return None
    now = resources.clock.now()
    last_try = not 0 < task_run.run_count <= RETRIES  # 0: outside a run
    client, web, requested = resources.client, resources.web, found.request.on(paid.model)
    get = partial(fetch_videos, found, folder=folder, web=web, requested=requested, last_try=last_try, now=now)
    async with resources.fetching:
        urls = (status or await poll_result(paid.task_id, client, model=paid.model)).result_urls
        try:
            videos = await get(urls, fresh=status is None)
        except ResultExpiredError:
            if status is None:
                raise
            # The URLs may have been signed for a short time only.
            urls = (await poll_result(paid.task_id, client, model=paid.model)).result_urls
            videos = await get(urls, fresh=True)
    for video in videos:
        logger.info("Fetched for %s: %s.", key, video)
        for warning in video.warnings:
            logger.warning("%s of %s: %s", video.path.name, key, warning)
    report_progress(key, "fetch", f"{sum(video.size_bytes for video in videos):,} bytes", done=True)
    return videos
