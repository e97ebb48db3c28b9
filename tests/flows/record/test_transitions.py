"""Which changes to a generation are allowed in which state, and what no sequence of changes may do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.record import transitions
from flows.record.generation import (
    FINISHED,
    PAID,
    Generation,
    State,
)
from flows.record.pipeline_errors import TransitionError

from .changes import LATER, VIDEO, allow, claimed, fail, lose, reject, resolve, store, submit, succeed

START_STATES: dict[str, Callable[[], Generation]] = {
    "claimed": claimed,
    "unconfirmed": lambda: lose(claimed()),
    "rejected": lambda: reject(claimed()),
    "submitted": lambda: submit(claimed()),
    "succeeded": lambda: succeed(submit(claimed())),
    "archived": lambda: store(succeed(submit(claimed()))),
    "failed": lambda: fail(submit(claimed())),
    "for good": lambda: fail(submit(claimed()), code="CONTENT_VIOLATION"),
}

CHANGES: dict[str, Callable[[Generation], Generation]] = {
    "claim": partial(claimed, now=LATER),
    "submitted": submit,
    "submitted as another": partial(submit, task_id="t2"),
    "rejected": reject,
    "unconfirmed": lose,
    "resubmission": allow,
    "resolved": resolve,
    "resolved as another": partial(resolve, task_id="t2"),
    "succeeded": succeed,
    "another succeeded": partial(succeed, task_id="t2"),
    "failed": fail,
    "another failed": partial(fail, task_id="t2"),
    "archived": store,
}

SAME, NO = "same", "TransitionError"
# Every change in every state: the state it leads to, SAME for an unchanged record, or NO for an error. "for good" is
# a permanent failure.
TABLE = """
                     | claimed     | unconfirmed | rejected  | submitted | succeeded | archived | failed    | for good
claim                | NO          | NO          | claimed   | NO        | NO        | NO       | claimed   | claimed
submitted            | submitted   | submitted   | submitted | SAME      | SAME      | SAME     | SAME      | SAME
submitted as another | submitted   | submitted   | submitted | submitted | succeeded | archived | failed    | failed
rejected             | rejected    | rejected    | SAME      | SAME      | SAME      | SAME     | SAME      | SAME
unconfirmed          | unconfirmed | SAME        | SAME      | SAME      | SAME      | SAME     | SAME      | SAME
resubmission         | NO          | rejected    | SAME      | NO        | NO        | NO       | failed    | NO
resolved             | NO          | submitted   | submitted | submitted | succeeded | SAME     | submitted | submitted
resolved as another  | NO          | submitted   | submitted | submitted | submitted | NO       | submitted | submitted
succeeded            | NO          | NO          | NO        | succeeded | SAME      | SAME     | succeeded | succeeded
another succeeded    | NO          | NO          | NO        | NO        | NO        | NO       | NO        | NO
failed               | NO          | NO          | NO        | failed    | SAME      | SAME     | SAME      | SAME
another failed       | NO          | NO          | NO        | NO        | NO        | NO       | NO        | NO
archived             | NO          | NO          | NO        | NO        | archived  | SAME     | NO        | NO
"""


def rows() -> list[tuple[str, str, str]]:
    head, *body = (
        [cell.strip() for cell in line.split("|")] for line in TABLE.strip("\n").splitlines() if line.strip()
    )
    return [
        (change, start, expected) for change, *cells in body for start, expected in zip(head[1:], cells, strict=True)
    ]


@pytest.mark.parametrize(("change", "start", "expected"), rows())
def test_every_change_in_every_state(change: str, start: str, expected: str) -> None:
    before = START_STATES[start]()
    if expected == "NO":
        with pytest.raises(TransitionError, match="kite"):
            CHANGES[change](before)
        return
    after = CHANGES[change](before)
    if expected == "SAME":
        assert after == before
    else:
        assert after.state == expected
        assert after.attempt.state is after.state
        assert after.updated_at == LATER
        assert after != before


def test_table_covers_every_state_and_change() -> None:
    assert {start for _, start, _ in rows()} == set(START_STATES)
    assert {change for change, _, _ in rows()} == set(CHANGES)
    assert {make().state for make in START_STATES.values()} == set(State)


def test_states_with_a_task_in_progress_do_not_count_as_finished() -> None:
    assert {State.ARCHIVED} == PAID & FINISHED
    assert {State.CLAIMED, State.UNCONFIRMED, State.SUBMITTED, State.SUCCEEDED}.isdisjoint(FINISHED)


@pytest.mark.parametrize("start", ["unconfirmed", "rejected"])
def test_task_id_reconciles_an_unconfirmed_or_rejected_attempt(start: str) -> None:
    reconciled = transitions.submitted(START_STATES[start](), attempt_number=1, task_id="t9", now=LATER)
    assert reconciled.state is State.SUBMITTED
    assert reconciled.task_id == "t9"
    assert reconciled.attempt.problem is None
    assert reconciled.attempt.submitted_at == LATER


def test_resumed_task_loses_its_resubmit_permission() -> None:
    """A user allowed a resubmission, and then found the result of this task."""
    allowed = allow(fail(submit(claimed())))
    assert allowed.attempt.resubmit_allowed
    resumed = resolve(allowed)
    assert not resumed.attempt.resubmit_allowed
    assert not fail(resumed).attempt.resubmit_allowed


def test_archiving_a_second_time_changes_nothing() -> None:
    first = store(succeed(submit(claimed())))
    other = VIDEO.model_copy(update={"sha256": "1" * 64})
    again = transitions.archived(first, task=first.task, objects=(other,), warnings=(), now=LATER + timedelta(hours=1))
    assert again == first


def test_provider_failure_code_is_truncated() -> None:
    problem = fail(submit(claimed()), code="X" * 1_000_000).attempt.problem
    assert problem is not None
    assert len(problem.code) <= 200


@pytest.mark.parametrize("start", START_STATES)
def test_record_survives_json_round_trip(start: str) -> None:
    found = START_STATES[start]()
    assert Generation.model_validate_json(found.model_dump_json(indent=2)) == found


TASKS = st.sampled_from(["t1", "t2", "t3"])
NUMBERS = st.integers(1, 4)


@dataclass(frozen=True)
class Step:
    """One change, by its name in CHANGES, with its arguments."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


STEPS = st.one_of(
    st.builds(Step, st.sampled_from(["claim", "resubmission", "archived"])),
    st.builds(Step, st.sampled_from(["succeeded", "failed", "resolved"]), st.fixed_dictionaries({"task_id": TASKS})),
    st.builds(Step, st.just("submitted"), st.fixed_dictionaries({"task_id": TASKS, "attempt_number": NUMBERS})),
    st.builds(Step, st.sampled_from(["rejected", "unconfirmed"]), st.fixed_dictionaries({"attempt_number": NUMBERS})),
)


@settings(max_examples=500)
@given(st.lists(STEPS, max_size=25))
def test_no_sequence_of_changes_loses_a_task_or_allows_a_second_payment(steps: list[Step]) -> None:  # noqa: C901 - a list of rules
    found = claimed()
    owner_of: dict[str, str | None] = {}
    for step in steps:
        if step.arguments.get("attempt_number", 1) > len(found.attempts):
            continue
        before = found
        try:
            found = CHANGES[step.name](before, **step.arguments)
        except TransitionError:
            continue
        assert found.attempt.state is found.state
        answered = found.attempts[step.arguments.get("attempt_number", 1) - 1]
        assert step.name != "submitted" or answered.state not in (State.CLAIMED, State.UNCONFIRMED)
        assert [attempt.number for attempt in found.attempts] == list(range(1, len(found.attempts) + 1))
        for old, new in zip(before.attempts, found.attempts, strict=False):
            assert old.task_id is None or old.task_id in found.task_ids or old.task_id in (new.note or "")
            assert {item.task_id for item in old.superseded} <= found.task_ids
        for attempt in found.attempts:
            for task_id, folder in [
                (attempt.task_id, attempt.folder),
                *((i.task_id, i.folder) for i in attempt.superseded),
            ]:
                assert folder is None or owner_of.setdefault(folder, task_id) == task_id, "two tasks share a folder"
        if before.state is State.ARCHIVED:
            assert found.state is State.ARCHIVED
            assert found.objects == before.objects
        if before.state in PAID and found.state not in PAID:
            assert (step.name, before.state, found.state) == ("failed", State.SUBMITTED, State.FAILED)
        if found.state in PAID:
            assert found.task_id is not None
            with pytest.raises(TransitionError):
                claimed(found)
        if len(found.attempts) > len(before.attempts):
            assert (step.name, before.state) in {("claim", State.REJECTED), ("claim", State.FAILED)} or (
                found.state is State.SUBMITTED  # a late answer that is adopted now
            )
        if found.state in (State.REJECTED, State.UNCONFIRMED):
            for attempt in found.attempts:
                later = {other.task_id for other in found.attempts[attempt.number :]}
                assert attempt.state is not State.SUBMITTED or attempt.task_id in later
        assert Generation.model_validate_json(found.model_dump_json()) == found
