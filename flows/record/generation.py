"""The record of one generation: the request, every paid call, and its outcome."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from apixo import GenerationFailedError, GivenUpError, VideoRequest, generation_failed
from apixo.constants import DEFAULT_MODEL
from flows.record import object_names
from flows.record.pipeline_errors import LedgerError

SCHEMA: Final = 3
"""The version of the record's schema. A reader rejects newer ones. 2: each task has a folder. 3: each attempt has a
model."""


class State(StrEnum):
    """The state of a generation."""

    CLAIMED = "claimed"
    SUBMITTED = "submitted"
    SUCCEEDED = "succeeded"
    ARCHIVED = "archived"
    REJECTED = "rejected"
    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"


PAID: Final = frozenset({State.SUBMITTED, State.SUCCEEDED, State.ARCHIVED})
"""The provider accepted the task: there is nothing left to submit."""
FINISHED: Final = frozenset({State.ARCHIVED, State.REJECTED, State.FAILED})
"""Nothing is left to do automatically: the open marker is removed."""


class StoredModel(BaseModel):
    """Base of stored models. Keeps fields that a newer version has added."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Owner(StoredModel):
    """Who made a claim."""

    host: str = Field(description="Host name of the machine.")
    pid: int = Field(description="Process id on that machine.")
    flow_run_id: str | None = Field(default=None, description="The Prefect flow run.")


class Problem(StoredModel):
    """Why an attempt failed."""

    kind: str = Field(description="Name of the error's class.")
    code: str = Field(default="", description="The provider's code or failCode.")
    message: str = Field(description="What happened, for a person.")
    retryable: bool = Field(default=False, description="Whether the same request may succeed later.")
    retry_after_seconds: float | None = Field(default=None, description="How long the provider asked to wait.")


Kind = Literal["video", "poster", "sidecar"]


class ArchivedObject(StoredModel):
    """One object in the archive, as it was read back."""

    kind: Kind
    bucket: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    codec: str | None = Field(default=None, description="Video only.")
    duration_seconds: float | None = Field(default=None, description="Video only.")
    width: int | None = Field(default=None, description="Pixels, as displayed.")
    height: int | None = Field(default=None, description="Pixels, as displayed.")
    has_audio: bool | None = Field(default=None, description="Video only.")
    has_c2pa: bool | None = Field(default=None, description="Video only: holds a C2PA manifest of how it was made.")
    damaged: bool = Field(default=False, description="Kept as it came, for a day of fetching brought nothing better.")

    @property
    def file_name(self) -> str:
        """The last part of its name."""
        return self.name.rpartition("/")[2]


class PaidTask(StoredModel):
    """A task that was paid for. Everything after the paid call is bound to it, not just to the key."""

    key: str
    attempt_number: int
    task_id: str
    model: str = Field(default=DEFAULT_MODEL, description="The model it was submitted with, and is polled with.")
    folder: str = Field(description="Where its objects go: a folder that no other task of any key has.")


Source = Literal["reply", "callback", "person"]
"""Who named a task: the provider's reply to the paid call, its callback, or a person."""


class SupersededTask(StoredModel):
    """A task of an attempt in which another task counts. The provider accepted it, so it is paid for as well."""

    task_id: str
    folder: str
    named_by: Source | None = Field(default=None, description="Who named it, as in the attempt. Never a person.")
    objects: tuple[ArchivedObject, ...] = Field(default=(), description="Its video, if it was archived alongside.")
    ended: str | None = Field(default=None, description="Why it will not produce a video, if that is known.")


class Attempt(StoredModel):
    """One paid call, from its claim to its end."""

    number: int = Field(description="1 for the first.")
    model: str = Field(default=DEFAULT_MODEL, description="The model it was claimed for; older records have none.")
    price: Decimal | None = Field(default=None, description="What it costs if accepted, by the block at the claim.")
    currency: str | None = Field(default=None, description="Currency of the price, as named in the block.")
    reservation: str | None = Field(default=None, description="The reservation it used, if there is a ceiling.")
    batch: str | None = Field(default=None, description="The key of the batch that it belongs to.")
    claimed_at: datetime = Field(description="When it was claimed, by the claimer's clock.")
    claimed_by: Owner
    lease_seconds: float = Field(description="Without an answer for this long, the owner counts as dead.")
    state: State = Field(default=State.CLAIMED, description="How far this attempt came.")
    task_id: str | None = Field(default=None, description="The provider's task, once it is known.")
    named_by: Source | None = Field(default=None, description="Who named the task; None in older records.")
    folder: str | None = Field(default=None, description="Where the task's objects go; None in older records.")
    superseded: tuple[SupersededTask, ...] = Field(default=(), description="Paid tasks that another one replaced.")
    submitted_at: datetime | None = Field(default=None, description="When the provider's acceptance was known.")
    stands_as: str | None = Field(
        default=None, description="What APIXO reports about the task instead of a documented state."
    )
    stands_since: datetime | None = Field(default=None, description="When that was first seen.")
    problem: Problem | None = None
    note: str | None = Field(default=None, description="What a person or a callback changed, or why it was made.")
    granted_by: str | None = Field(
        default=None,
        description="The Prefect state by which a person requested this attempt after a failure, or the setting.",
    )
    resubmit_allowed: bool = Field(default=False, description="A person allowed to pay again after it failed.")
    taken_by_person: bool = Field(
        default=False, description="A person continued with its task, and was told that it pays nothing."
    )
    waited_for: bool = Field(default=False, description="The run that claimed it waits for its end, if still alive.")

    @property
    def since(self) -> datetime:
        """When it was submitted, or, while that is unknown, when it was claimed."""
        return self.submitted_at or self.claimed_at

    @property
    def task_ids(self) -> frozenset[str]:
        """Its task, and those that were superseded."""
        own = () if self.task_id is None else (self.task_id,)
        return frozenset((*own, *(item.task_id for item in self.superseded)))

    def noted(self, note: str) -> str:
        """Its note with another one appended: an earlier note may be all that is left of a paid task's id."""
        return f"{self.note}; {note}" if self.note else note


class Generation(StoredModel):
    """One video, from its claim to the archive: the ledger's record and the result of `generate-video`."""

    schema_version: int = SCHEMA
    key: str
    state: State
    request: VideoRequest
    attempts: tuple[Attempt, ...] = Field(min_length=1, description="Every paid call so far; the last one counts.")
    created_at: datetime
    updated_at: datetime
    succeeded_at: datetime | None = None
    archived_at: datetime | None = None
    result_urls: tuple[str, ...] = Field(default=(), description="Without their queries, which may be signatures.")
    provider_times_ms: dict[str, int | None] = Field(
        default_factory=dict, description="`created`, `completed` (Unix ms) and `cost` (ms) from the provider."
    )
    objects: tuple[ArchivedObject, ...] = ()
    warnings: tuple[str, ...] = Field(default=(), description="What differs from the request, in plain sentences.")
    warned_at: datetime | None = Field(default=None, description="When the event last warned that its result expires.")
    tasks_named: int = Field(default=0, description="How many tasks it ever had, including those that were mistakes.")
    nonce: str = Field(default="", description="Identifies the write of this version, so its writer recognizes it.")

    @property
    def attempt(self) -> Attempt:
        """The last attempt."""
        return self.attempts[-1]

    @property
    def task_id(self) -> str | None:
        """The provider's task of the last attempt."""
        return self.attempt.task_id

    @property
    def task_ids(self) -> frozenset[str]:
        """All its tasks: those of all attempts, and those that were superseded."""
        return frozenset(task_id for attempt in self.attempts for task_id in attempt.task_ids)

    @property
    def next_naming(self) -> int:
        """The value of `tasks_named` after the next task."""
        # Schema 1 records do not count their tasks.
        return 1 + (self.tasks_named or sum(attempt.task_id is not None for attempt in self.attempts))

    @property
    def next_folder(self) -> str:
        """The folder for the objects of the next task."""
        return object_names.folder(self.key, self.attempts[0].claimed_at, task_number=self.next_naming)

    @property
    def task(self) -> PaidTask:
        """The task that counts now.

        Raises:
            LedgerError: no task is known.
        """
        attempt = self.attempt
        if attempt.task_id is None:
            raise LedgerError(f"{self.key} is {self.state} and has no task.", key=self.key)
        # Schema 1 records name no folder: all their attempts shared one, by the day of the last claim.
        folder = attempt.folder or object_names.folder(self.key, attempt.claimed_at)
        return PaidTask(
            key=self.key, attempt_number=attempt.number, task_id=attempt.task_id, model=attempt.model, folder=folder
        )

    @property
    def unarchived_superseded(self) -> tuple[PaidTask, ...]:
        """The superseded paid tasks whose videos are not archived and may still come."""
        return tuple(
            PaidTask(
                key=self.key,
                attempt_number=attempt.number,
                task_id=item.task_id,
                model=attempt.model,
                folder=item.folder,
            )
            for attempt in self.attempts
            for item in attempt.superseded
            if not item.objects and item.ended is None and item.task_id != self.task_id
        )

    @property
    def may_gain_a_task(self) -> bool:
        """Whether the provider may still name another task: the reply to one of the paid calls was never read."""
        return any(attempt.named_by != "reply" for attempt in self.attempts)

    @property
    def requested(self) -> VideoRequest:
        """The request as the last attempt sent it: with the requested model or a fallback model."""
        return self.request.on(self.attempt.model)

    @property
    def video(self) -> ArchivedObject | None:
        """The archived video; None while there is none."""
        return next((item for item in self.objects if item.kind == "video"), None)

    @property
    def poster_name(self) -> str | None:
        """The name of the archived poster; None: there is none."""
        return next((item.name for item in self.objects if item.kind == "poster"), None)

    @property
    def may_be_paid(self) -> bool:
        """Whether anything was, or may have been, paid for it."""
        return any(attempt.state is not State.REJECTED for attempt in self.attempts)

    @property
    def end_id(self) -> str:
        """Identifies one end of the generation: the same key may fail again, with another task or the same one."""
        attempt = self.attempt
        return f"{self.key}:{attempt.number}:{attempt.task_id}:{attempt.since.isoformat()}:{self.state}"

    @property
    def permanently_failed(self) -> bool:
        """Whether it failed for a reason that applies to any retry of the same request."""
        problem = self.attempt.problem
        return self.state is State.FAILED and problem is not None and not problem.retryable

    @property
    def given_up(self) -> bool:
        """Whether it failed because its task was polled for too long without an end. It may still have a result."""
        problem = self.attempt.problem
        return self.state is State.FAILED and problem is not None and problem.kind == GivenUpError.__name__

    def failure(self) -> GenerationFailedError:
        """The provider's failure as an error."""
        problem = self.attempt.problem
        return generation_failed(
            problem.code if problem else "", problem.message if problem else "", task_id=self.task_id
        )

    def with_attempt(self, number: int, update: dict[str, Any], *, now: datetime) -> "Generation":
        """The record with these fields of an attempt changed. The record's state is always that of its last attempt."""
        attempts = list(self.attempts)
        attempts[number - 1] = attempts[number - 1].model_copy(update=update)
        changed: dict[str, Any] = {"attempts": tuple(attempts), "updated_at": now}
        if number == len(attempts):
            changed["state"] = attempts[-1].state
        return self.model_copy(update=changed)
