"""Finds the newest generations without listing all: by the daily folders of videos, and by similar markers.

Nothing depends on it. A key that it misses is just not shown among the newest.
"""

import asyncio
from datetime import datetime
from itertools import chain
from typing import Final

from blocks.object_store import ObjectStore
from flows.record import object_names
from flows.record.generation import Generation

NOT_MADE: Final = "failed/"
"""`failed/<yyyy>/<mm>/<dd>/<key>` for generations that ended without a video, perhaps only for now."""
OPEN: Final = "open/"
ENDED: Final = (object_names.VIDEOS, NOT_MADE)
"""Both have daily folders, so an archived video needs no marker."""


def failed_name(ended: Generation) -> str:
    """The marker of a generation that ended without a video, by the day of its first claim."""
    return f"{NOT_MADE}{object_names.day(ended.created_at)}/{ended.key}"


async def newest_keys(store: ObjectStore, count: int) -> list[str]:
    """The newest keys, this many or a few more, in no particular order.

    Raises:
        StoreError: the store did not answer.
    """
    markers, days = await asyncio.gather(store.listed(OPEN), _days(store, count))
    opened = [(item.modified, item.name.removeprefix(OPEN)) for item in markers]
    keys = dict.fromkeys(key for _, key in sorted(opened, reverse=True)[:count])
    ended = 0
    for day in days:
        latest: dict[str, datetime] = {}
        for item in chain(*await asyncio.gather(*(store.listed(f"{root}{day}") for root in ENDED))):
            key = item.name.split("/")[4]
            latest[key] = max(latest.get(key, item.modified), item.modified)
        found = sorted(latest, key=latest.__getitem__, reverse=True)[: count - ended]
        keys.update(dict.fromkeys(found))
        ended += len(found)
        if ended >= count:
            break
    return list(keys)


async def _days(store: ObjectStore, most: int) -> list[str]:
    """The newest days with any object, such as `2026/11/28/`, the newest first, at most this many."""

    async def below(path: str) -> list[str]:
        found = await asyncio.gather(*(store.folders(f"{root}{path}") for root in ENDED))
        return sorted({name.partition("/")[2] for name in chain(*found)}, reverse=True)

    days: list[str] = []
    for year in await below(""):
        for month in await below(year):
            days += await below(month)
            if len(days) >= most:
                return days[:most]
    return days
