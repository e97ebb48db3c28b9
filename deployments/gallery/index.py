"""The gallery's index of the ledger: keeps every record in memory, and reads only changed ones again."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from blocks.object_store import ListedObject, ObjectStore
from blocks.store_errors import StoreError
from flows.record.generation import Generation
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import InvalidKeyError, LedgerError

FRESH_SECONDS: Final = 3.0
"""The minimum time for which a listing counts as current. Listing takes up at most a tenth of the time."""
WAIT_SECONDS: Final = 0.5
"""How long a page waits for a newer listing before it shows what is known."""
PAGE_SIZE: Final = 48
"""How many videos a page shows. At the start, this many of the newest records are read first."""
READS_AT_A_TIME: Final = 200
"""How many records are read at a time. The first visitors of a large archive see it fill."""

_log = logging.getLogger("sora")


@dataclass(frozen=True, slots=True)
class Item:
    """One generation, with its searchable text."""

    generation: Generation
    text: str
    """Key, prompt, tags, model and task, case-folded."""


class ArchiveIndex:
    """All records of one ledger. To be used on one event loop.

    Attributes:
        items: the readable records, by key.
        unreadable: keys of records that cannot be read.
        problem: why the last refresh failed; None if it did not.
        loaded: whether everything has been read once.
    """

    def __init__(self, store: ObjectStore, ledger: Ledger, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._ledger, self._monotonic = store, ledger, monotonic
        self._versions: dict[str, ListedObject] = {}
        self._stale_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.items: dict[str, Item] = {}
        self.unreadable: set[str] = set()
        self.problem: str | None = None
        self.loaded = False

    async def current(self) -> None:
        """Refreshes the index if it is stale. After `WAIT_SECONDS`, that continues in the background."""
        if self._stale_at is not None and self._monotonic() < self._stale_at:
            return
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self.refresh(), name="gallery index")
        await asyncio.wait({self._refreshing}, timeout=WAIT_SECONDS)

    async def refresh(self) -> None:
        """Lists the ledger and reads new or changed records. If that fails, sets `problem` and keeps the old ones."""
        began = self._monotonic()
        try:
            if not self.loaded:
                await self._read_newest()
            listed = {_key(found.name): found for found in await self._store.listed("ledger/")}
            listed.pop("", None)
            for key in self._versions.keys() - listed.keys():
                self._forget(key)
            changed = [key for key, found in listed.items() if self._versions.get(key) != found]
            for first in range(0, len(changed), READS_AT_A_TIME):
                keys = changed[first : first + READS_AT_A_TIME]
                await asyncio.gather(*(self._read(key, listed[key]) for key in keys))
        except StoreError as error:
            self.problem = str(error)
            _log.warning("The gallery could not read the ledger: %s", error)
        else:
            self.problem, self.loaded = None, True
        now = self._monotonic()
        self._stale_at = now + max(FRESH_SECONDS, 10 * (now - began))

    async def find(self, key: str, *, fresh: bool) -> Generation | None:
        """The record of one key, even if the last listing did not have it.

        Args:
            key: of the generation.
            fresh: reads the ledger even if a record with a video is known. Others are always read.

        Raises:
            LedgerError: it cannot be read.
            StoreError: the store did not answer.
        """
        item = self.items.get(key)
        if not fresh and item is not None and item.generation.video is not None:
            return item.generation
        try:
            entry = await self._ledger.read(key)
        except (LedgerError, StoreError):
            if item is None:
                raise
            return item.generation  # what is known is better than nothing
        return entry.generation if entry else None

    async def aclose(self) -> None:
        """Cancels a refresh in progress."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)

    async def _read_newest(self) -> None:
        """Reads the records for the first page, before all others. Unreadable ones are handled later."""
        with contextlib.suppress(LedgerError):
            for found in await self._ledger.newest(PAGE_SIZE):
                self.items.setdefault(found.key, Item(found, _text(found)))

    async def _read(self, key: str, version: ListedObject) -> None:
        try:
            entry = await self._ledger.read(key)
        except LedgerError as error:
            _log.warning("%s", error)
            self._forget(key)
            self.unreadable.add(key)
        else:
            self._forget(key)
            if entry is not None:
                self.items[key] = Item(entry.generation, _text(entry.generation))
        self._versions[key] = version

    def _forget(self, key: str) -> None:
        self._versions.pop(key, None)
        self.items.pop(key, None)
        self.unreadable.discard(key)


def _key(name: str) -> str:
    """The key of a ledger object; empty: not a record."""
    stem = name.removeprefix("ledger/")
    try:
        return check_key(stem.removesuffix(".json")) if stem.endswith(".json") else ""
    except InvalidKeyError:
        return ""


def _text(found: Generation) -> str:
    request = found.request
    words = [found.key, request.prompt, *request.tags, found.attempt.model, found.task_id or ""]
    return "\n".join(words).casefold()
