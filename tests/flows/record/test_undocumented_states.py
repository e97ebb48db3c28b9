"""Since when a task has been in an undocumented state, as the record notes it. A day later it is given up."""

from datetime import timedelta

import pytest

from flows.record import transitions
from flows.record.generation import Generation, State

from .changes import LATER, claimed, fail, resolve, store, submit, succeed

TOMORROW = LATER + timedelta(days=1)


def note(found: Generation, word: str | None = "expired", task_id: str = "t1") -> Generation:
    return transitions.stands_as(found, task_id, word, now=TOMORROW)


def noted(found: Generation) -> tuple[str | None, object]:
    return found.attempt.stands_as, found.attempt.stands_since


def test_state_is_noted_with_the_time_when_it_was_first_seen() -> None:
    first = transitions.stands_as(submit(claimed()), "t1", "expired", now=LATER)
    assert noted(first) == ("expired", LATER)
    assert note(first) is first
    assert noted(note(first, "deleted")) == ("deleted", TOMORROW)


def test_documented_state_clears_the_note() -> None:
    assert noted(note(note(submit(claimed())), None)) == (None, None)


def test_state_of_a_task_that_no_longer_counts_is_not_noted() -> None:
    found = resolve(submit(claimed()), "t2")
    assert note(found, task_id="t1") is found
    assert noted(note(found, task_id="t2")) == ("expired", TOMORROW)


@pytest.mark.parametrize("found", [claimed(), fail(submit(claimed())), store(succeed(submit(claimed())))])
def test_state_is_noted_only_while_the_end_is_open(found: Generation) -> None:
    assert note(found) is found


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda found: resolve(found, "t2"), State.SUBMITTED),
        (lambda found: resolve(fail(found), "t1"), State.SUBMITTED),
        (succeed, State.SUCCEEDED),
        (
            lambda found: transitions.failure_taken_back(fail(found), attempt_number=1, task_id="t1", now=TOMORROW),
            State.SUBMITTED,
        ),
    ],
    ids=["another task named", "task resumed", "succeeded", "failure taken back"],
)
def test_note_does_not_outlive_the_wait_that_it_was_about(change: object, state: State) -> None:
    assert callable(change)
    found = change(note(submit(claimed())))
    assert found.state is state
    assert noted(found) == (None, None)
