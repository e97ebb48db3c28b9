"""The judge of the crashes is judged: it lets every promise that is kept pass, and sees each that is broken."""

from dataclasses import replace

import pytest

from flows.record.generation import State
from tests.attack.verdict import Bounds, Facts, Recovery, verdict

pytestmark = pytest.mark.sample

TASK = "task_1"
ADVICE = "Run `sora resolve k --task-id TASK_ID` if there is one, or `sora resolve k --resubmit` if there is none."
NOTHING = Facts(key="k")
ARCHIVED = Facts(
    key="k", posts=1, charged=(TASK,), state=State.ARCHIVED, task_ids=(TASK,), videos=("video.mp4",), announced=True
)
UNCONFIRMED = Facts(key="k", posts=1, charged=(TASK,), state=State.UNCONFIRMED, marked=True, reported=ADVICE)
REJECTED = Facts(key="k", posts=1, state=State.REJECTED)
RESUBMITTED = Bounds(posts=2)


@pytest.mark.parametrize(
    ("facts", "crashed_as", "recovery", "bounds"),
    [
        pytest.param(ARCHIVED, None, "rerun", Bounds(), id="nothing was there, and the rerun made it"),
        pytest.param(NOTHING, None, "collect", Bounds(), id="nothing was there, and the collector submits nothing"),
        pytest.param(replace(NOTHING, marked=True), None, "collect", Bounds(), id="only a marker is left"),
        pytest.param(UNCONFIRMED, State.CLAIMED, "rerun", Bounds(), id="nobody can know, and a person is told"),
        pytest.param(UNCONFIRMED, State.CLAIMED, "collect", Bounds(), id="the collector tells a person too"),
        pytest.param(replace(UNCONFIRMED, posts=0, charged=()), State.CLAIMED, "rerun", Bounds(), id="it was not paid"),
        pytest.param(
            replace(UNCONFIRMED, charged=()), State.UNCONFIRMED, "rerun", Bounds(reconciles=True), id="no task, no call"
        ),
        pytest.param(ARCHIVED, State.CLAIMED, "rerun", Bounds(reconciles=True), id="its callback reconciled it"),
        *(
            pytest.param(ARCHIVED, state, recovery, Bounds(), id=f"{state} comes home, {recovery}")
            for state in (State.SUBMITTED, State.SUCCEEDED, State.ARCHIVED)
            for recovery in ("rerun", "collect")
        ),
        pytest.param(replace(ARCHIVED, posts=2), State.REJECTED, "rerun", RESUBMITTED, id="a person resubmitted"),
        pytest.param(REJECTED, State.REJECTED, "collect", Bounds(), id="unpaid, and nobody asked again"),
    ],
)
def test_what_is_explained_passes(facts: Facts, crashed_as: State | None, recovery: Recovery, bounds: Bounds) -> None:
    assert verdict(facts, crashed_as=crashed_as, recovery=recovery, bounds=bounds) == ()


@pytest.mark.parametrize(
    ("facts", "crashed_as", "recovery", "bounds", "broken"),
    [
        (replace(ARCHIVED, posts=2), None, "rerun", Bounds(), "2 paid calls were sent, 1 are explained"),
        (
            replace(ARCHIVED, charged=(TASK, "task_2"), task_ids=(TASK, "task_2")),
            State.CLAIMED, "rerun", Bounds(posts=2), "2 tasks were charged, 1 are explained",
        ),
        (NOTHING, None, "rerun", Bounds(), "it crashed as no record and ended as no record; it may end as archived"),
        (ARCHIVED, None, "collect", Bounds(), "crashed as no record and ended as archived; it may end as no record"),
        (replace(NOTHING, posts=1, charged=(TASK,)), None, "collect", Bounds(), "task_1 is paid, and the record is no"),
        (UNCONFIRMED, None, "rerun", Bounds(), "ended as unconfirmed; it may end as archived"),
        (UNCONFIRMED, State.SUBMITTED, "collect", Bounds(), "ended as unconfirmed; it may end as archived"),
        (UNCONFIRMED, State.CLAIMED, "rerun", Bounds(reconciles=True), "ended as unconfirmed; it may end as archived"),
        (replace(UNCONFIRMED, state=State.CLAIMED), State.CLAIMED, "rerun", Bounds(), "ended as claimed; it may"),
        (replace(UNCONFIRMED, state=State.SUCCEEDED), State.SUCCEEDED, "collect", Bounds(), "ended as succeeded;"),
        (replace(REJECTED, charged=(TASK,)), State.REJECTED, "collect", Bounds(), "task_1 is paid, and the record is"),
        (replace(UNCONFIRMED, marked=False), State.CLAIMED, "rerun", Bounds(), "not marked as open"),
        (replace(UNCONFIRMED, reported=""), State.CLAIMED, "rerun", Bounds(), "not told 'sora resolve k --resubmit'"),
        (replace(UNCONFIRMED, videos=("video.mp4",)), State.CLAIMED, "rerun", Bounds(), "is unconfirmed and has vid"),
        (replace(ARCHIVED, marked=True), State.ARCHIVED, "rerun", Bounds(), "archived and still marked as open"),
        (replace(ARCHIVED, failed=True), State.ARCHIVED, "rerun", Bounds(), "archived, and the last command failed"),
        (replace(ARCHIVED, announced=False), State.ARCHIVED, "rerun", Bounds(), "archived, and no event said so"),
        (replace(ARCHIVED, videos=()), State.ARCHIVED, "rerun", Bounds(), "archived with 0 videos"),
        (replace(ARCHIVED, videos=("a", "b")), State.ARCHIVED, "rerun", Bounds(), "archived with 2 videos: a, b"),
        (replace(ARCHIVED, unsound=("x differs",)), State.ARCHIVED, "rerun", Bounds(), "x differs"),
        (replace(ARCHIVED, task_ids=("task_2",)), State.ARCHIVED, "rerun", Bounds(), "the record does not name it"),
        (
            replace(ARCHIVED, task_id=TASK), State.SUBMITTED, "rerun", Bounds(task_id="task_2"),
            "it is archived as task_1, and a person named task_2",
        ),
        (replace(ARCHIVED, posts=0, charged=()), None, "rerun", Bounds(), "archived and nothing was charged"),
    ],
)  # fmt: skip
def test_what_is_broken_is_seen(
    facts: Facts, crashed_as: State | None, recovery: Recovery, bounds: Bounds, broken: str
) -> None:
    found = verdict(facts, crashed_as=crashed_as, recovery=recovery, bounds=bounds)
    assert any(broken in line for line in found), found
