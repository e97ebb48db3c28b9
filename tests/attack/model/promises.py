"""The promises, as what must hold of a record, of its changes, and of what the provider has charged."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from flows.record.generation import FINISHED, ArchivedObject, Attempt, Generation, State, SupersededTask
from flows.record.indexes import TaskOwner
from tests.attack.model.provider import Provider

MOVES: Final = {
    State.CLAIMED: {State.SUBMITTED, State.REJECTED, State.UNCONFIRMED},
    State.UNCONFIRMED: {State.SUBMITTED, State.REJECTED},
    State.REJECTED: {State.CLAIMED, State.SUBMITTED},
    State.SUBMITTED: {State.SUCCEEDED, State.FAILED},
    State.FAILED: {State.CLAIMED, State.SUCCEEDED, State.SUBMITTED},
    State.SUCCEEDED: {State.ARCHIVED, State.SUBMITTED, State.FAILED},
    State.ARCHIVED: set(),
}
"""The arrows of the drawing in `flows.record.transitions`, and what may come late: a person or a callback names the
task of what was taken for unpaid, a person names another one for what failed or is not archived yet, or a task once
called failed ends well."""


ROUNDING_SECONDS: Final = 1e-6
"""A sum of pauses may come out that much too small."""


@dataclass
class Permissions:
    """What persons have allowed: to pay for a generation once more.

    Attributes:
        allowed: attempts after which a person allowed another submission, by key and number.
        granted: the reruns of a person, by the name of the Prefect state.
    """

    allowed: set[tuple[str, int]] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)


def broken_by_change(  # noqa: C901, PLR0912 - a list of rules
    old: Generation | None, new: Generation, paid_for: set[str]
) -> Iterator[str]:
    """What is wrong with a step from one version of a record to the next.

    `paid_for` are the tasks that the record had before and that the provider itself had named.
    """
    if old is None:
        if (new.state, len(new.attempts)) != (State.CLAIMED, 1):
            yield "a record began otherwise than with a claim"
        return
    if (new.key, new.request, new.created_at) != (old.key, old.request, old.created_at):
        yield "a record became that of another generation"
    if new.state is not old.state and new.state not in MOVES[old.state]:
        yield "no arrow leads there"
    if len(new.attempts) < len(old.attempts):
        yield "attempts were forgotten"
    if [attempt.number for attempt in new.attempts] != list(range(1, len(new.attempts) + 1)):
        yield "attempts are not counted from 1"
    if old.state is State.ARCHIVED and (new.state is not State.ARCHIVED or new.objects != old.objects):
        yield "an archived generation changed"
    if len(new.attempts) > len(old.attempts):
        if new.attempt.state is State.CLAIMED and old.permanently_failed:
            yield "it was claimed again, and the same request cannot succeed"
        if new.attempt.state is State.CLAIMED and old.state not in (State.REJECTED, State.FAILED):
            yield f"it was claimed again while it was {old.state}"
        if not adopted(new.attempt) and new.attempts[: len(old.attempts)] != old.attempts:
            yield "a new claim changed earlier attempts"
    text = " ".join(attempt.note or "" for attempt in new.attempts)
    kept = new.task_ids
    yield from (f"task {task_id} was forgotten" for task_id in old.task_ids - kept if not mentions(text, task_id))
    yield from (f"task {task_id} was paid for and dropped" for task_id in sorted(paid_for - kept))
    lies_beside = {item.task_id: item.objects for item in superseded(old) if item.objects}
    for item in superseded(new):
        if lies_beside.get(item.task_id, item.objects) != item.objects:
            yield f"what lies beside of task {item.task_id} changed"
    for before in old.attempts[: len(new.attempts)]:
        for task_id in mentioned(before):
            if not mentions(text, task_id) and task_id not in kept:
                yield f"task {task_id} was forgotten, which a person had replaced"


def broken_by_charges(record: Generation | None, key: str, provider: Provider, people: Permissions) -> Iterator[str]:
    """What is wrong with what the provider has charged for a key, given what the record says."""
    for (about, number), posts in provider.posts.items():
        if about == key and posts > 1:
            yield f"{posts} requests were sent for attempt {number}"
    charged = provider.charged(key)
    if charged and record is None:
        yield "paid without a record"
    if record is None:
        return
    attempts = record.attempts
    grants = Counter(attempt.granted_by for attempt in attempts if not adopted(attempt))
    yield from (f"{grant} paid for {times} attempts" for grant, times in grants.items() if grant and times > 1)
    for before, after in itertools.pairwise(charged):
        allowed = any((key, number) in people.allowed for number in range(before.attempt, after.attempt))
        granted = any(
            attempt.granted_by in people.granted
            for attempt in attempts[before.attempt : after.attempt]
            if not adopted(attempt)
        )
        if not allowed and not granted:
            yield f"paid for attempts {before.attempt} and {after.attempt}, and nobody allowed the second"
    for task in charged:
        if len(attempts) < task.attempt:
            yield f"attempt {task.attempt} was paid and is not in the record"
            continue
        attempt = attempts[task.attempt - 1]
        if task.task_id in record.task_ids or task.task_id in mentioned(attempt):
            continue
        if attempt.state is State.REJECTED and (key, task.attempt) not in people.allowed:
            yield f"attempt {task.attempt} was paid as {task.task_id}, and the record says that it was not"


def broken_by_loss(record: Generation, known: set[str]) -> Iterator[str]:
    """Tasks whose acceptance was written down by its paid call, and that the record does not have."""
    yield from (f"task {task_id} was known and is lost" for task_id in sorted(known - record.task_ids))


def broken_by_owners(record: Generation, owners: dict[str, TaskOwner]) -> Iterator[str]:
    """Tasks of a record whose owner object is missing, or names another key: another record could take them."""
    for task_id in sorted(record.task_ids):
        owner = owners.get(task_id)
        if owner is None or owner.key != record.key:
            yield f"task {task_id} is in the record of {record.key}, and its owner is {owner and owner.key}"


def broken_by_neglect(record: Generation) -> Iterator[str]:
    """Tasks that the record has as paid and under way, while it takes the generation for not, or not known to be, paid.

    Nobody would bring them home, and the generation would be open for another payment.
    """
    if record.state not in (State.REJECTED, State.UNCONFIRMED):
        return
    for attempt in record.attempts:
        later = {other.task_id for other in record.attempts[attempt.number :]}
        if attempt.state is State.SUBMITTED and attempt.task_id not in later:
            yield f"task {attempt.task_id} is paid, and the generation is {record.state}"


def broken_by_sharing(records: dict[str, Generation]) -> Iterator[str]:
    """Tasks that two generations have."""
    having = Counter(task_id for record in records.values() for task_id in record.task_ids)
    yield from (f"task {task_id} belongs to {times} generations" for task_id, times in having.items() if times > 1)


def broken_by_duplicates(records: dict[str, Generation], provider: Provider, permissions: Permissions) -> Iterator[str]:
    """Two keys that were paid for the same request, though every run refused that.

    Not where an attempt was rejected, or a person said that it was not taken: the request is then free for another key.
    """
    paid = [key for key in records if provider.charged(key)]
    rejected = any(attempt.state is State.REJECTED for key in paid for attempt in records[key].attempts)
    decided = any(key in paid for key, _ in permissions.allowed)
    if len(paid) > 1 and not rejected and not decided:
        yield f"{' and '.join(paid)} were both paid for the same request"


def broken_by_haste(
    old: Generation | None, new: Generation, *, claimed: dict[tuple[str, int], float], now: float
) -> Iterator[str]:
    """A claim that was given up before its lease was over, while its owner may well have lived."""
    for attempt in old.attempts if old else ():
        after = new.attempts[attempt.number - 1]
        given_up = after.problem is not None and after.problem.kind == "OwnerDied" and attempt.problem is None
        if given_up and now - claimed[new.key, attempt.number] < attempt.lease_seconds - ROUNDING_SECONDS:
            yield f"attempt {attempt.number} was given up before its lease was over"


def broken_by_silence(record: Generation, reported: set[str]) -> Iterator[str]:
    """An end whose marker is gone, though Prefect has not confirmed it: nobody would tell it any more."""
    if record.state in (State.ARCHIVED, State.FAILED) and record.end not in reported:
        yield f"{record.key} is {record.state}, nobody was told, and it is not marked as open"


def may_come_home(record: Generation) -> bool:
    """Whether somebody has to process it."""
    return record.state not in FINISHED or bool(record.beside)


def superseded(record: Generation) -> list[SupersededTask]:
    """The paid tasks that others have replaced."""
    return [item for attempt in record.attempts for item in attempt.superseded]


def named_by_the_provider(record: Generation) -> set[str]:
    """The tasks that were paid for, as far as the record knows: no person's mistake can be among them."""
    own = {attempt.task_id for attempt in record.attempts if attempt.named_by in ("reply", "callback")}
    return {task_id for task_id in own if task_id} | {item.task_id for item in superseded(record)}


def folders(record: Generation) -> Iterator[tuple[str, str]]:
    """Each task and where its objects go."""
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
        yield from ((item.task_id, made) for made in item.objects if made.kind == "video")


def objects(record: Generation) -> list[ArchivedObject]:
    """All that was archived."""
    return [*record.objects, *(made for item in superseded(record) for made in item.objects)]


def adopted(attempt: Attempt) -> bool:
    """Whether it stands for the late answer to an earlier attempt, and was never claimed."""
    return "the late answer to attempt" in (attempt.note or "")


def mentioned(attempt: Attempt) -> list[str]:
    """The tasks that its note names."""
    return [word.strip(";,.") for word in (attempt.note or "").split() if word.startswith("task_")]


def mentions(text: str, task_id: str) -> bool:
    """Whether a text names this task."""
    return task_id in [word.strip(";,.") for word in text.split()]
