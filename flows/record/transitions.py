"""The state transitions of a generation. All pure: the time is an argument.

```
              ┌────────────► rejected (may be claimed again: provably unpaid)
              │                 ▲
              ├► unconfirmed ───┤
              │                 ▼
(nothing) ─► claimed ───────► submitted ──► succeeded ──► archived
                                │               │
                                └───► failed ◄──┘ (a user may claim it again, or resume its task)
```

There is a function here for each arrow. Late answers and manual decisions add more, listed in `docs/ledger.md`. The
paid call happens between `claimed` and the next state, once per attempt.
"""

import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, TypedDict, Unpack

from apixo import Failed, Succeeded, VideoRequest, generation_failed
from apixo.redaction import hide_queries
from flows.record import superseded_tasks
from flows.record.generation import (
    ArchivedObject,
    Attempt,
    Generation,
    Owner,
    PaidTask,
    Problem,
    Source,
    State,
    SupersededTask,
)
from flows.record.pipeline_errors import TransitionError


class ClaimTerms(TypedDict, total=False):
    """The optional fields of a claim; see `Attempt`."""

    model: str
    price: Decimal | None
    currency: str | None
    reservation: str | None
    batch: str | None
    note: str | None
    granted_by: str | None
    waited_for: bool


WARN_EVERY: Final = timedelta(days=1)
"""How often the event that a result expires soon is sent for each generation."""


_IN_PROGRESS: Final = {
    "state": State.SUBMITTED,
    "stands_as": None,
    "stands_since": None,
    "problem": None,
    "resubmit_allowed": False,  # it was granted for the previous task or end
}
"""The fields of an attempt whose task is named or resumed."""


def claim(
    previous: Generation | None,
    *,
    key: str,
    request: VideoRequest,
    owner: Owner,
    lease_seconds: float,
    now: datetime,
    **terms: Unpack[ClaimTerms],
) -> Generation:
    """Adds a new attempt by this owner. The caller decides whether a failed generation may be tried again.

    Args:
        previous: the current record; None: there is none.
        key, request: the video. Tags and fallback models become those of this request.
        owner, lease_seconds, now, terms: fields of the attempt. The default model is the request's.
    """
    number = len(previous.attempts) + 1 if previous else 1
    terms.setdefault("model", request.model)
    attempt = Attempt(number=number, claimed_at=now, claimed_by=owner, lease_seconds=lease_seconds, **terms)
    if previous is None:
        return Generation(
            key=key, state=State.CLAIMED, request=request, attempts=(attempt,), created_at=now, updated_at=now
        )
    if previous.state not in (State.REJECTED, State.FAILED):
        raise TransitionError(f"{key} is {previous.state}: it cannot be claimed", key=key)
    return previous.model_copy(
        update={
            "state": State.CLAIMED,
            "request": request,
            "attempts": (*previous.attempts, attempt),
            "updated_at": now,
        }
    )


def submitted(
    generation: Generation,
    *,
    attempt_number: int,
    task_id: str,
    now: datetime,
    named_by: Source = "reply",
    note: str | None = None,
) -> Generation:
    """The provider accepted this attempt as this task, even if the attempt was unconfirmed or considered unpaid.

    The attempt may no longer be the last: a user may have resubmitted meanwhile. If no later attempt is known to be
    paid, its task becomes that of the generation, in a new attempt; otherwise it is recorded as superseded.

    Args:
        named_by: who named the task.
        note: for users, if it was not the reply to the paid call. It is added to earlier notes. No run waits for the
            end then: the run that made the call has lost its answer.
    """
    attempt = generation.attempts[attempt_number - 1]
    if task_id in generation.task_ids:
        return _confirmed(generation, attempt_number, task_id, named_by, now=now)
    more: dict[str, Any] = {} if note is None else {"note": attempt.noted(note), "waited_for": False}
    if attempt.task_id is not None:
        # A user or a callback named a task before the reply arrived. The reply counts, unless a video is already
        # archived: then its task is superseded, though paid for. A callback's task was paid for as well: a proxy may
        # have sent the paid call twice, which makes two tasks with the same callback URL.
        was = f"a {attempt.named_by} named {attempt.task_id} before the reply came"
        if attempt.named_by not in ("person", "callback") or generation.state is State.ARCHIVED:
            return superseded_tasks.one_more(generation, attempt_number, task_id, named_by, now=now)
        more["note"] = attempt.noted(f"{note}; {was}" if note else was)
        if attempt.named_by == "callback":
            before = SupersededTask(task_id=attempt.task_id, folder=attempt.folder or "", named_by="callback")
            more["superseded"] = (*attempt.superseded, before)
    changed = _follow_late_task(_with_task(generation, attempt_number, task_id, named_by, more, now=now))
    # A task of an earlier attempt, when a later one counts: paid for as well, so its video is archived too.
    return changed if changed.task_id == task_id else superseded_tasks.with_own_task(changed, attempt_number, now=now)


def _confirmed(generation: Generation, number: int, task_id: str, named_by: Source, *, now: datetime) -> Generation:
    """The provider names a task that the record already has. If only a user had named it, it is now confirmed.

    If the provider answers a repeated request with the first request's task, this attempt shares that task, even if
    another task has superseded it in its own attempt.
    """
    for attempt in generation.attempts:
        if attempt.task_id == task_id and attempt.named_by == "person":
            generation = generation.with_attempt(attempt.number, {"named_by": named_by}, now=now)
    if generation.attempts[number - 1].state not in (State.CLAIMED, State.UNCONFIRMED):
        return generation
    listed: list[tuple[Attempt, Attempt | SupersededTask]] = [(attempt, attempt) for attempt in generation.attempts]
    listed += [(attempt, item) for attempt in generation.attempts for item in attempt.superseded]
    attempt, task = next(pair for pair in listed if pair[1].task_id == task_id)
    update: dict[str, Any] = {"task_id": task_id, "named_by": task.named_by, "folder": task.folder}
    update |= {"model": attempt.model, "state": State.SUBMITTED, "submitted_at": now, "problem": None}
    return _follow_late_task(generation.with_attempt(number, update, now=now))


def resolved(generation: Generation, *, attempt_number: int, task_id: str, now: datetime) -> Generation:
    """A user names the task of the last attempt, as long as nothing is archived.

    A previous task that the provider had named was paid for too, so it stays in the record as superseded. One that a
    user had named was a mistake: only the note mentions it. If the named task is the failed attempt's own, it is
    resumed: it was given up, and may still have a result.

    Raises:
        TransitionError: it is archived, or there is a newer attempt than the one the decision was about.
    """
    attempt = generation.attempt
    if attempt.task_id == task_id:
        return _resumed(generation, now=now)
    if attempt.number != attempt_number or generation.state is State.CLAIMED:
        raise TransitionError(
            f"{generation.key} was submitted again meanwhile, in attempt {attempt.number}", key=generation.key
        )
    if generation.state is State.ARCHIVED:
        raise TransitionError(f"{generation.key} is archived, as task {attempt.task_id}", key=generation.key)
    note = "a person named the task" + (f"; it was {attempt.task_id} before" if attempt.task_id else "")
    superseded = {item.task_id: item for item in attempt.superseded}
    before = superseded.pop(task_id, None)  # if set, the user returns to a paid task
    if attempt.task_id is not None and attempt.named_by != "person":
        superseded[attempt.task_id] = SupersededTask(
            task_id=attempt.task_id, folder=generation.task.folder, named_by=attempt.named_by
        )
    more: dict[str, Any] = {
        "note": attempt.noted(note),
        "superseded": tuple(superseded.values()),
        "taken_by_person": True,
    }
    if before is not None:
        more["folder"] = before.folder
    return _with_task(generation, attempt.number, task_id, before.named_by if before else "person", more, now=now)


def _resumed(generation: Generation, *, now: datetime) -> Generation:
    """A user confirms its task. A failed generation is in progress again, and its time starts over."""
    attempt = generation.attempt
    if generation.state is State.ARCHIVED or (generation.state is not State.FAILED and attempt.taken_by_person):
        return generation
    if generation.state is not State.FAILED:
        return generation.with_attempt(attempt.number, {"taken_by_person": True}, now=now)
    update = {
        "note": attempt.noted("a person resumed the task"),
        "submitted_at": now,
        "taken_by_person": True,
    }
    return generation.with_attempt(attempt.number, _IN_PROGRESS | update, now=now)


def failure_taken_back(generation: Generation, *, attempt_number: int, task_id: str, now: datetime) -> Generation:
    """The provider takes back a task's failure. The task is in progress again, so that its video is archived.

    If a later attempt counts, the video is archived alongside.
    """
    attempt = generation.attempts[attempt_number - 1]
    if attempt.state is not State.FAILED or attempt.task_id != task_id:
        return generation
    update = {"note": attempt.noted("the task has not failed after all"), "submitted_at": now}
    if attempt.folder is None:  # a schema 1 record, whose attempts shared a folder
        update["folder"] = generation.next_folder
        generation = generation.model_copy(update={"tasks_named": generation.next_naming})
    changed = _follow_late_task(generation.with_attempt(attempt_number, _IN_PROGRESS | update, now=now))
    if changed.task_id == task_id:
        return changed
    return superseded_tasks.with_own_task(changed, attempt_number, now=now)


def rejected(generation: Generation, *, attempt_number: int, problem: Problem, now: datetime) -> Generation:
    """The provider provably did not accept this attempt, even if another process has considered its owner dead."""
    if generation.attempts[attempt_number - 1].state not in (State.CLAIMED, State.UNCONFIRMED):
        return generation
    return _follow_late_task(
        generation.with_attempt(attempt_number, {"state": State.REJECTED, "problem": problem}, now=now)
    )


def resubmit_allowed(generation: Generation, *, attempt_number: int, note: str, now: datetime) -> Generation:
    """A user decides that the generation may be submitted again, because this attempt was rejected or failed.

    Raises:
        TransitionError: there is a newer attempt than the one decided about, or its state is not unconfirmed, rejected
            or failed, or it failed permanently.
    """
    attempt = generation.attempt
    if attempt.number != attempt_number:
        raise TransitionError(
            f"{generation.key} was submitted again meanwhile, in attempt {attempt.number}; check that first",
            key=generation.key,
        )
    note = attempt.noted(note)
    match generation.state:
        case State.REJECTED:
            return generation
        case State.FAILED if attempt.resubmit_allowed:
            return generation
        case State.UNCONFIRMED:
            return generation.with_attempt(attempt.number, {"state": State.REJECTED, "note": note}, now=now)
        case State.FAILED if not generation.permanently_failed:
            return generation.with_attempt(attempt.number, {"resubmit_allowed": True, "note": note}, now=now)
        case State.FAILED:
            why = "it failed for a reason that applies to any retry of the same request; change it, and use a new key"
        case State.CLAIMED:
            why = "it is being submitted right now; try again in a moment"
        case _:
            why = f"it is {generation.state}: APIXO accepted it as task {generation.task_id}"
    raise TransitionError(f"{generation.key} cannot be submitted again: {why}.", key=generation.key)


def unconfirmed(generation: Generation, *, attempt_number: int, problem: Problem, now: datetime) -> Generation:
    """This attempt got no clear answer, or its owner died before recording one."""
    if generation.attempts[attempt_number - 1].state is not State.CLAIMED:
        return generation
    return _follow_late_task(
        generation.with_attempt(attempt_number, {"state": State.UNCONFIRMED, "problem": problem}, now=now)
    )


def succeeded(generation: Generation, status: Succeeded, *, now: datetime) -> Generation:
    """The provider finished the task. A task that was reported as failed may still succeed, and is paid for.

    Raises:
        SupersededError: the generation has another task now.
    """
    if generation.task_id != status.task_id:
        raise superseded_tasks.superseded_error(generation, status.task_id)
    if generation.state in (State.SUCCEEDED, State.ARCHIVED):
        return generation
    update = {"state": State.SUCCEEDED, "problem": None, "stands_as": None, "stands_since": None}
    changed = generation.with_attempt(generation.attempt.number, update, now=now)
    return changed.model_copy(
        update={
            "succeeded_at": now,
            "result_urls": tuple(_unsigned(url) for url in status.result_urls),
            "provider_times_ms": {
                "created": status.create_time_ms,
                "completed": status.complete_time_ms,
                "cost": status.cost_time_ms,
            },
        }
    )


def stands_as(generation: Generation, task_id: str, word: str | None, *, now: datetime) -> Generation:
    """Records when a task's undocumented state was first seen; None as `word`: its state is documented again."""
    attempt = generation.attempt
    is_open = generation.state in (State.SUBMITTED, State.SUCCEEDED)
    if not is_open or attempt.task_id != task_id or attempt.stands_as == word:
        return generation
    update = {"stands_as": word, "stands_since": None if word is None else now}
    return generation.with_attempt(attempt.number, update, now=now)


def failed(generation: Generation, status: Failed, *, now: datetime, after: State = State.SUBMITTED) -> Generation:
    """The task failed; or, with `after` SUCCEEDED, its result is no longer available.

    Raises:
        SupersededError: the generation has another task now.
    """
    if generation.task_id != status.task_id:
        raise superseded_tasks.superseded_error(generation, status.task_id)
    if generation.state is not after:
        return generation
    error = generation_failed(status.fail_code, status.fail_message, task_id=status.task_id)
    problem = Problem(
        kind=type(error).__name__,
        code=status.fail_code[:200],
        message=hide_queries(status.fail_message)[:1000],
        retryable=not error.permanent,
    )
    return generation.with_attempt(generation.attempt.number, {"state": State.FAILED, "problem": problem}, now=now)


def archived(
    generation: Generation,
    *,
    task: PaidTask,
    objects: tuple[ArchivedObject, ...],
    warnings: tuple[str, ...],
    now: datetime,
) -> Generation:
    """The video of this task is in the archive and was read back. The first process to archive wins.

    The video of a superseded task is recorded alongside; the state then does not change.

    Raises:
        SupersededError: the record no longer has this task.
        TransitionError: the task has not succeeded.
    """
    if generation.task_id != task.task_id:
        return superseded_tasks.archived(generation, task, objects, now=now)
    if generation.state is State.ARCHIVED:
        return generation
    if generation.state is not State.SUCCEEDED:
        raise TransitionError(f"{generation.key} is {generation.state}: it cannot become archived", key=generation.key)
    changed = generation.with_attempt(generation.attempt.number, {"state": State.ARCHIVED}, now=now)
    return changed.model_copy(update={"objects": objects, "warnings": warnings, "archived_at": now})


def warned(generation: Generation, *, now: datetime) -> Generation:
    """Records that a warning of its expiry is published, unless there was one within the last `WARN_EVERY`."""
    if generation.warned_at is not None and now - generation.warned_at < WARN_EVERY:
        return generation
    return generation.model_copy(update={"warned_at": now})


def _follow_late_task(generation: Generation) -> Generation:
    """If the last attempt is not known to be paid and an earlier one is, the earlier one's task counts.

    The late answer may come before or after the last attempt was rejected or became unconfirmed. Without this, a paid
    video would be lost, and the generation could be paid again.
    """
    if generation.state not in (State.REJECTED, State.UNCONFIRMED):
        return generation
    for attempt in reversed(generation.attempts):
        later = {other.task_id for other in generation.attempts[attempt.number :]}
        if attempt.state is State.SUBMITTED and attempt.task_id not in later:
            note = f"the late answer to attempt {attempt.number}"
            adopted = attempt.model_copy(
                update={"number": len(generation.attempts) + 1, "note": note, "superseded": ()}
            )
            return generation.model_copy(update={"attempts": (*generation.attempts, adopted), "state": State.SUBMITTED})
    return generation


def _with_task(
    generation: Generation,
    number: int,
    task_id: str,
    named_by: Source | None,
    more: dict[str, Any],
    *,
    now: datetime,
) -> Generation:
    """Binds a task to an attempt, with a folder that no other task of this key ever had."""
    update = {
        "task_id": task_id,
        "named_by": named_by,
        "folder": generation.next_folder,
        "submitted_at": now,
    }
    changed = generation.with_attempt(number, _IN_PROGRESS | update | more, now=now)
    return changed.model_copy(update={"tasks_named": generation.next_naming})


def _unsigned(url: str) -> str:
    """The URL without its query. Cut here, because `hide_queries` searches text for URLs and stops at quotes."""
    return hide_queries(re.split(r"[?#]", url, maxsplit=1)[0])
