"""The last two steps of a generation, run by its own run, a rerun, or the collector."""

from apixo import Succeeded
from flows.media.work_directory import work_folder
from flows.record.generation import Generation, PaidTask
from flows.record.ledger import Entry
from flows.resources import Resources
from flows.steps.archive import archive
from flows.steps.fetch import fetch
from flows.steps.retrying import retried, whole


async def retrieve(paid: PaidTask, known: Entry, status: Succeeded | None, resources: Resources) -> Generation:
    """Fetches and archives what a finished task has made.

    Args:
        known: the latest known record: submitted, succeeded or archived.
        status: the provider's last answer, with the URLs; None: the provider is polled, if something is left to fetch.

    Raises:
        SupersededError: the generation has another task now. This one's video is archived alongside, if it was paid
            for.
    """
    first_seconds = resources.api.retry_delay_seconds
    with work_folder(resources.work_root, paid.key, paid.task_id) as folder:
        videos = await retried(fetch, first_seconds)(whole(paid), known, whole(status), folder, resources)
        archived: Generation = await retried(archive, first_seconds)(whole(paid), known, whole(videos), resources)
        return archived
