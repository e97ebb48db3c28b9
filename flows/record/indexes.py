"""The ledger's indexes besides its records: which generation owns each task, and which key made a request first."""

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, TypeVar
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apixo import VideoRequest
from apixo.constants import DEFAULT_MODEL
from blocks.object_store import ObjectStore, StoredObject
from blocks.store_errors import PreconditionFailedError, StoreError, StoreUnavailableError
from flows.concurrency import at_most
from flows.record.generation import Generation, Source
from flows.record.pipeline_errors import LedgerError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

READS_AT_ONCE: Final = 16
"""How many small objects a search reads at the same time."""
CLOCKS_DIFFER_AT_MOST: Final = timedelta(minutes=15)
"""S3 rejects requests from a clock that is further off than this."""
PROBE: Final = "tasks/.probe"
"""Written before anything is paid, to check that tasks can be written: see `Ledger.ensure_ready`."""
CLAIM_FOLLOWS_WITHIN: Final = timedelta(minutes=10) + 2 * CLOCKS_DIFFER_AT_MOST
"""A key that noted a request longer ago than this, by any clock, and has no record will not claim it: its run died."""


LONGEST_PART: Final = 255
"""The most characters of an object's name between two slashes in MinIO and other stores that keep files."""


class Retrying(Protocol):
    """Makes a call to the store, and retries while the store is down."""

    def __call__(self, call: Callable[[], Awaitable[T]], /) -> Awaitable[T]: ...


class TaskOwner(BaseModel):
    """The content of `tasks/<task id>`: the paid call that the provider answered with this task."""

    model_config = ConfigDict(frozen=True)

    key: str = Field(description="Empty: it no longer has an owner.")
    attempt_number: int
    named_by: Source = Field(default="reply", description="Who named the task.")
    naming: int = Field(default=0, description="`Generation.next_naming` of the record that was going to name it.")


class TaskOwners:
    """Which generation each task belongs to. Calls raise a `StoreError` if the store does not answer.

    A task's object is created before a record names the task. So no task is ever in two records, even in a race. The
    object is never removed: if a record drops a task, a conditional write frees it. If another process is naming the
    task in that record again, it has written a higher number, and the release loses.
    """

    def __init__(self, store: ObjectStore, retrying: Retrying) -> None:
        self._store, self._retrying = store, retrying

    async def bind(
        self, task_id: str, key: str, attempt_number: int, *, named_by: Source = "reply", naming: int = 1
    ) -> TaskOwner:
        """Binds a task to an attempt, unless it belongs to another key. Returns its owner.

        Args:
            key, attempt_number: the attempt that it was paid for.
            naming: `Generation.next_naming` of the record that will name it.
        """
        owner = TaskOwner(key=key, attempt_number=attempt_number, named_by=named_by, naming=naming)

        async def write() -> TaskOwner:
            if await self._put(task_id, owner, etag=None):
                return owner
            found = await self._store.get(task_name(task_id))
            there = _parsed(TaskOwner, found, task_name(task_id)) if found else None
            if there is not None and there.key and (there.key != key or there.naming >= naming):
                return there
            if found is not None and await self._put(task_id, owner, etag=found.etag):
                return owner
            raise StoreUnavailableError(f"The owner of task {task_id} is being changed by another process.")

        return await self._retrying(write)

    async def _put(self, task_id: str, owner: TaskOwner, *, etag: str | None) -> bool:
        data = owner.model_dump_json().encode()
        try:
            await self._store.put_if(task_name(task_id), data, etag=etag, content_type="application/json")
        except PreconditionFailedError:
            return False
        return True

    async def owner(self, task_id: str) -> TaskOwner | None:
        """The owner of a task; None if it has none."""
        found = await self._retrying(lambda: self._store.get(task_name(task_id)))
        owner = _parsed(TaskOwner, found, task_name(task_id)) if found else None
        return owner if owner and owner.key else None

    async def release(self, task_id: str, key: str, *, named: int) -> None:
        """Frees a task that a user had named by mistake, for the generation that it really belongs to.

        One try: if it fails, a user who names the task for that generation gets an error with the current owner.

        Args:
            task_id: a task that the record no longer has.
            key: the record's key.
            named: `Generation.tasks_named` of the version that dropped it. A later version that names it again has
                bound it with a higher number, and keeps it.
        """
        with contextlib.suppress(StoreError, ValidationError):
            found = await self._store.get(task_name(task_id))
            owner = TaskOwner.model_validate_json(found.data) if found else None
            if found is not None and owner is not None and owner.key == key and owner.naming <= named:
                await self._put(task_id, TaskOwner(key="", attempt_number=0), etag=found.etag)

    async def noted_for(self, unanswered: Generation) -> tuple[str, TaskOwner] | None:
        """The task whose owner was recorded, but that the generation does not name: the process died in between.

        Searches all owners written since the claim, so it is only for attempts without an answer.

        Returns:
            The task id and its owner; None if none is known.
        """
        wanted = (unanswered.key, unanswered.attempt.number)
        since = unanswered.attempt.claimed_at - CLOCKS_DIFFER_AT_MOST
        listed = await self._retrying(lambda: self._store.listed("tasks/"))

        async def read(task_id: str) -> TaskOwner | None:
            with contextlib.suppress(LedgerError):  # ignore an owner that cannot be read
                return await self.owner(task_id)
            return None

        names = [item.name for item in listed if item.modified >= since and item.name != PROBE]
        recent = [*map(_task_id, names)]
        for task_id, owner in zip(recent, await at_most(READS_AT_ONCE, read, recent), strict=True):
            if owner is not None and (owner.key, owner.attempt_number) == wanted:
                return task_id, owner
        return None


class FirstKey(BaseModel):
    """The content of `requests/<digest>`."""

    key: str
    noted_at: datetime = Field(description="Before that key was claimed.")


class RequestIndex:
    """The key under which each request was first submitted, so that a renamed calendar is not paid for again.

    Calls raise a `StoreError` if the store does not answer.
    """

    def __init__(
        self, store: ObjectStore, retrying: Retrying, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store, self._retrying, self._now = store, retrying, now

    async def first_key(self, request: VideoRequest) -> FirstKey | None:
        """The key that first requested this video; None: there is none."""
        name = request_name(request)
        found = await self._retrying(lambda: self._store.get(name))
        return _parsed(FirstKey, found, name) if found else None

    async def note(self, request: VideoRequest, key: str, *, over: FirstKey | None = None) -> bool:
        """Notes that this key is about to be claimed for this video; False: another key was noted meanwhile.

        Args:
            over: an earlier key to replace, for which nothing was paid; None: there is none yet.
        """
        name = request_name(request)
        data = FirstKey(key=key, noted_at=self._now()).model_dump_json().encode()

        async def write() -> bool:
            etag = None
            if over is not None:
                found = await self._store.get(name)
                if found is None or _parsed(FirstKey, found, name) != over:
                    return False
                etag = found.etag
            try:
                await self._store.put_if(name, data, etag=etag, content_type="application/json")
            except PreconditionFailedError:
                return False
            return True

        return await self._retrying(write)

    def is_recent(self, first: FirstKey) -> bool:
        """Whether the key may still be about to be claimed."""
        return self._now() - first.noted_at < CLAIM_FOLLOWS_WITHIN


def _parsed(model: type[M], found: StoredObject, name: str) -> M:
    try:
        return model.model_validate_json(found.data)
    except ValidationError as error:
        # The message must not say that nothing was paid: a task's owner is also read after an acceptance.
        raise LedgerError(f"{name} in the bucket cannot be read. Look at what it holds.") from error


NOT_ASKED_FOR: Final = frozenset({"tags", "fallback_models"})
"""Fields that do not change the requested video: labels to find it by, and what to do if its model is unavailable."""
ADDED_LATER: Final[dict[str, object]] = {"model": DEFAULT_MODEL, "options": {}}
"""Newer fields of requests, with their defaults. They are left out of the digest if they have these values, so earlier
requests keep their digests, and calendar rows without ids their keys: otherwise these would be paid for again."""


def canonical(request: VideoRequest) -> str:
    """A request as canonical text, equal for all requests for the same video."""
    fields = request.model_dump(mode="json", exclude=set(NOT_ASKED_FOR))
    fields = {name: value for name, value in fields.items() if (name, value) not in ADDED_LATER.items()}
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def is_same_video(one: VideoRequest, other: VideoRequest) -> bool:
    """Whether two requests are for the same video: everything but their tags and fallback models is equal."""
    return canonical(one) == canonical(other)


def request_digest(request: VideoRequest) -> str:
    """The SHA-256 of a request's canonical text, in hex."""
    return hashlib.sha256(canonical(request).encode()).hexdigest()


def request_name(request: VideoRequest) -> str:
    """The object that names the first key of a request."""
    return f"requests/{request_digest(request)}"


def task_name(task_id: str) -> str:
    """The object that names a task's owner. A task id is opaque, so it is quoted, even the dots of `.` or `..`."""
    quoted = quote(task_id, safe="")
    quoted = quoted.replace(".", "%2E") if not quoted.strip(".") else quoted
    return "tasks/" + "/".join(quoted[start : start + LONGEST_PART] for start in range(0, len(quoted), LONGEST_PART))


def _task_id(name: str) -> str:
    return unquote(name.removeprefix("tasks/").replace("/", ""))
