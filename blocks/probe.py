"""Checks, before anything is paid for, that a store can keep the ledger and accept a video.

The ledger relies on conditional writes: if two racing workers both believe they hold the claim, both pay. If a proxy
changes etags or bodies in transit, a claim can be written but never changed. If it limits uploads, a paid video cannot
be stored. So the probe makes the same calls as a run, through the same clients.
"""

import asyncio
import contextlib
import json
import random
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from blocks.bucket_settings import LEDGER_FOLDERS
from blocks.object_store import INCOMING, PROBE, ObjectStore, StoredObject
from blocks.s3_replies import BUSY
from blocks.store_errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    StoreUnfitError,
    WrongClockError,
)

RACED: Final = "probe/race"
"""Written when the store has passed the race and accepted a large upload. Its age determines when both are due again.
If it is empty, a check failed, and both are due now."""
RACE_EVERY: Final = timedelta(days=1)
LARGE_BYTES: Final = 5 * 1_048_576
"""The smallest part of a multipart upload in S3, which a proxy must let through."""
MAX_CLOCK_OFFSET_SECONDS: Final = 60.0
"""The offset of any properly set clock stays below this. Setup and dry runs report a larger one as an error."""
UNUSABLE_CLOCK_OFFSET_SECONDS: Final = 600.0
"""A larger offset ends a run before it pays: S3 rejects requests that are 15 minutes off, and clocks keep drifting."""
BUSY_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
"""The pauses before the retries of a check when the store is busy."""
RACERS: Final = 32
TRIES: Final = 20
"""How often the probe's change is tried if other processes with the same check are faster each time."""
CONFLICT_PAUSE_SECONDS: Final = 0.02
"""The longest pause after the first conflict; it doubles with each one. The pauses are random, so they differ."""
MOST_CONFLICT_PAUSE_SECONDS: Final = 1.0

_JSON: Final = "application/json"
_LABELS: Final = {
    "Content-Disposition": 'inline; filename="probe.mp4"',
    "Cache-Control": "max-age=31536000, immutable",
    "key": "probe",
}
"""The headers of a video's upload; see `flows.record.object_names.attributes`."""
_NO_ETAG: Final = f'"{"0" * 32}"'  # an etag that no object has
_FILLER: Final = "Long enough that a proxy which compresses JSON compresses this too. " * 60

_proven: set[tuple[str, str]] = set()
"""The stores, by URL and bucket, that have passed all checks in this process."""


async def ensure_ready(store: ObjectStore, *, also: Sequence[str] = ()) -> None:
    """Checks the store: cheap checks once per process, the race and a large upload once a day.

    Args:
        also: further objects that must be writable, since a policy may allow only some folders. They are not removed.

    Raises:
        StoreUnfitError: it did not behave as required; the message says how, and what to do about it.
        StoreRefusedError: no such bucket, wrong keys, or no permission. A missing bucket is not created here: if the
            ledger was lost with it, every key would be paid for again.
        StoreUnavailableError: no answer.
    """
    identity = (store.url, store.bucket)
    if identity in _proven:
        return
    await prove(store)
    await _prove_clock(store, UNUSABLE_CLOCK_OFFSET_SECONDS)
    for name in also:
        with contextlib.suppress(PreconditionFailedError):
            await store.put_if(name, b"Shows that this may be written.\n", etag=None)
    if await _is_due(store):
        await prove_race(store)
        await prove_large_upload(store)
        await mark_raced(store)
    _proven.add(identity)


async def problems(store: ObjectStore) -> list[StoreError]:
    """Checks everything, whatever was checked before. Returns all errors, so that they can be fixed together."""
    try:
        await _retrying(prove, store)
    except StoreError as error:
        return [error]  # the rest would only repeat it
    found = []
    for check in (_prove_clock, prove_settings, prove_race, prove_large_upload):
        try:
            await _retrying(check, store)
        except StoreError as error:
            found.append(error)
    if found:
        await _mark_due(store)
    else:
        await mark_raced(store)
    return found


async def mark_raced(store: ObjectStore) -> None:
    """Records that this store has passed the race, or is a product that is known to pass it."""
    await store.put(RACED, b"Shows when the store was last raced.\n")


async def _mark_due(store: ObjectStore) -> None:
    """Makes every run check again before it pays. Emptied, not removed: that would need another permission."""
    _proven.discard((store.url, store.bucket))
    with contextlib.suppress(StoreError):
        await store.put(RACED, b"")


async def prove(store: ObjectStore) -> None:
    """Creates, reads, changes, lists and deletes. A second creation and a change of a wrong version must be rejected.

    Any number of processes may do this at once.

    Raises:
        StoreUnfitError: the store behaved differently.
        StoreError: it rejected a request, or did not answer.
    """
    with contextlib.suppress(PreconditionFailedError):
        await store.put_if(PROBE, _data(), etag=None, content_type=_JSON)
    for etag in (None, _NO_ETAG):
        try:
            await store.put_if(PROBE, b"This must never be written.\n", etag=etag, content_type=_JSON)
        except PreconditionFailedError:
            continue
        raise StoreUnfitError(
            "The object store ignored If-None-Match or If-Match. It cannot keep the ledger: videos could be paid for "
            "twice. Use a current MinIO, or AWS S3.",
        )
    await _prove_change(store)
    if PROBE not in await store.names(PROBE.rpartition("/")[0] + "/"):
        raise StoreUnfitError(
            f"The object store's listing lacks {PROBE}, which exists. The collector finds open generations by listing. "
            "Is there a cache or proxy in front of the store? Turn it off for the store.",
        )
    own = f"{INCOMING}probe-{uuid.uuid4().hex}"
    await store.put_if(own, b"", etag=None)
    await store.remove(own)
    if await store.get(own) is not None:
        raise StoreUnfitError(
            f"The object store still has {own} after confirming its deletion. Does the bucket have a retention rule or "
            "object lock, or is there a cache in front of it? Remove it for this bucket.",
        )


async def prove_settings(store: ObjectStore) -> None:
    """Checks the bucket's lifecycle rules, if this key may read them.

    Raises:
        StoreUnfitError: one of them would delete records of the ledger.
    """
    settings = await store.settings()
    if rules := settings.against_the_ledger():
        raise StoreUnfitError(
            f"A lifecycle rule of bucket {store.bucket} would delete the ledger: {', '.join(map(str, rules))}. Without "
            "its record a key is unknown, and would be paid for again. Limit the rule to videos/ or incoming/, so that "
            f"it does not apply to {', '.join(LEDGER_FOLDERS)}."
        )


async def prove_race(store: ObjectStore) -> None:
    """Lets 32 writers create one object at once, then change it at once: exactly one must win each time.

    Raises:
        StoreUnfitError: more than one won, or none did although all were answered.
        StoreError: it rejected a request, or did not answer.
    """
    name = f"{INCOMING}race-{uuid.uuid4().hex}"
    try:
        etag = await _one_winner(store, name, None, "If-None-Match")
        await _one_winner(store, name, etag, "If-Match")
    finally:
        with contextlib.suppress(StoreError):
            await store.remove(name)


async def prove_large_upload(store: ObjectStore) -> None:
    """Uploads 5 MiB, the smallest size of a part, like a video: in one request, and in parts with a copy.

    Raises:
        StoreUnfitError: it was rejected because of its size.
        StoreError: it was rejected for another reason, or not answered.
    """
    name = f"{INCOMING}large-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "large")
        await asyncio.to_thread(path.write_bytes, bytes(LARGE_BYTES + 1))
        try:
            await store.put_if(name, bytes(LARGE_BYTES), etag=None, content_type="video/mp4", attributes=_LABELS)
            await store.remove(name)
            await store.create_file(name, path, content_type="video/mp4", attributes=_LABELS, in_parts=True)
        except StoreRefusedError as error:
            raise _large_upload_rejected(error) from error
        except StoreUnavailableError as error:
            # Small requests were answered a moment ago. A proxy may close the connection instead of answering.
            raise StoreUnavailableError(
                f"{error} If only large uploads fail, a proxy in front of the store limits the size of requests.",
                code=error.code,
            ) from error
        finally:
            with contextlib.suppress(StoreError):
                await store.remove(name)


def _large_upload_rejected(error: StoreRefusedError) -> StoreError:
    """Explains why a video cannot be uploaded although small objects were accepted a moment ago."""
    if error.code == "EntityTooLarge":
        return StoreUnfitError(
            f"The object store did not accept an upload of {LARGE_BYTES:,} bytes, so no video could be archived: a "
            "proxy in front of it limits the size of requests. Raise its limit to 64 MB (nginx: client_max_body_size "
            "64m).",
            code=error.code,
        )
    what = "So the problem is how a video is uploaded, at once or in parts."
    if error.code in ("SignatureDoesNotMatch", "AccessDenied"):
        what = (
            "If the key may write to incoming/, a proxy in front of the store changes or drops headers of video "
            "uploads: Content-Disposition, Cache-Control, x-amz-meta-*. Configure it to pass them on unchanged."
        )
    return StoreRefusedError(f"{error} Small objects were accepted. {what}", code=error.code)


async def _one_winner(store: ObjectStore, name: str, etag: str | None, condition: str) -> str:
    """Lets 32 writers race. Returns the winner's etag."""
    # All bodies differ, also from the current one: equal bytes have equal etags, which a second writer would match.
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
            f"Of {RACERS} writers with {condition} at the same moment, the store confirmed {len(won)} of them; only "
            "one may win. One generation could be paid for several times. Use a current MinIO, SeaweedFS or AWS S3.",
        )
    if found is None or not (won or unclear):
        raise StoreUnfitError(
            f"Of {RACERS} writers with {condition} at the same moment, the store confirmed none. A generation could "
            "never be claimed. Use a current MinIO, SeaweedFS or AWS S3.",
        )
    if won and found.data != bodies[won[0]]:
        raise StoreUnfitError(
            f"A read of {name} does not return what was just written. Is there a cache in front of the store, or do "
            "replicas lag behind? The ledger needs a store whose reads see the last write.",
        )
    return found.etag


async def _prove_change(store: ObjectStore) -> None:
    """Changes the probe with the etag from a read, like every change of a record."""
    before: StoredObject | None = None
    for attempt in range(TRIES):
        found = await _read_probe(store)
        if before is not None and found.data == before.data:
            raise StoreUnfitError(
                "The object store rejected a change with the etag of a read, although the object had not changed. Two "
                f"reads returned {before.etag} and {found.etag}. Does a proxy in front of the store compress or cache? "
                "Turn that off for the store.",
            )
        try:
            await store.put_if(PROBE, _data(), etag=found.etag, content_type=_JSON)
        except PreconditionFailedError:  # changed since the read, or the etag is not the one that the store knows
            before = found
            # Many processes may start at once, and only one of them wins each round.
            longest = min(CONFLICT_PAUSE_SECONDS * 2**attempt, MOST_CONFLICT_PAUSE_SECONDS)
            await asyncio.sleep(random.uniform(0, longest))
        else:
            return
    raise StoreUnavailableError(f"Others changed {PROBE} {TRIES} times in a row.")


async def _read_probe(store: ObjectStore) -> StoredObject:
    try:
        found = await store.get(PROBE)
    except StoreUnavailableError as error:
        if error.code != "MissingETag":
            raise
        raise StoreUnfitError(
            "A read came back without the ETag that the ledger needs to change its records. Does a proxy in front of "
            "the store compress or rewrite replies? Configure it to pass the store's replies on unchanged.",
        ) from error
    if found is None:
        raise StoreUnfitError(
            f"The object store does not find {PROBE}, which it had confirmed. Is there a cache in front of it, or do "
            "replicas lag behind? The ledger needs a store whose reads see the last write.",
        )
    if not _is_ours(found.data):
        raise StoreUnfitError(
            f"{PROBE} did not come back as it was written. A proxy in front of the store compresses or rewrites "
            "replies: turn that off for the store.",
        )
    return found


async def _retrying(check: Callable[[ObjectStore], Awaitable[None]], store: ObjectStore) -> None:
    """Retries a check while the store is busy. Runs have their own retries; here a user is waiting."""
    for seconds in BUSY_PAUSES_SECONDS:
        try:
            return await check(store)
        except StoreUnavailableError as error:
            if error.code not in BUSY:
                raise
        await asyncio.sleep(seconds)
    return await check(store)


async def _prove_clock(store: ObjectStore, most_seconds: float = MAX_CLOCK_OFFSET_SECONDS) -> None:
    offset = await store.clock_offset_seconds()
    if offset is not None and abs(offset) > most_seconds:
        raise WrongClockError(
            f"This machine's clock is {abs(offset):.0f} s {'behind' if offset > 0 else 'ahead of'} the object store's. "
            "Beyond 15 minutes the store rejects every request. Set the clock, preferably by NTP (timedatectl set-ntp "
            "true); in a container or virtual machine, set the host's clock."
        )


async def _is_due(store: ObjectStore) -> bool:
    listed = await store.listed(RACED.rpartition("/")[0] + "/")
    return not any(
        item.name == RACED and item.size_bytes > 0 and datetime.now(UTC) - item.modified < RACE_EVERY for item in listed
    )


def _data() -> bytes:
    """A body like a record's: a few kilobytes of JSON, different each time."""
    return json.dumps({"probe": uuid.uuid4().hex, "filler": _FILLER}).encode()


def _is_ours(data: bytes) -> bool:
    """Whether this or an earlier version of the program wrote the probe."""
    return data.startswith(b"Shows that this store") or (data.startswith(b'{"probe"') and data.endswith(b'"}'))
