"""The crash tests' own checks: they accept every allowed outcome, and detect each violation."""

from dataclasses import replace

import pytest

from flows.record.generation import State
from tests.attack.crash_invariants import Facts, Limits, Recovery, violations

pytestmark = pytest.mark.sample

TASK = "task_1"
ADVICE = "Run `sora resolve k --task-id TASK_ID` if there is one, or `sora resolve k --resubmit` if there is none."
NOTHING = Facts(key="k")
ARCHIVED = Facts(
    key="k", posts=1, charged=(TASK,), state=State.ARCHIVED, task_ids=(TASK,), videos=("video.mp4",), published=True
)
UNCONFIRMED = Facts(key="k", posts=1, charged=(TASK,), state=State.UNCONFIRMED, marked=True, reported=ADVICE)
REJECTED = Facts(key="k", posts=1, state=State.REJECTED)
RESUBMITTED = Limits(posts=2)


@pytest.mark.parametrize(
    ("facts", "crashed_as", "recovery", "limits"),
    [
        pytest.param(ARCHIVED, None, "rerun", Limits(), id="there was no record, and the rerun archived it"),
        pytest.param(NOTHING, None, "collect", Limits(), id="there was no record, and the collector submits nothing"),
        pytest.param(replace(NOTHING, marked=True), None, "collect", Limits(), id="only a marker is left"),
        pytest.param(UNCONFIRMED, State.CLAIMED, "rerun", Limits(), id="unclear, and the error says what to do"),
        pytest.param(UNCONFIRMED, State.CLAIMED, "collect", Limits(), id="unclear, and the collector reports it"),
        pytest.param(replace(UNCONFIRMED, posts=0, charged=()), State.CLAIMED, "rerun", Limits(), id="it was not paid"),
        pytest.param(
            replace(UNCONFIRMED, charged=()),
            State.UNCONFIRMED,
            "rerun",
            Limits(reconciles=True),
            id="no callback",
        ),
        pytest.param(ARCHIVED, State.CLAIMED, "rerun", Limits(reconciles=True), id="its callback reconciled it"),
        *(
            pytest.param(ARCHIVED, state, recovery, Limits(), id=f"{state} is archived, {recovery}")
            for state in (State.SUBMITTED, State.SUCCEEDED, State.ARCHIVED)
            for recovery in ("rerun", "collect")
        ),
        pytest.param(replace(ARCHIVED, posts=2), State.REJECTED, "rerun", RESUBMITTED, id="a user resubmitted"),
        pytest.param(REJECTED, State.REJECTED, "collect", Limits(), id="unpaid, and not rerun"),
    ],
)
def test_allowed_outcomes_pass(facts: Facts, crashed_as: State | None, recovery: Recovery, limits: Limits) -> None:
    assert violations(facts, crashed_as=crashed_as, recovery=recovery, limits=limits) == ()


@pytest.mark.parametrize(
    ("facts", "crashed_as", "recovery", "limits", "message"),
    [
        (replace(ARCHIVED, posts=2), None, "rerun", Limits(), "2 paid calls were sent, at most 1 allowed"),
        (
            replace(ARCHIVED, charged=(TASK, "task_2"), task_ids=(TASK, "task_2")),
            State.CLAIMED, "rerun", Limits(posts=2), "2 tasks were charged, at most 1 allowed",
        ),
        (NOTHING, None, "rerun", Limits(), "it crashed as no record and ended as no record; allowed: archived"),
        (ARCHIVED, None, "collect", Limits(), "crashed as no record and ended as archived; allowed: no record"),
        (replace(NOTHING, posts=1, charged=(TASK,)), None, "collect", Limits(), "task_1 is paid, but the record is no"),
        (UNCONFIRMED, None, "rerun", Limits(), "ended as unconfirmed; allowed: archived"),
        (UNCONFIRMED, State.SUBMITTED, "collect", Limits(), "ended as unconfirmed; allowed: archived"),
        (UNCONFIRMED, State.CLAIMED, "rerun", Limits(reconciles=True), "ended as unconfirmed; allowed: archived"),
        (replace(UNCONFIRMED, state=State.CLAIMED), State.CLAIMED, "rerun", Limits(), "ended as claimed; allowed"),
        (replace(UNCONFIRMED, state=State.SUCCEEDED), State.SUCCEEDED, "collect", Limits(), "ended as succeeded;"),
        (replace(REJECTED, charged=(TASK,)), State.REJECTED, "collect", Limits(), "task_1 is paid, but the record is"),
        (replace(UNCONFIRMED, marked=False), State.CLAIMED, "rerun", Limits(), "not marked as open"),
        (replace(UNCONFIRMED, reported=""), State.CLAIMED, "rerun", Limits(), "lacks 'sora resolve k --resubmit'"),
        (replace(UNCONFIRMED, videos=("video.mp4",)), State.CLAIMED, "rerun", Limits(), "is unconfirmed but has vid"),
        (replace(ARCHIVED, marked=True), State.ARCHIVED, "rerun", Limits(), "archived but still marked as open"),
        (replace(ARCHIVED, failed=True), State.ARCHIVED, "rerun", Limits(), "archived, but the last command failed"),
        (replace(ARCHIVED, published=False), State.ARCHIVED, "rerun", Limits(), "archived, but no event was published"),
        (replace(ARCHIVED, videos=()), State.ARCHIVED, "rerun", Limits(), "archived with 0 videos"),
        (replace(ARCHIVED, videos=("a", "b")), State.ARCHIVED, "rerun", Limits(), "archived with 2 videos: a, b"),
        (replace(ARCHIVED, mismatches=("x differs",)), State.ARCHIVED, "rerun", Limits(), "x differs"),
        (replace(ARCHIVED, task_ids=("task_2",)), State.ARCHIVED, "rerun", Limits(), "the record does not name it"),
        (
            replace(ARCHIVED, task_id=TASK), State.SUBMITTED, "rerun", Limits(task_id="task_2"),
            "it is archived as task_1, but a user named task_2",
        ),
        (replace(ARCHIVED, posts=0, charged=()), None, "rerun", Limits(), "archived, but nothing was charged"),
    ],
)  # fmt: skip
def test_each_violation_is_detected(
    facts: Facts, crashed_as: State | None, recovery: Recovery, limits: Limits, message: str
) -> None:
    found = violations(facts, crashed_as=crashed_as, recovery=recovery, limits=limits)
    assert any(message in line for line in found), found
