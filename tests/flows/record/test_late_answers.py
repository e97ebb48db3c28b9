"""Answers that come late or twice, and decisions that meet them: which task is the generation's then."""

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
from tests.support import KITE

from .changes import LATER, VIDEO, allow, claimed, fail, lose, reject, resolve, store, submit, succeed


@pytest.mark.parametrize("now_is", [None, "submitted", "archived", "failed"])
def test_a_late_answer_to_a_given_up_attempt_is_kept_beside_the_newer_one(now_is: str | None) -> None:
    second = claimed(allow(lose(claimed())))
    ways: dict[str | None, Callable[[Generation], Generation]] = {
        None: lambda found: found,
        "submitted": submit,
        "archived": lambda found: store(succeed(submit(found))),
        "failed": lambda found: fail(submit(found)),
    }
    second = ways[now_is](second)
    after = submit(second, "late", attempt_number=1)
    assert after.state is second.state
    assert after.attempt == second.attempt
    assert after.task_id == second.task_id
    assert (after.attempts[0].task_id, after.attempts[0].state) == ("late", State.SUBMITTED)
    assert after.attempts[0].note == "a person looked"
    assert submit(after, "late", attempt_number=1) == after
    later = submit(after, "later", attempt_number=1)  # one call has one task; if not, none of them is lost
    assert later.task_ids == after.task_ids | {"later"}
    assert (later.state, later.task_id) == (after.state, after.task_id)


@pytest.mark.parametrize("then", [reject, lose])
def test_a_late_answer_becomes_the_generations_when_nothing_is_known_to_be_paid_since(
    then: Callable[..., Generation],
) -> None:
    adopted = submit(then(claimed(allow(lose(claimed())))), "late", attempt_number=1)
    assert (adopted.state, adopted.task_id) == (State.SUBMITTED, "late")
    assert [attempt.number for attempt in adopted.attempts] == [1, 2, 3]
    assert "attempt 1" in (adopted.attempt.note or "")
    assert store(succeed(adopted, "late")).state is State.ARCHIVED


@pytest.mark.parametrize("then", [reject, lose])
def test_a_late_answer_that_came_before_the_newer_attempt_went_wrong_becomes_the_generations_too(
    then: Callable[..., Generation],
) -> None:
    """Else a task that is known to be paid would be left alone, and the generation be open for another payment."""
    known = submit(claimed(allow(lose(claimed()))), "late", attempt_number=1)
    adopted = then(known, attempt_number=2)
    assert (adopted.state, adopted.task_id) == (State.SUBMITTED, "late")
    assert [attempt.number for attempt in adopted.attempts] == [1, 2, 3]
    assert adopted.attempts[1].state is then(claimed()).state
    with pytest.raises(TransitionError):
        claimed(adopted)


def test_a_late_answer_is_followed_once() -> None:
    adopted = reject(submit(claimed(allow(lose(claimed()))), "late", attempt_number=1), attempt_number=2)
    again = reject(claimed(fail(adopted, "late")))
    assert again.state is State.REJECTED
    assert len(again.attempts) == 4


@pytest.mark.parametrize("decide", [transitions.resubmit_allowed, transitions.resolved])
def test_a_person_decides_about_the_attempt_that_was_looked_at_only(decide: Callable[..., Generation]) -> None:
    found = lose(claimed(reject(claimed())))
    reported: dict[str, Any] = {"task_id": "t1"} if decide is transitions.resolved else {"note": "I looked"}
    with pytest.raises(TransitionError, match="submitted again meanwhile, in attempt 2"):
        decide(found, attempt_number=1, now=LATER, **reported)


def test_a_task_that_a_person_replaces_stays_in_the_note() -> None:
    found = resolve(submit(claimed(), "wrong"), "right")
    assert found.task_id == "right"
    assert "wrong" in (found.attempt.note or "")


def test_every_task_that_a_person_ever_replaced_stays_in_the_note() -> None:
    found = resolve(resolve(submit(claimed(), "paid"), "wrong"), "right")
    note = allow(fail(found, "right")).attempt.note or ""
    assert [word for word in note.replace(";", "").split() if word in ("paid", "wrong")] == ["paid", "wrong"]
    assert note.endswith("; a person looked")


def test_a_paid_task_that_a_person_goes_back_to_is_no_mistake_when_another_is_named_then() -> None:
    paid = submit(claimed(), "paid")
    back = resolve(resolve(paid, "wrong"), "paid")
    assert (back.attempt.named_by, back.task, back.attempt.superseded) == ("reply", paid.task, ())
    assert resolve(back, "third").task_ids == {"third", "paid"}


def test_a_task_that_a_person_named_before_the_reply_did_is_no_mistake_when_another_is_named_then() -> None:
    named = submit(resolve(lose(claimed()), "paid"), "paid", attempt_number=1)
    assert named.attempt.named_by == "reply"
    assert resolve(named, "third").task_ids == {"third", "paid"}
    later = submit(resolve(lose(claimed(allow(lose(claimed())))), "paid"), "paid", attempt_number=1)
    assert resolve(later, "third").task_ids == {"third", "paid"}


def test_the_reply_overrules_a_person_until_the_video_is_archived() -> None:
    named = resolve(lose(claimed()), "named")
    assert submit(named, "paid", attempt_number=1).task_ids == {"paid"}
    archived = store(succeed(named, "named"))
    late = submit(archived, "paid", attempt_number=1)
    assert (late.task, late.state, late.objects) == (archived.task, State.ARCHIVED, archived.objects)
    assert late.task_ids == {"named", "paid"}


def test_the_video_of_a_task_that_was_a_mistake_is_not_archived_as_that_of_another() -> None:
    named = resolve(lose(claimed()), "wrong")
    right = succeed(resolve(named, "right"), "right")
    with pytest.raises(TransitionError, match="has the task right, not wrong"):
        transitions.archived(right, task=named.task, objects=(VIDEO,), warnings=(), now=LATER)


@pytest.mark.parametrize("late", [reject, lose])
def test_a_late_no_to_a_given_up_attempt_changes_nothing(late: Callable[..., Generation]) -> None:
    second = submit(claimed(allow(lose(claimed()))))
    assert late(second, attempt_number=1) == second


def test_a_failure_called_too_early_is_reconciled_by_a_later_success() -> None:
    reconciled = succeed(fail(submit(claimed())))
    assert reconciled.state is State.SUCCEEDED
    assert reconciled.attempt.problem is None
    assert reconciled.succeeded_at == LATER


@pytest.mark.parametrize("named_by", ["person", "callback"])
@pytest.mark.parametrize("state", ["submitted", "succeeded", "failed"])
def test_the_reply_to_the_paid_call_overrules_who_named_a_task_meanwhile(named_by: Source, state: str) -> None:
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by=named_by)
    found = {"submitted": named, "succeeded": succeed(named), "failed": fail(named)}[state]
    after = submit(found, "reply", attempt_number=1)
    assert (after.state, after.task_id, after.attempt.named_by) == (State.SUBMITTED, "reply", "reply")
    assert [task.task_id for task in after.unarchived_superseded] == (["t1"] if named_by == "callback" else [])
    assert "t1" in (after.attempt.note or "")
    assert after.task.folder != found.task.folder


def test_a_reply_that_comes_after_the_archive_names_one_more_task_that_was_paid_for() -> None:
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by="person")
    found = store(succeed(named))
    after = submit(found, "reply", attempt_number=1)
    assert (after.state, after.task_id, after.objects) == (State.ARCHIVED, "t1", found.objects)
    assert [item.task_id for item in after.attempt.superseded] == ["reply"]


def test_a_permission_to_pay_again_is_over_with_another_task() -> None:
    allowed = allow(fail(submit(claimed())))
    again = fail(resolve(allowed, "t2"), "t2")
    assert allowed.attempt.resubmit_allowed
    assert not again.attempt.resubmit_allowed


def test_a_provider_that_answers_a_second_attempt_with_the_first_ones_task_is_understood() -> None:
    second = claimed(allow(fail(submit(claimed()))))
    found = submit(second, "t1", attempt_number=2)
    assert (found.state, found.task_id) == (State.SUBMITTED, "t1")
    assert found.task.folder == submit(claimed()).task.folder


@pytest.mark.parametrize("stand", [lambda second: second, lose], ids=["claimed", "unconfirmed"])
def test_a_second_attempt_may_be_answered_with_a_task_that_a_person_had_replaced(
    stand: Callable[[Generation], Generation],
) -> None:
    """Else it would stay unanswered for ever: each run finds the task that the store knows, and nothing changes."""
    first = submit(claimed())
    second = stand(claimed(allow(fail(resolve(first, "t2"), "t2"))))
    found = submit(second, "t1", attempt_number=2)
    assert (found.state, found.task_id, found.attempt.named_by) == (State.SUBMITTED, "t1", "reply")
    assert found.task.folder == first.task.folder
    assert (found.unarchived_superseded, found.attempts[0].superseded) == ((), second.attempts[0].superseded)
    assert submit(found, "t1", attempt_number=2) == found
    assert store(succeed(found)).state is State.ARCHIVED


def test_a_task_that_two_attempts_list_has_its_video_archived_once_and_is_waited_for_no_more() -> None:
    """The late answer to the first attempt was taken up as the third, and a person named yet another one then."""
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


def with_one_more(task_id: str = "t2") -> Generation:
    """Accepted twice: a callback has named another task than the reply."""
    return superseded_tasks.also_taken(submit(claimed()), attempt_number=1, task_id=task_id, now=LATER)


def test_a_reply_that_overrules_a_callback_keeps_every_other_task_that_was_paid_for() -> None:
    """A proxy has sent the paid call three times."""
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by="callback")
    named = superseded_tasks.also_taken(named, attempt_number=1, task_id="t2", now=LATER)
    after = submit(named, "reply", attempt_number=1)
    assert after.task_id == "reply"
    assert {task.task_id for task in after.unarchived_superseded} == {"t1", "t2"}


def test_a_callback_that_comes_twice_names_one_more_task_once() -> None:
    once = with_one_more()
    assert superseded_tasks.also_taken(once, attempt_number=1, task_id="t2", now=LATER) == once
    assert superseded_tasks.also_taken(once, attempt_number=1, task_id="t1", now=LATER) == once
    more = superseded_tasks.also_taken(once, attempt_number=1, task_id="t3", now=LATER)
    assert [task.task_id for task in more.unarchived_superseded] == ["t2", "t3"]


def test_a_task_that_does_not_count_keeps_the_video_or_the_end_that_it_had_first() -> None:
    found = with_one_more()
    (task,) = found.unarchived_superseded
    other = VIDEO.model_copy(update={"sha256": "1" * 64})
    archived = superseded_tasks.archived(found, task, (VIDEO,), now=LATER)
    assert superseded_tasks.archived(archived, task, (other,), now=LATER) == archived
    assert superseded_tasks.ended(archived, "t2", "lost", now=LATER) == archived
    ended = superseded_tasks.ended(found, "t2", "lost", now=LATER)
    assert superseded_tasks.ended(ended, "t2", "another reason", now=LATER) == ended


def test_a_task_is_polled_with_the_model_that_it_was_accepted_for() -> None:
    """The second attempt was made with another model, and is answered with the first one's task."""
    failed = allow(fail(submit(claimed())))
    owner = failed.attempt.claimed_by
    second = transitions.claim(
        failed, key="kite", request=KITE, owner=owner, lease_seconds=120, now=LATER, model="kling-3-0-turbo"
    )
    assert submit(second, "t1", attempt_number=2).task.model == failed.attempt.model == "sora-2"


def test_a_late_answer_that_does_not_count_says_who_named_it() -> None:
    second = submit(claimed(allow(lose(claimed()))), "t2")
    after = transitions.submitted(second, attempt_number=1, task_id="late", now=LATER, named_by="callback")
    assert [item.named_by for item in after.attempts[0].superseded] == ["callback"]
    (task,) = after.unarchived_superseded
    assert transitions.archived(after, task=task, objects=(VIDEO,), warnings=(), now=LATER).unarchived_superseded == ()
