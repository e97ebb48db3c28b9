"""Fetches and archives a finished video. Both may be done again for nothing, by whoever comes first."""

import asyncio
from pathlib import Path
from typing import Final

from apixo import Succeeded
from flows import steps
from flows.media.errors import MediaError
from flows.media.spool import discard, spool_folder
from flows.media.videos import poster_jpeg
from flows.record.errors import SupersededError
from flows.record.generation import Generation, PaidTask
from flows.record.ledger import Entry
from flows.resources import Resources
from flows.signals.artifacts import publish
from flows.steps.retrying import delays_seconds

THUMBNAIL_PIXELS: Final = 320
"""Longest side of the artifact's picture. At this size it is some 10 to 20 KB, which the Prefect database can hold."""


async def retrieve(paid: PaidTask, known: Entry, status: Succeeded | None, resources: Resources) -> Generation:
    """The last two steps of a generation.

    Args:
        paid: the task whose video is wanted.
        known: the record as it was seen last: submitted, succeeded or archived.
        status: what the provider said last, with the addresses; None: it is asked, if something is left to fetch.
        resources: the archive, the ledger and the client for hosts outside.

    Raises:
        SupersededError: the generation has another task now. The video of this one is archived beside, if it was paid
            for.
    """
    delays = delays_seconds(resources.api.retry_delay_seconds)
    fetch = steps.fetch.with_options(retry_delay_seconds=delays)
    archive = steps.archive.with_options(retry_delay_seconds=delays)
    with spool_folder(resources.spool, paid.key, paid.task_id) as folder:
        videos = await fetch(paid, known, status, folder, resources)
        try:
            archived: Generation = await archive(paid, known, videos, resources)
        except SupersededError:  # archived beside, or not ours at all
            discard(folder)
            raise
        if videos:
            await publish(archived, resources.archive, thumbnail=await _thumbnail(videos[0].path))
        discard(folder)
    return archived


async def _thumbnail(video: Path) -> bytes | None:
    try:
        return await asyncio.to_thread(poster_jpeg, video, max_side=THUMBNAIL_PIXELS)
    except MediaError:  # a picture less in the artifact
        return None
