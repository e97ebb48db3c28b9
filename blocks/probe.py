"""How a store proves, before anything is paid for, that it can keep the ledger and take a video.

The ledger stands on conditional writes: where two racing workers both believe they hold the claim, both pay. Where a
proxy changes etags or bodies on their way, a claim can be written and never be changed. Where it limits uploads, a paid
video has nowhere to go. So the probe does what a run does, through the same clients.
"""

import asyncio
import contextlib
import json
import tempfile
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from blocks.errors import (
    PreconditionFailedError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    StoreUnfitError,
    WrongClockError,
)
from blocks.object_store import INCOMING, PROBE, ObjectStore, StoredObject
from blocks.s3_errors import BUSY

RACED: Final = "probe/race"
"""Written whenever the store has passed the race and taken a large upload. Its age says when to ask for them again."""
RACE_EVERY: Final = timedelta(days=1)
LARGE_BYTES: Final = 5 * 1_048_576
"""The smallest part of an upload in parts that S3 knows: what a proxy has to let through."""
MAX_CLOCK_OFFSET_SECONDS: Final = 60.0
"""What a clock that anybody sets stays under. More is said by set-up and dry runs."""
UNUSABLE_CLOCK_OFFSET_SECONDS: Final = 600.0
"""More ends a run before it pays: S3 refuses requests that are 15 minutes off, and a wrong clock drifts on."""
BUSY_PAUSES_SECONDS: Final = (0.2, 1.0, 3.0)
"""Before a check is made again that a busy store did not let through."""
RACERS: Final = 32
TRIES: Final = 20
"""How often the probe is changed anew when other processes, which prove the same, are faster each time."""

_JSON: Final = "application/json"
_LABELS: Final = {
    "Content-Disposition": 'inline; filename="probe.mp4"',
    "Cache-Control": "max-age=31536000, immutable",
    "key": "probe",
}
"""The headers of a video's upload; see `flows.record.object_names.attributes`."""
_NO_ETAG: Final = f'"{"0" * 32}"'  # no object has it
_FILLER: Final = "Long enough that a proxy which compresses JSON compresses this too. " * 60

_proven: set[tuple[str, str]] = set()
"""The stores, by address and bucket, that have proven themselves to this process."""
_raced: set[str] = set()
"""The stores, by address, that have passed the race in this process."""


async def ensure_ready(store: ObjectStore, *, also: Sequence[str] = (), thorough: bool = False) -> None:
    """Makes the store prove itself: once per process what is cheap, once a day the race and a large upload.

    Args:
        also: further objects that must be writable: a policy may allow one folder and not the other. They stay.
        thorough: prove everything now, whatever was proven before.

    Raises:
        StoreUnfitError: it did otherwise than it must; the message says what, and what to do about it.
        StoreRefusedError: no such bucket, wrong keys, or no rights. A bucket that is gone is not made anew here: with
            it went the ledger, and every key would be paid for again.
        StoreUnavailableError: no answer.
    """
    identity = (store.url, store.bucket)
    if identity in _proven and not thorough:
        return
    if thorough:
        if found := await problems(store):
            raise found[0]
    else:
        await prove(store)
        await _prove_clock(store, UNUSABLE_CLOCK_OFFSET_SECONDS)
    for name in also:
        with contextlib.suppress(PreconditionFailedError):
            await store.put_if(name, b"Shows that this may be written.\n", etag=None)
    if not thorough and await _is_due(store):
        if store.url not in _raced:
            await prove_race(store)
            await prove_large_upload(store)
            _raced.add(store.url)
        await mark_raced(store)
    _proven.add(identity)


async def problems(store: ObjectStore) -> list[StoreError]:
    """Proves everything, whatever was proven before, and returns all that is wrong: a person can fix it at once."""
    try:
        await _patiently(prove, store)
    except StoreError as error:
        return [error]  # the rest would only repeat it
    found = []
    for check in (_prove_clock, prove_settings, prove_race, prove_large_upload):
        try:
            await _patiently(check, store)
        except StoreError as error:
            found.append(error)
    if not found:
        _raced.add(store.url)
        await mark_raced(store)
    return found


async def mark_raced(store: ObjectStore) -> None:
    """Writes down that this store has passed the race, or is of a kind that is known to."""
    await store.put(RACED, b"Shows when the store was last raced.\n")


async def prove(store: ObjectStore) -> None:
    """Creates, is refused a second creation and a change of the wrong version, reads, changes, lists and deletes.

    Any number of processes may do this at once.

    Raises:
        StoreUnfitError: the store did otherwise.
        StoreError: it refused, or did not answer.
    """
    with contextlib.suppress(PreconditionFailedError):
        await store.put_if(PROBE, _data(), etag=None, content_type=_JSON)
    for etag in (None, _NO_ETAG):
        try:
            await store.put_if(PROBE, b"This must never be written.\n", etag=etag, content_type=_JSON)
        except PreconditionFailedError:
            continue
        raise StoreUnfitError(
            "The object store ignored If-None-Match or If-Match. It cannot keep the ledger, and videos could be paid "
            "twice. Use a current MinIO, or AWS S3.",
            object_name=PROBE,
        )
    await _prove_change(store)
    if PROBE not in await store.names(PROBE.rpartition("/")[0] + "/"):
        raise StoreUnfitError(
            f"The object store's listing lacks {PROBE}, which it has. The collector finds what is open by listing. "
            "A cache or proxy in front of the store would do so: switch it off for the store.",
            object_name=PROBE,
        )
    own = f"{INCOMING}probe-{uuid.uuid4().hex}"
    await store.put_if(own, b"", etag=None)
    await store.remove(own)
    if await store.get(own) is not None:
        raise StoreUnfitError(
            f"The object store kept {own}, which it had said to delete. Has the bucket a retention rule or an object "
            "lock, or is there a cache in front of it? Neither may hold for this bucket.",
            object_name=own,
        )


async def prove_settings(store: ObjectStore) -> None:
    """Reads the bucket's lifecycle rules, where the store lets this key.

    Raises:
        StoreUnfitError: one of them would take records of the ledger away.
    """
    settings = await store.settings()
    if rules := settings.against_the_ledger():
        raise StoreUnfitError(
            f"A lifecycle rule of bucket {store.bucket} takes the ledger away: {', '.join(map(str, rules))}. A record "
            "that is gone makes its key unknown, and it would be paid again. Limit the rule to videos/ or incoming/, "
            "and keep ledger/, open/, tasks/ and requests/ out of it."
        )


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


async def prove_large_upload(store: ObjectStore) -> None:
    """Uploads 5 MiB, the most that any upload is cut down to, as a video: by one request, and in parts with a copy.

    Raises:
        StoreUnfitError: it was refused for its size, its headers or its parts.
        StoreError: it was refused for another reason, or not answered.
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
            raise _large_upload_refused(error) from error
        except StoreUnavailableError as error:
            # Small requests were answered a moment ago. A proxy may cut the connection rather than answer.
            raise StoreUnavailableError(
                f"{error} If only large uploads end so, a proxy in front of the store limits the size of requests.",
                code=error.code,
                object_name=name,
            ) from error
        finally:
            with contextlib.suppress(StoreError):
                await store.remove(name)


def _large_upload_refused(error: StoreRefusedError) -> StoreError:
    """What is in the way of a video, where small objects were taken a moment ago."""
    if error.code == "EntityTooLarge":
        return StoreUnfitError(
            f"The object store did not take an upload of {LARGE_BYTES:,} bytes, so no video could be archived: a proxy "
            "in front of it limits the size of requests. Raise its limit to 64 MB (nginx: client_max_body_size 64m).",
            code=error.code,
            object_name=error.object_name,
        )
    what = "So it is about how a whole video is uploaded, at once or in parts."
    if error.code in ("SignatureDoesNotMatch", "AccessDenied"):
        what = (
            "If the key may write to incoming/, a proxy in front of the store changes or drops headers that the upload "
            "of a video has: Content-Disposition, Cache-Control, x-amz-meta-*. Have it pass them on as they are."
        )
    return StoreRefusedError(
        f"{error} Small objects were taken. {what}", code=error.code, object_name=error.object_name
    )


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


async def _prove_change(store: ObjectStore) -> None:
    """Changes the probe with the etag of a read, as every change of a record does."""
    before: StoredObject | None = None
    for _ in range(TRIES):
        found = await _read_probe(store)
        if before is not None and found.data == before.data:
            raise StoreUnfitError(_refused_its_own(before.etag, found.etag), object_name=PROBE)
        try:
            await store.put_if(PROBE, _data(), etag=found.etag, content_type=_JSON)
        except PreconditionFailedError:  # changed since the read, or the etag is not the one that the store knows
            before = found
        else:
            return
    raise StoreUnavailableError(f"Others changed {PROBE} {TRIES} times in a row.", object_name=PROBE)


async def _read_probe(store: ObjectStore) -> StoredObject:
    try:
        found = await store.get(PROBE)
    except StoreUnavailableError as error:
        if error.code != "MissingETag":
            raise
        raise StoreUnfitError(
            "A read came back without the ETag by which the ledger changes its records. A proxy in front of the store "
            "that compresses or rewrites replies would do so: have it pass the store's replies on as they are.",
            object_name=PROBE,
        ) from error
    if found is None:
        raise StoreUnfitError(
            f"The object store does not find {PROBE}, which it had said to have. A cache in front of it, or replicas "
            "that lag behind, would do so: the ledger needs a store whose reads see the last write.",
            object_name=PROBE,
        )
    if not _is_ours(found.data):
        raise StoreUnfitError(
            f"{PROBE} came back other than it was written. A proxy in front of the store compresses or rewrites "
            "replies: switch that off for the store.",
            object_name=PROBE,
        )
    return found


def _refused_its_own(etag: str, then: str) -> str:
    """Why a store refuses a change with the etag that a read of it gave, while nobody changed the object."""
    if then != etag:
        what = f"Two reads of the same object gave the etags {etag} and {then}, and a change needs the right one."
    elif etag.startswith("W/"):
        what = f"The store's etags arrive weakened ({etag}), and it refuses a change with them."
    else:
        what = f"The object store refused a change with the etag {etag} that a read of it had given."
    return f"{what} A proxy in front of it that compresses or caches would do so: switch that off for the store."


async def _patiently(check: Callable[[ObjectStore], Awaitable[None]], store: ObjectStore) -> None:
    """Makes a check again where the store asks for it. A run has patience of its own; a person waits for this one."""
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
            "The store refuses every request once it is 15 minutes. Set the clock, best by NTP (timedatectl set-ntp "
            "true); in a container or virtual machine, that of its host."
        )


async def _is_due(store: ObjectStore) -> bool:
    listed = await store.listed(RACED.rpartition("/")[0] + "/")
    return not any(item.name == RACED and datetime.now(UTC) - item.modified < RACE_EVERY for item in listed)


def _data() -> bytes:
    """A body like a record's: JSON of some kilobytes, another one each time."""
    return json.dumps({"probe": uuid.uuid4().hex, "filler": _FILLER}).encode()


def _is_ours(data: bytes) -> bool:
    """Whether it is a probe of this or an earlier version."""
    return data.startswith(b"Shows that this store") or (data.startswith(b'{"probe"') and data.endswith(b'"}'))
