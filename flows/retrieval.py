"""Brings a finished video home: fetch, then archive. Both may be done again for nothing, by whoever comes first."""

import asyncio
from pathlib import Path

from apixo import Succeeded
from flows import steps
from flows.generation import Generation
from flows.media.errors import MediaError
from flows.report import publish, thumbnail_of
from flows.resources import Resources
from flows.spool import discard, spool_folder
from flows.steps.retrying import delays_seconds


async def retrieve(generation: Generation, status: Succeeded | None, resources: Resources) -> Generation:
    """The last two steps of a generation.

    Args:
        generation: submitted, succeeded or archived.
        status: what the provider said last, with the addresses; None: it is asked, if something is left to fetch.
        resources: the archive, the ledger and the client for hosts outside.
    """
    key, delays = generation.key, delays_seconds(resources.api.retry_delay_seconds)
    fetch = steps.fetch.with_options(retry_delay_seconds=delays)
    archive = steps.archive.with_options(retry_delay_seconds=delays)
    with spool_folder(resources.spool, key, generation.task_id or "") as folder:
        videos = await fetch(key, status, folder, resources)
        archived: Generation = await archive(key, videos, resources)
        if videos:
            await publish(archived, resources.archive, thumbnail=await _thumbnail(videos[0].path))
        discard(folder)
    return archived


async def _thumbnail(video: Path) -> bytes | None:
    try:
        return await asyncio.to_thread(thumbnail_of, video)
    except MediaError:  # a picture less in the artifact
        return None
