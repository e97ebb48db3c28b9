"""Stores `MonthlySpend`: one object per month, changed only by conditional writes."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from pydantic import ValidationError

from blocks.object_store import ObjectStore
from blocks.store_errors import PreconditionFailedError, StoreUnavailableError
from flows.record.indexes import Retrying
from flows.record.monthly_spend import MonthlySpend
from flows.record.pipeline_errors import LedgerError

TRIES: Final = 50
"""How often a change is tried while other runs write first; after that, it is retried as if the store were down. Each
lost race means that another run got its reservation, so this many in a row are rare."""
PAUSE_SECONDS: Final = 0.05
"""The longest pause after a lost race. If all runs retried at the same moment, most would lose again."""

Change = Callable[[MonthlySpend], MonthlySpend | None]


class SpendObjects:
    """What is spent and reserved in each month by all runs and machines that share the bucket.

    Calls raise a `StoreError` if the store does not answer.
    """

    def __init__(self, store: ObjectStore, retrying: Retrying) -> None:
        self._store, self._retrying = store, retrying

    async def read(self, month: str) -> MonthlySpend | None:
        """The month's current state; None: nothing was ever reserved in it.

        Raises:
            LedgerError: it cannot be read.
        """
        found = await self._retrying(lambda: self._store.get(object_name(month)))
        return None if found is None else _parsed(month, found.data)

    async def begin(self, month: str, count: Callable[[], Awaitable[MonthlySpend]]) -> None:
        """Creates the month if it is missing.

        Args:
            count: returns what was spent in the month so far.
        """
        if await self.read(month) is None:
            data = (await count()).model_dump_json(indent=2).encode()
            await self._retrying(lambda: self._create(month, data))

    async def change(self, month: str, how: Change) -> MonthlySpend | None:
        """Applies a pure change to the newest version, and again if another process wrote meanwhile.

        Args:
            month: a month that was begun.
            how: must have the same result if applied twice, because the reply to a write can be lost. Returning its
                argument changes nothing.

        Returns:
            The resulting month; None: `how` returned None, so nothing was changed.

        Raises:
            LedgerError: it cannot be read, or was removed.
        """

        async def apply() -> MonthlySpend | None:
            for _ in range(TRIES):
                found = await self._store.get(object_name(month))
                if found is None:
                    raise LedgerError(f"{object_name(month)} is no longer in the bucket. Nothing was submitted.")
                before = _parsed(month, found.data)
                changed = how(before)
                if changed is None or changed == before:
                    return changed
                data = changed.model_dump_json(indent=2).encode()
                try:
                    await self._store.put_if(object_name(month), data, etag=found.etag, content_type="application/json")
                except PreconditionFailedError:
                    await asyncio.sleep(PAUSE_SECONDS * random.random())
                else:
                    return changed
            raise StoreUnavailableError(f"{object_name(month)} was changed by other processes on every attempt.")

        return await self._retrying(apply)

    async def _create(self, month: str, data: bytes) -> None:
        with suppress(PreconditionFailedError):  # another run was faster, and has counted the same
            await self._store.put_if(object_name(month), data, etag=None, content_type="application/json")


def object_name(month: str) -> str:
    """The name of a month's object."""
    return f"budget/{month}.json"


def _parsed(month: str, data: bytes) -> MonthlySpend:
    try:
        return MonthlySpend.model_validate_json(data)
    except ValidationError as error:
        raise LedgerError(
            f"What was spent in {month} cannot be read ({error.error_count()} problems), so nothing is submitted under "
            f"a ceiling. Look at {object_name(month)} in the bucket; if you delete it, it is recounted from the ledger."
        ) from error
