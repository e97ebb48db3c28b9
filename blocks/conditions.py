"""How a store proves that it keeps conditional writes, before anything is paid for.

The ledger stands on them: where two racing workers both believe to have the claim, both pay. Where a proxy changes the
etags on their way, a claim can be written and never be changed.
"""

import contextlib
from typing import TYPE_CHECKING, Final

from blocks.errors import PreconditionFailedError, StoreUnavailableError, StoreUnfitError

if TYPE_CHECKING:
    from blocks.object_store import ObjectStore

PROBE: Final = "probe/conditional-writes"
"""The object on which a store shows that it keeps conditions. Stays in the bucket."""
DATA: Final = b"Shows that this store keeps conditional writes.\n"
NO_ETAG: Final = f'"{"0" * 32}"'
"""No object has it."""
TRIES: Final = 20
"""How often the probe is changed anew when other processes, which prove the same, are faster each time."""


async def prove(store: "ObjectStore") -> None:
    """Lets the store refuse what it has to refuse, and accept a change with the etag of a read.

    Any number of processes may do this at once.

    Raises:
        StoreUnfitError: it did otherwise.
        StoreError: it refused, or did not answer.
    """
    with contextlib.suppress(PreconditionFailedError):
        await store.put_if(PROBE, DATA, etag=None)
    for etag in (None, NO_ETAG):
        try:
            await store.put_if(PROBE, b"This must never be written.\n", etag=etag)
        except PreconditionFailedError:
            continue
        raise StoreUnfitError(
            "The object store ignored If-None-Match or If-Match. It cannot keep the ledger, and videos could be paid "
            "twice. Use a current MinIO, or AWS S3.",
            object_name=PROBE,
        )
    refused = ""
    for _ in range(TRIES):
        found = await store.get(PROBE)
        if found is None or found.etag == refused:
            raise StoreUnfitError(
                f"The object store refused a change with the etag {refused} that it had sent itself, or has no object "
                "that it had said to have. A proxy in front of it that compresses or caches would do so: switch that "
                "off for the store.",
                object_name=PROBE,
            )
        try:
            await store.put_if(PROBE, DATA, etag=found.etag)
        except PreconditionFailedError:  # changed since the read, or the etag is not the one that the store knows
            refused = found.etag
        else:
            return
    raise StoreUnavailableError(f"Others changed {PROBE} {TRIES} times in a row.", object_name=PROBE)


__all__ = ["PROBE", "prove"]
