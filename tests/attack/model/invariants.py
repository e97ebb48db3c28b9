"""The invariants: what must hold for a record, for its changes, and for what the provider has charged. All pure.

Each generator yields a message for each violation.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from flows.record.generation import FINISHED, ArchivedObject, Attempt, Generation, State, SupersededTask
from flows.record.indexes import TaskOwner
from tests.attack.model.provider import Provider

TRANSITIONS: Final = {
    State.CLAIMED: {State.SUBMITTED, State.REJECTED, State.UNCONFIRMED},
    State.UNCONFIRMED: {State.SUBMITTED, State.REJECTED},
    State.REJECTED: {State.CLAIMED, State.SUBMITTED},
    State.SUBMITTED: {State.SUCCEEDED, State.FAILED},
    State.FAILED: {State.CLAIMED, State.SUCCEEDED, State.SUBMITTED},
    State.SUCCEEDED: {State.ARCHIVED, State.SUBMITTED, State.FAILED},
    State.ARCHIVED: set(),
}
"""The transitions in `docs/ledger.md`."""


ROUNDING_SECONDS: Final = 1e-6
"""A sum of sleeps may be too small by this much."""


@dataclass
class Permissions:
    """What users have allowed: paying for a generation once more.

    Attributes:
        allowed: attempts after which a user allowed another submission, as key and attempt number.
        granted: reruns by a user, as the name of the Prefect state.
    """

    allowed: set[tuple[str, int]] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)


def wrong_changes(  # noqa: C901, PLR0912 - a list of rules
    old: Generation | None, new: Generation, paid_for: set[str]
) -> Iterator[str]:
    """Violations in the change from one version of a record to the next.

    `paid_for` contains the tasks that the record had before and that were named by the provider itself.
    """
    if old is None:
        if (new.state, len(new.attempts)) != (State.CLAIMED, 1):
            yield "a record does not start with a claim"
        return
    if (new.key, new.request, new.created_at) != (old.key, old.request, old.created_at):
        yield "a record became the record of another generation"
    if new.state is not old.state and new.state not in TRANSITIONS[old.state]:
        yield "there is no such transition"
    if len(new.attempts) < len(old.attempts):
        yield "attempts were forgotten"
    if [attempt.number for attempt in new.attempts] != list(range(1, len(new.attempts) + 1)):
        yield "attempts are not numbered from 1"
    if old.state is State.ARCHIVED and (new.state is not State.ARCHIVED or new.objects != old.objects):
        yield "an archived generation changed"
    if len(new.attempts) > len(old.attempts):
        if new.attempt.state is State.CLAIMED and old.permanently_failed:
            yield "it was claimed again, though the same request cannot succeed"
        if new.attempt.state is State.CLAIMED and old.state not in (State.REJECTED, State.FAILED):
            yield f"it was claimed again while it was {old.state}"
        if not adopted(new.attempt) and new.attempts[: len(old.attempts)] != old.attempts:
            yield "a new claim changed earlier attempts"
    text = " ".join(attempt.note or "" for attempt in new.attempts)
    kept = new.task_ids
    yield from (f"task {task_id} was forgotten" for task_id in old.task_ids - kept if not mentions(text, task_id))
    yield from (f"task {task_id} was paid for and dropped" for task_id in sorted(paid_for - kept))
    archived = {item.task_id: item.objects for item in superseded(old) if item.objects}
    for item in superseded(new):
        if archived.get(item.task_id, item.objects) != item.objects:
            yield f"the archived objects of superseded task {item.task_id} changed"
    for before in old.attempts[: len(new.attempts)]:
        for task_id in mentioned(before):
            if not mentions(text, task_id) and task_id not in kept:
                yield f"task {task_id}, which a user had replaced, was forgotten"


def unpolled_failures(old: Generation | None, new: Generation, polled: dict[str, str | None]) -> Iterator[str]:
    """A claim over a failed task whose process has not just seen that it failed, or that the provider has no such task.

    `polled` contains the last answer about each task that the process has polled.
    """
    over = old is not None and old.state is State.FAILED and new.state is State.CLAIMED
    if over and old is not None and polled.get(old.task_id or "", "not polled") not in ("failed", None):
        yield f"it was claimed again over task {old.task_id}, which was not seen to have failed"


def wrong_charges(record: Generation | None, key: str, provider: Provider, permissions: Permissions) -> Iterator[str]:
    """Charges for a key that do not fit its record or the permissions."""
    for (paid_key, number), posts in provider.posts.items():
        if paid_key == key and posts > 1:
            yield f"{posts} requests were sent for attempt {number}"
    charged = provider.charged(key)
    if charged and record is None:
        yield "paid, but there is no record"
    if record is None:
        return
    attempts = record.attempts
    grants = Counter(attempt.granted_by for attempt in attempts if not adopted(attempt))
    yield from (f"{grant} paid for {times} attempts" for grant, times in grants.items() if grant and times > 1)
    for before, after in itertools.pairwise(charged):
        allowed = any((key, number) in permissions.allowed for number in range(before.attempt, after.attempt))
        granted = any(
            attempt.granted_by in permissions.granted
            for attempt in attempts[before.attempt : after.attempt]
            if not adopted(attempt)
        )
        if not allowed and not granted:
            yield f"paid for attempts {before.attempt} and {after.attempt}, but nobody allowed the second"
    for task in charged:
        if len(attempts) < task.attempt:
            yield f"attempt {task.attempt} was paid but is not in the record"
            continue
        attempt = attempts[task.attempt - 1]
        if task.task_id in record.task_ids or task.task_id in mentioned(attempt):
            continue
        if attempt.state is State.REJECTED and (key, task.attempt) not in permissions.allowed:
            yield f"attempt {task.attempt} was paid as {task.task_id}, but the record says that it was not"


def lost_tasks(record: Generation, known: set[str]) -> Iterator[str]:
    """Tasks whose acceptance was recorded by their paid call, but that are not in the record."""
    yield from (f"task {task_id} was known but is lost" for task_id in sorted(known - record.task_ids))


def wrong_owners(record: Generation, owners: dict[str, TaskOwner]) -> Iterator[str]:
    """Tasks of a record whose owner object is missing or names another key, so another record could claim them."""
    for task_id in sorted(record.task_ids):
        owner = owners.get(task_id)
        if owner is None or owner.key != record.key:
            yield f"task {task_id} is in the record of {record.key}, but its owner is {owner and owner.key}"


def abandoned_tasks(record: Generation) -> Iterator[str]:
    """Tasks that are paid and in progress, while the state of the record says unpaid, or not known to be paid.

    No process would collect them, and the generation could be paid for again.
    """
    if record.state not in (State.REJECTED, State.UNCONFIRMED):
        return
    for attempt in record.attempts:
        later = {other.task_id for other in record.attempts[attempt.number :]}
        if attempt.state is State.SUBMITTED and attempt.task_id not in later:
            yield f"task {attempt.task_id} is paid, but the generation is {record.state}"


def shared_tasks(records: dict[str, Generation]) -> Iterator[str]:
    """Tasks that belong to two generations."""
    uses = Counter(task_id for record in records.values() for task_id in record.task_ids)
    yield from (f"task {task_id} belongs to {times} generations" for task_id, times in uses.items() if times > 1)


def duplicate_payments(records: dict[str, Generation], provider: Provider, permissions: Permissions) -> Iterator[str]:
    """Two keys that were both paid for the same request, though every run refuses duplicates.

    If an attempt was rejected, or a user decided that it was not accepted, another key may use the request.
    """
    paid = [key for key in records if provider.charged(key)]
    rejected = any(attempt.state is State.REJECTED for key in paid for attempt in records[key].attempts)
    decided = any(key in paid for key, _ in permissions.allowed)
    if len(paid) > 1 and not rejected and not decided:
        yield f"{' and '.join(paid)} were both paid for the same request"


def early_expirations(
    old: Generation | None, new: Generation, *, claimed: dict[tuple[str, int], float], now: float
) -> Iterator[str]:
    """Claims that were considered dead before their lease had expired, so their owner may still have been alive."""
    for attempt in old.attempts if old else ():
        after = new.attempts[attempt.number - 1]
        expired = after.problem is not None and after.problem.kind == "OwnerDied" and attempt.problem is None
        if expired and now - claimed[new.key, attempt.number] < attempt.lease_seconds - ROUNDING_SECONDS:
            yield f"attempt {attempt.number} was considered dead before its lease had expired"


def unpublished_ends(record: Generation, published: set[str]) -> Iterator[str]:
    """An end without a marker that Prefect has not confirmed: its event would never be published."""
    if record.state in (State.ARCHIVED, State.FAILED) and record.end_id not in published:
        yield f"{record.key} is {record.state}, its event was not published, and it is not marked as open"


def is_open(record: Generation) -> bool:
    """Whether it still has to be processed."""
    return record.state not in FINISHED or bool(record.unarchived_superseded)


def superseded(record: Generation) -> list[SupersededTask]:
    """The paid tasks that were replaced by others."""
    return [item for attempt in record.attempts for item in attempt.superseded]


def named_by_the_provider(record: Generation) -> set[str]:
    """The tasks that the record knows to be paid: none of them can be a user's mistake."""
    own = {attempt.task_id for attempt in record.attempts if attempt.named_by in ("reply", "callback")}
    return {task_id for task_id in own if task_id} | {item.task_id for item in superseded(record)}


def folders(record: Generation) -> Iterator[tuple[str, str]]:
    """Each task, and the folder for its objects."""
    for attempt in record.attempts:
        if attempt.task_id is not None and attempt.folder is not None:
            yield attempt.task_id, attempt.folder
    yield from ((item.task_id, item.folder) for item in superseded(record))


def videos(record: Generation) -> Iterator[tuple[str, ArchivedObject]]:
    """Each task that was archived, with its video."""
    if record.state is State.ARCHIVED:
        assert record.video is not None
        yield record.task_id or "", record.video
    for item in superseded(record):
        yield from ((item.task_id, archived) for archived in item.objects if archived.kind == "video")


def objects(record: Generation) -> list[ArchivedObject]:
    """Everything that was archived."""
    return [*record.objects, *(archived for item in superseded(record) for archived in item.objects)]


def adopted(attempt: Attempt) -> bool:
    """Whether it records the late answer to an earlier attempt, and was never claimed itself."""
    return "the late answer to attempt" in (attempt.note or "")


def mentioned(attempt: Attempt) -> list[str]:
    """The tasks that its note names."""
    return [word.strip(";,.") for word in (attempt.note or "").split() if word.startswith("task_")]


def mentions(text: str, task_id: str) -> bool:
    """Whether a text names this task."""
    return task_id in [word.strip(";,.") for word in text.split()]
