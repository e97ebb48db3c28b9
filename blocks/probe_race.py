"""How a store proves that of many writers at the same moment one wins.

The ledger stands on this: where two racing workers both believe they hold the claim, both pay.
"""

import asyncio
import contextlib
import uuid
from typing import Final

from blocks.errors import PreconditionFailedError, StoreError, StoreUnavailableError, StoreUnfitError
from blocks.object_store import INCOMING, ObjectStore

RACERS: Final = 32


async def prove_race(store: ObjectStore) -> None:
    """Has 32 writers create one object at once, then change it at once: exactly one may win each time.

    Raises:
        StoreUnfitError: more than one won, or none did although all were answered.
        StoreError: it refused, or did not answer.
    """
    name = f"{INCOMING}race-{uuid.uuid4().hex}"
    try:
        etag = await _one_winner(store, name, None, "If-None-Match")
        await _one_winner(store, name, etag, "If-Match")
    finally:
        with contextlib.suppress(StoreError):
            await store.remove(name)


async def _one_winner(store: ObjectStore, name: str, etag: str | None, condition: str) -> str:
    """The winner's etag, of 32 writers at once."""
    # All differ, also from what is there: the same bytes would have the same etag, which a second writer still matches.
    bodies = [uuid.uuid4().bytes for _ in range(RACERS)]
    attempts = await asyncio.gather(*(store.put_if(name, body, etag=etag) for body in bodies), return_exceptions=True)
    won = [number for number, result in enumerate(attempts) if isinstance(result, str)]
    errors = [result for result in attempts if isinstance(result, BaseException)]
    if other := [error for error in errors if not isinstance(error, PreconditionFailedError | StoreUnavailableError)]:
        raise other[0]
    unclear = [error for error in errors if isinstance(error, StoreUnavailableError)]
    found = await store.get(name)
    if found is None and unclear:
        raise unclear[0]
    if len(won) > 1:
        raise StoreUnfitError(
            f"Of {RACERS} writers with {condition} at the same moment, {len(won)} were told that they had won. One "
            "generation could be paid several times. Use a current MinIO, SeaweedFS or AWS S3.",
            object_name=name,
        )
    if found is None or not (won or unclear):
        raise StoreUnfitError(
            f"Of {RACERS} writers with {condition} at the same moment none won. A generation could never be claimed. "
            "Use a current MinIO, SeaweedFS or AWS S3.",
            object_name=name,
        )
    if won and found.data != bodies[won[0]]:
        raise StoreUnfitError(
            f"A read of {name} does not show what was just written. A cache in front of the store, or replicas that "
            "lag behind, would do so: the ledger needs a store whose reads see the last write.",
            object_name=name,
        )
    return found.etag
