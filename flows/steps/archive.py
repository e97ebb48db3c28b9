"""Archives the video, a poster and a description, and reports success only after reading the video back."""

from functools import partial

from prefect import task

from flows.archiving import store_task
from flows.fetching import FetchedVideo
from flows.record import superseded_tasks, transitions
from flows.record.generation import Generation, PaidTask, State
from flows.record.ledger import Entry
from flows.record.payments import full_cost
from flows.record.pipeline_errors import LedgerError
from flows.resources import Resources
from flows.signals.events import publish_end
from flows.signals.progress import report_progress, run_logger
from flows.signals.video_artifact import publish
from flows.steps.retrying import FREE_STEP


@task(name="archive", task_run_name="archive {paid.key}", **FREE_STEP)
async def archive(paid: PaidTask, known: Entry, videos: list[FetchedVideo] | None, resources: Resources) -> Generation:
    """Uploads into the task's own folder, reads back, records that it is archived, and then publishes the event.

    Args:
        videos: what fetch returned; None if the ledger says that everything is archived.

    Raises:
        SupersededError: the generation has another task now. The video is archived alongside, if it was paid for.
        ArchiveMismatchError: the video read back is not what was written. Retried.
        StoreError: the store did not answer, or rejected a request. Retried if it did not answer.
    """
    logger, key, found = run_logger(), paid.key, known.generation
    if found.state is State.ARCHIVED and found.task_id == paid.task_id:
        logger.info("%s is already archived, as %s.", key, found.video.name if found.video else "?")
        await publish_end(found, resources.ledger, resources.archive, resources.events)
        report_progress(key, "archive", found.video.name if found.video else "archived", done=True)
        return found
    if not videos:
        raise LedgerError(f"There is nothing to archive for {key}.", key=key)
    if found.task_id != paid.task_id and not superseded_tasks.is_superseded(found, paid.task_id):
        raise superseded_tasks.superseded_error(found, paid.task_id)
    async with resources.archiving:
        report_progress(key, "archive", "uploading")
        stored = await store_task(paid, found, videos, resources.store)
    how = partial(
        transitions.archived, task=paid, objects=stored.objects, warnings=stored.warnings, now=resources.clock.now()
    )
    archived = (await resources.ledger.change(key, how, known=known)).generation
    if archived.task_id != paid.task_id:
        logger.warning("The video of task %s of %s is archived alongside, in %s.", paid.task_id, key, paid.folder)
        raise superseded_tasks.superseded_error(archived, paid.task_id)
    logger.info("Archived %s as %s/%s.", key, resources.store.bucket, paid.folder)
    await publish_end(archived, resources.ledger, resources.archive, resources.events, is_new=True)
    report_progress(key, "archive", archived.video.name if archived.video else "archived", done=True)
    cost = full_cost(archived, resources.api.price_list)
    await publish(archived, resources.archive, poster=stored.poster, cost=cost, options=resources.options)
    return archived
