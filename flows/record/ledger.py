"""The ledger: one JSON record per generation, changed only by conditional writes.

`ledger/<key>.json` is the record. `open/<key>` marks an unfinished generation: it is written before the claim and
removed last, so that a search for unfinished work lists only what is open. `tasks/<task id>` says which generation a
task belongs to; conditional writes keep every task out of a second record. `requests/<digest>` names the key under
which a request was first submitted.
"""

import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from apixo import VideoRequest
from apixo.video_request import STORED
from blocks.object_store import ObjectStore
from blocks.probe import ensure_ready
from blocks.store_errors import PreconditionFailedError, StoreError, StoreUnavailableError
from flows.clock import Clock
from flows.concurrency import at_most
from flows.record.generation import FINISHED, SCHEMA, Generation, State
from flows.record.indexes import CLOCKS_DIFFER_AT_MOST, PROBE, RequestIndex, TaskOwners
from flows.record.pipeline_errors import LedgerError
from flows.record.recent import failed_name, newest_keys
from flows.record.run_keys import RunKeys
from flows.record.spend_objects import SpendObjects

T = TypeVar("T")

RETRY_TIMEOUT_SECONDS: Final = 60.0
"""How long to retry while the store is down. Before the paid call, nothing is lost by failing after this."""
READS_AT_ONCE: Final = 16
"""How many records are read at the same time: half of the requests that `ObjectStore` allows at once."""
PUBLISHED: Final = b"published"
"""The content of a finished generation's open marker if only its other paid tasks are awaited."""
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0


class Entry:
    """A record as it was read, with its etag, on which a change is conditional. Immutable.

    Deliberately neither a dataclass nor a tuple: Prefect walks through those, field by field, if a task gets or returns
    one.
    """

    __slots__ = ("etag", "generation")

    def __init__(self, generation: Generation, etag: str) -> None:
        self.generation, self.etag = generation, etag


class Ledger:
    """The records of one archive. Calls raise a `StoreError` if the store does not answer.

    Args:
        retry_timeout_seconds: how long to retry a call while the store is down, and a change that loses every race.
        clock: for tests.

    Attributes:
        tasks: which generation each task belongs to.
        requests: the key under which each request was first submitted.
        spend: what is spent and reserved in each month.
        run_keys: the key of each run that was started without one.
    """

    def __init__(
        self,
        store: ObjectStore,
        *,
        retry_timeout_seconds: float = RETRY_TIMEOUT_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._retry_timeout_seconds = retry_timeout_seconds
        self._clock = clock or Clock()
        self.tasks = TaskOwners(store, self._retrying)
        self.requests = RequestIndex(store, self._retrying, now=self._clock.now)
        self.spend = SpendObjects(store, self._retrying)
        self.run_keys = RunKeys(store, self._retrying)

    async def ensure_ready(self) -> None:
        """Makes sure that the bucket exists, supports conditional writes, and accepts what is written after paying.

        Raises:
            StoreError: it does not.
        """
        await self._retrying(lambda: ensure_ready(self._store, also=(PROBE,)))

    async def read(self, key: str) -> Entry | None:
        """The record of a key; None if the key was never claimed.

        Raises:
            LedgerError: there is a record, but it cannot be read.
        """
        found = await self._retrying(lambda: self._store.get(record_name(key)))
        return Entry(_parse(key, found.data), found.etag) if found else None

    async def existing(self, key: str) -> Entry:
        """The record of a key that was claimed. Raises a `LedgerError` if it no longer exists."""
        found = await self.read(key)
        if found is None:
            raise LedgerError(f"The ledger no longer has a record of {key}.", key=key)
        return found

    async def claim(self, claimed: Generation, *, over: Entry | None) -> Entry | None:
        """Writes the open marker, then the claim if the record has not changed. None: another process was faster.

        Args:
            over: the record as it was read; None: there was none.

        Raises:
            StoreError: the store did not answer. The claim may or may not exist; nothing was submitted.
        """
        await self.mark_open(claimed.key)
        etag, back = (over.etag, self._put_open) if over else (None, None)
        return await self._write(claimed, etag=etag, mark_again=back)

    async def change(self, key: str, how: Callable[[Generation], Generation], *, known: Entry | None = None) -> Entry:
        """Applies a pure change to the newest version of a record, and again if another process wrote meanwhile.

        A change that reopens a finished generation, or adds a paid task to it, also writes its open marker, before and
        after the record: a process that closes it at the same moment has seen the earlier record. A task that the
        change drops is released for its true owner. A task that it names was already bound by the caller, with the
        number of `known` if given; for a newer version it is bound again.

        Args:
            how: one of the functions of `transitions` or `superseded_tasks`. Returning its argument changes nothing.
            known: the record as the caller last saw it. It saves a read if it has not changed since.

        Raises:
            LedgerError: there is no such record.
            StoreUnavailableError: the store did not answer, or other processes wrote first until the retry timeout.
        """
        deadline = self._clock.monotonic() + self._retry_timeout_seconds
        while True:
            newest = known is None
            entry = known or await self.existing(key)
            known = None
            changed = _changed(entry.generation, how, newest=newest)
            if changed is None:
                continue
            if changed == entry.generation:
                return entry
            if newest:
                await self._rebind(entry.generation, changed)
            written = await self._replace(entry, changed)
            if written is not None:
                return written
            if newest and self._clock.monotonic() > deadline:
                # Not a LedgerError: the paid call must go on recording its answer, as in an outage.
                raise StoreUnavailableError(f"The record of {key} was changed by other processes on every attempt.")

    async def _replace(self, entry: Entry, changed: Generation) -> Entry | None:
        """Writes a new version, its open marker if it was reopened, and releases the tasks that it dropped."""
        key = changed.key
        finished = entry.generation.state in FINISHED
        reopened = finished and changed.state not in FINISHED
        gains_task = finished and len(changed.unarchived_superseded) > len(entry.generation.unarchived_superseded)
        mark = self._put_open if reopened else self._put_published if gains_task else None
        if mark is not None:
            await self._retrying(lambda: mark(key))
        written = await self._write(changed, etag=entry.etag, mark_again=mark)
        if written is None:
            return None
        for task_id in entry.generation.task_ids - written.generation.task_ids:
            await self.tasks.release(task_id, key, named=written.generation.tasks_named)
        return written

    async def duplicate_of(self, request: VideoRequest, key: str, *, note: bool) -> str | None:
        """Another key under which the same request was, or may have been, paid; None: there is none.

        Args:
            note: whether this key is about to be claimed, so that it is noted as the first one if there is none.
        """
        if note and await self.requests.note(request, key):
            return None
        while (first := await self.requests.first_key(request)) is not None and first.key != key:
            other = await self.read(first.key)
            if other.generation.may_be_paid if other else self.requests.is_recent(first):
                return first.key
            if not note or await self.requests.note(request, key, over=first):
                return None
        return None

    async def _rebind(self, before: Generation, changed: Generation) -> None:
        for attempt in changed.attempts:
            for task_id in attempt.task_ids - before.task_ids:
                owner = await self.tasks.bind(
                    task_id,
                    changed.key,
                    attempt.number,
                    named_by=attempt.named_by or "reply",
                    naming=before.next_naming,
                )
                if owner.key != changed.key:
                    raise LedgerError(f"Task {task_id} belongs to {owner.key}.", key=changed.key, task_id=task_id)

    async def mark_open(self, key: str) -> None:
        """Writes the open marker. Call it before the record becomes unfinished."""
        await self._retrying(lambda: self._put_open(key))

    async def _put_open(self, key: str) -> None:
        await self._store.put(marker_name(key), b"")

    async def _put_published(self, key: str) -> None:
        """Lets the collector process the other paid tasks of a generation. An existing marker stays as it is."""
        with contextlib.suppress(PreconditionFailedError):
            await self._store.put_if(marker_name(key), PUBLISHED, etag=None)

    async def close(self, ended: Generation) -> None:
        """Removes the open marker of a generation whose end was published and whose tasks produce no more videos.

        An archived generation stays archived. After any other end, another process may claim it again at the same
        moment, and writes the marker before the claim. After any end, a paid call's late answer may name another task.
        So if either is possible, the record is read again afterwards. The marker is restored if the generation is open
        again, or has reached another end that was not published. A claim or answer that is written after that read
        restores the marker itself.
        """
        key = ended.key
        if ended.state is not State.ARCHIVED:  # archived videos are listed by their folders
            with contextlib.suppress(StoreError):  # only used for lists
                await self._store.put(failed_name(ended), b"")
        if ended.unarchived_superseded:  # the collector closes it later, without publishing its end again
            await self._retrying(lambda: self._store.put(marker_name(key), PUBLISHED))
        else:
            await self._retrying(lambda: self._store.remove(marker_name(key)))
        if ended.state is State.ARCHIVED and not ended.may_gain_a_task:
            return
        entry = await self.read(key)
        now = None if entry is None else entry.generation
        if now is not None and (now.state not in FINISHED or now.end_id != ended.end_id):
            await self.mark_open(key)
        elif now is not None and now.unarchived_superseded:
            await self._retrying(lambda: self._put_published(key))

    async def is_published(self, key: str) -> bool | None:
        """Whether the end was published, and only other paid tasks are awaited. None: nothing is left to do."""
        marker = await self._retrying(lambda: self._store.get(marker_name(key)))
        return None if marker is None else marker.data == PUBLISHED

    async def open_keys(self) -> list[str]:
        """The keys of all unfinished generations, sorted."""
        names = await self._retrying(lambda: self._store.names("open/"))
        return [name.removeprefix("open/") for name in names]

    async def read_all(self, keys: Sequence[str]) -> dict[str, Generation]:
        """The existing records of these keys, in the order of the keys, read several at a time."""
        found = await at_most(READS_AT_ONCE, self.read, keys)
        return {key: entry.generation for key, entry in zip(keys, found, strict=True) if entry is not None}

    async def keys(self) -> list[str]:
        """The keys of all generations, sorted."""
        names = await self._retrying(lambda: self._store.names("ledger/"))
        return sorted(name.removeprefix("ledger/").removesuffix(".json") for name in names)

    async def newest(self, count: int) -> list[Generation]:
        """The newest generations by their first claim, at most this many; see `flows.record.recent`.

        If a day has more than that, the ones with the latest objects are taken.
        """
        keys = await self._retrying(lambda: newest_keys(self._store, count))
        found = await self.read_all(keys)
        return sorted(found.values(), key=lambda item: (item.created_at, item.key), reverse=True)[:count]

    async def changed_since(self, moment: datetime) -> list[Generation]:
        """All generations written since then, by any clock, and possibly some older ones.

        Raises:
            LedgerError: one of them cannot be read, so its content is unknown.
        """
        since = moment - CLOCKS_DIFFER_AT_MOST
        listed = await self._retrying(lambda: self._store.listed("ledger/"))
        names = [item.name for item in listed if item.modified >= since]
        found = await self.read_all([name.removeprefix("ledger/").removesuffix(".json") for name in names])
        return list(found.values())

    async def _write(
        self,
        generation: Generation,
        *,
        etag: str | None,
        mark_again: Callable[[str], Awaitable[None]] | None,
    ) -> Entry | None:
        """One conditional write, retried after lost replies. None: another process wrote first.

        Every try sends the same bytes with the same nonce. So if an earlier try was applied, a later one is rejected,
        and the nonce in the record shows that the earlier success of our own is the reason.

        With `mark_again`, the marker is written again afterwards, also after a write that may have been applied: a
        process that closed the previous version may have removed the marker and read the record just before our write.
        """
        stamped = generation.model_copy(update={"nonce": uuid.uuid4().hex, "schema_version": SCHEMA})
        data = stamped.model_dump_json(indent=2).encode()
        name = record_name(stamped.key)

        async def write() -> Entry | None:
            try:
                new = await self._store.put_if(name, data, etag=etag, content_type="application/json")
            except PreconditionFailedError:
                found = await self._store.get(name)
                if found is not None and found.data == data:
                    return Entry(stamped, found.etag)
                # Another process may also have changed the record after our write was applied. Our nonce is then gone,
                # and the next reader sees a version that is based on ours.
                return None
            return Entry(stamped, new)

        arrived = True
        try:
            written = await self._retrying(write)
            arrived = written is not None
        finally:
            if mark_again is not None and arrived:
                # One try: an outage at this moment must not turn a successful write into an unclear one.
                with contextlib.suppress(StoreError):
                    await mark_again(generation.key)
        return written

    async def _retrying(self, call: Callable[[], Awaitable[T]]) -> T:
        """Makes a call, and retries while the store is down. A `PreconditionFailedError` is raised at once."""
        deadline = self._clock.monotonic() + self._retry_timeout_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return await call()
            except StoreUnavailableError:
                if self._clock.monotonic() + pause > deadline:
                    raise
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _changed(generation: Generation, how: Callable[[Generation], Generation], *, newest: bool) -> Generation | None:
    """The changed record. None: it is unchanged or an error, and only the newest version can decide that."""
    try:
        changed = how(generation)
    except LedgerError:
        if newest:
            raise
        return None
    return changed if newest or changed != generation else None


def record_name(key: str) -> str:
    """The object that holds the record of a key."""
    return f"ledger/{key}.json"


def marker_name(key: str) -> str:
    """The object that marks a key as unfinished."""
    return f"open/{key}"


class _Header(BaseModel):
    """Read first, because the rest of a newer record may have any shape."""

    schema_version: int = SCHEMA
    key: str = ""


def _parse(key: str, data: bytes) -> Generation:
    try:
        header = _Header.model_validate_json(data)
        if header.schema_version > SCHEMA or header.key != key:
            raise LedgerError(
                f"The ledger's record of {key} is from a newer version of this program, or of another key "
                f"({header.key}, version {header.schema_version}). Nothing is submitted for it.",
                key=key,
            )
        return Generation.model_validate_json(data, context=STORED)
    except ValidationError as error:
        raise LedgerError(
            f"The ledger's record of {key} cannot be read ({error.error_count()} problems). Nothing is submitted for "
            f"it. Look at {record_name(key)} in the bucket.",
            key=key,
        ) from error
