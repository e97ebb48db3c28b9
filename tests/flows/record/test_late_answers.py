"""Late and duplicate answers, and decisions made meanwhile: which task the generation has afterward."""

from collections.abc import Callable
from typing import Any

import pytest

from flows.record import superseded_tasks, transitions
from flows.record.generation import (
    Generation,
    Source,
    State,
)
from flows.record.pipeline_errors import TransitionError

from .changes import LATER, VIDEO, allow, claimed, fail, lose, reject, resolve, store, submit, succeed


@pytest.mark.parametrize("newer_state", [None, "submitted", "archived", "failed"])
def test_late_answer_to_abandoned_attempt_is_kept_alongside_newer_attempt(newer_state: str | None) -> None:
    second = claimed(allow(lose(claimed())))
    changes: dict[str | None, Callable[[Generation], Generation]] = {
        None: lambda found: found,
        "submitted": submit,
        "archived": lambda found: store(succeed(submit(found))),
        "failed": lambda found: fail(submit(found)),
    }
    second = changes[newer_state](second)
    after = submit(second, "late", attempt_number=1)
    assert after.state is second.state
    assert after.attempt == second.attempt
    assert after.task_id == second.task_id
    assert (after.attempts[0].task_id, after.attempts[0].state) == ("late", State.SUBMITTED)
    assert after.attempts[0].note == "a person looked"
    assert submit(after, "late", attempt_number=1) == after
    later = submit(after, "later", attempt_number=1)  # one call should have one task; if it has more, none is lost
    assert later.task_ids == after.task_ids | {"later"}
    assert (later.state, later.task_id) == (after.state, after.task_id)


@pytest.mark.parametrize("then", [reject, lose])
def test_late_answer_is_adopted_if_newer_attempt_was_already_rejected_or_unconfirmed(
    then: Callable[..., Generation],
) -> None:
    adopted = submit(then(claimed(allow(lose(claimed())))), "late", attempt_number=1)
    assert (adopted.state, adopted.task_id) == (State.SUBMITTED, "late")
    assert [attempt.number for attempt in adopted.attempts] == [1, 2, 3]
    assert "attempt 1" in (adopted.attempt.note or "")
    assert store(succeed(adopted, "late")).state is State.ARCHIVED


@pytest.mark.parametrize("then", [reject, lose])
def test_late_answer_is_adopted_once_newer_attempt_becomes_rejected_or_unconfirmed(
    then: Callable[..., Generation],
) -> None:
    """Otherwise a task known to be paid would be ignored, and the generation could be paid for again."""
    known = submit(claimed(allow(lose(claimed()))), "late", attempt_number=1)
    adopted = then(known, attempt_number=2)
    assert (adopted.state, adopted.task_id) == (State.SUBMITTED, "late")
    assert [attempt.number for attempt in adopted.attempts] == [1, 2, 3]
    assert adopted.attempts[1].state is then(claimed()).state
    with pytest.raises(TransitionError):
        claimed(adopted)


def test_late_answer_is_adopted_only_once() -> None:
    adopted = reject(submit(claimed(allow(lose(claimed()))), "late", attempt_number=1), attempt_number=2)
    again = reject(claimed(fail(adopted, "late")))
    assert again.state is State.REJECTED
    assert len(again.attempts) == 4


@pytest.mark.parametrize("decide", [transitions.resubmit_allowed, transitions.resolved])
def test_manual_decision_applies_only_to_the_reviewed_attempt(decide: Callable[..., Generation]) -> None:
    found = lose(claimed(reject(claimed())))
    arguments: dict[str, Any] = {"task_id": "t1"} if decide is transitions.resolved else {"note": "I looked"}
    with pytest.raises(TransitionError, match="submitted again meanwhile, in attempt 2"):
        decide(found, attempt_number=1, now=LATER, **arguments)


def test_note_keeps_task_replaced_by_user() -> None:
    found = resolve(submit(claimed(), "wrong"), "right")
    assert found.task_id == "right"
    assert "wrong" in (found.attempt.note or "")


def test_note_keeps_every_task_replaced_by_user() -> None:
    found = resolve(resolve(submit(claimed(), "paid"), "wrong"), "right")
    note = allow(fail(found, "right")).attempt.note or ""
    assert [word for word in note.replace(";", "").split() if word in ("paid", "wrong")] == ["paid", "wrong"]
    assert note.endswith("; a person looked")


def test_paid_task_that_user_returns_to_is_kept_when_another_is_named() -> None:
    paid = submit(claimed(), "paid")
    back = resolve(resolve(paid, "wrong"), "paid")
    assert (back.attempt.named_by, back.task, back.attempt.superseded) == ("reply", paid.task, ())
    assert resolve(back, "third").task_ids == {"third", "paid"}


def test_task_named_by_user_and_reply_is_kept_when_another_is_named() -> None:
    named = submit(resolve(lose(claimed()), "paid"), "paid", attempt_number=1)
    assert named.attempt.named_by == "reply"
    assert resolve(named, "third").task_ids == {"third", "paid"}
    later = submit(resolve(lose(claimed(allow(lose(claimed())))), "paid"), "paid", attempt_number=1)
    assert resolve(later, "third").task_ids == {"third", "paid"}


def test_reply_overrides_user_until_the_video_is_archived() -> None:
    named = resolve(lose(claimed()), "named")
    assert submit(named, "paid", attempt_number=1).task_ids == {"paid"}
    archived = store(succeed(named, "named"))
    late = submit(archived, "paid", attempt_number=1)
    assert (late.task, late.state, late.objects) == (archived.task, State.ARCHIVED, archived.objects)
    assert late.task_ids == {"named", "paid"}


def test_video_of_mistaken_task_is_not_archived_as_that_of_the_right_task() -> None:
    named = resolve(lose(claimed()), "wrong")
    right = succeed(resolve(named, "right"), "right")
    with pytest.raises(TransitionError, match="has the task right, not wrong"):
        transitions.archived(right, task=named.task, objects=(VIDEO,), warnings=(), now=LATER)


@pytest.mark.parametrize("late", [reject, lose])
def test_late_rejection_or_timeout_of_abandoned_attempt_changes_nothing(late: Callable[..., Generation]) -> None:
    second = submit(claimed(allow(lose(claimed()))))
    assert late(second, attempt_number=1) == second


def test_premature_failure_is_reconciled_by_later_success() -> None:
    reconciled = succeed(fail(submit(claimed())))
    assert reconciled.state is State.SUCCEEDED
    assert reconciled.attempt.problem is None
    assert reconciled.succeeded_at == LATER


@pytest.mark.parametrize("named_by", ["person", "callback"])
@pytest.mark.parametrize("state", ["submitted", "succeeded", "failed"])
def test_reply_overrides_task_named_by_user_or_callback(named_by: Source, state: str) -> None:
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by=named_by)
    found = {"submitted": named, "succeeded": succeed(named), "failed": fail(named)}[state]
    after = submit(found, "reply", attempt_number=1)
    assert (after.state, after.task_id, after.attempt.named_by) == (State.SUBMITTED, "reply", "reply")
    assert [task.task_id for task in after.unarchived_superseded] == (["t1"] if named_by == "callback" else [])
    assert "t1" in (after.attempt.note or "")
    assert after.task.folder != found.task.folder


def test_reply_after_archiving_adds_a_superseded_task() -> None:
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by="person")
    found = store(succeed(named))
    after = submit(found, "reply", attempt_number=1)
    assert (after.state, after.task_id, after.objects) == (State.ARCHIVED, "t1", found.objects)
    assert [item.task_id for item in after.attempt.superseded] == ["reply"]


def test_resubmit_permission_ends_when_another_task_is_named() -> None:
    allowed = allow(fail(submit(claimed())))
    again = fail(resolve(allowed, "t2"), "t2")
    assert allowed.attempt.resubmit_allowed
    assert not again.attempt.resubmit_allowed


def test_second_attempt_may_be_answered_with_task_of_the_first() -> None:
    second = claimed(allow(fail(submit(claimed()))))
    found = submit(second, "t1", attempt_number=2)
    assert (found.state, found.task_id) == (State.SUBMITTED, "t1")
    assert found.task.folder == submit(claimed()).task.folder


@pytest.mark.parametrize("prepare", [lambda second: second, lose], ids=["claimed", "unconfirmed"])
def test_second_attempt_may_be_answered_with_task_replaced_by_user(
    prepare: Callable[[Generation], Generation],
) -> None:
    """Otherwise it would stay unanswered forever: each run would find the task's owner object, and change nothing."""
    first = submit(claimed())
    second = prepare(claimed(allow(fail(resolve(first, "t2"), "t2"))))
    found = submit(second, "t1", attempt_number=2)
    assert (found.state, found.task_id, found.attempt.named_by) == (State.SUBMITTED, "t1", "reply")
    assert found.task.folder == first.task.folder
    assert (found.unarchived_superseded, found.attempts[0].superseded) == ((), second.attempts[0].superseded)
    assert submit(found, "t1", attempt_number=2) == found
    assert store(succeed(found)).state is State.ARCHIVED


def test_task_listed_by_two_attempts_is_archived_once() -> None:
    """The late answer to the first attempt was adopted as the third attempt, then a user named yet another task."""
    second = claimed(allow(lose(claimed())))
    late = transitions.submitted(second, attempt_number=1, task_id="late", now=LATER, named_by="callback")
    followed = lose(late, attempt_number=2)
    assert followed.task_id == "late"
    found = resolve(followed, "another")
    assert [task.task_id for task in found.unarchived_superseded] == ["late", "late"]
    task, *_ = found.unarchived_superseded
    after = transitions.archived(found, task=task, objects=(VIDEO,), warnings=(), now=LATER)
    assert after.unarchived_superseded == ()
    noted = superseded_tasks.ended(found, "late", "lost", now=LATER)
    assert noted.unarchived_superseded == ()


def with_second_task(task_id: str = "t2") -> Generation:
    """Accepted twice: a callback named a different task than the reply."""
    return superseded_tasks.also_taken(submit(claimed()), attempt_number=1, task_id=task_id, now=LATER)


def test_reply_that_overrides_callback_keeps_all_other_paid_tasks() -> None:
    """A proxy sent the paid call three times."""
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by="callback")
    named = superseded_tasks.also_taken(named, attempt_number=1, task_id="t2", now=LATER)
    after = submit(named, "reply", attempt_number=1)
    assert after.task_id == "reply"
    assert {task.task_id for task in after.unarchived_superseded} == {"t1", "t2"}


def test_duplicate_callback_adds_its_task_once() -> None:
    once = with_second_task()
    assert superseded_tasks.also_taken(once, attempt_number=1, task_id="t2", now=LATER) == once
    assert superseded_tasks.also_taken(once, attempt_number=1, task_id="t1", now=LATER) == once
    more = superseded_tasks.also_taken(once, attempt_number=1, task_id="t3", now=LATER)
    assert [task.task_id for task in more.unarchived_superseded] == ["t2", "t3"]


def test_superseded_task_keeps_its_first_video_or_end() -> None:
    found = with_second_task()
    (task,) = found.unarchived_superseded
    other = VIDEO.model_copy(update={"sha256": "1" * 64})
    archived = superseded_tasks.archived(found, task, (VIDEO,), now=LATER)
    assert superseded_tasks.archived(archived, task, (other,), now=LATER) == archived
    assert superseded_tasks.ended(archived, "t2", "lost", now=LATER) == archived
    ended = superseded_tasks.ended(found, "t2", "lost", now=LATER)
    assert superseded_tasks.ended(ended, "t2", "another reason", now=LATER) == ended


def test_task_is_polled_with_the_model_it_was_accepted_for() -> None:
    """The second attempt was made with another model, but is answered with the first attempt's task."""
    failed = allow(fail(submit(claimed())))
    second = claimed(failed, model="kling-3-0-turbo")
    assert submit(second, "t1", attempt_number=2).task.model == failed.attempt.model == "sora-2"


def test_superseded_late_answer_records_who_named_it() -> None:
    second = submit(claimed(allow(lose(claimed()))), "t2")
    after = transitions.submitted(second, attempt_number=1, task_id="late", now=LATER, named_by="callback")
    assert [item.named_by for item in after.attempts[0].superseded] == ["callback"]
    (task,) = after.unarchived_superseded
    assert transitions.archived(after, task=task, objects=(VIDEO,), warnings=(), now=LATER).unarchived_superseded == ()
