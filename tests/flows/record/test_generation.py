"""The record of a generation: which change is allowed in which state, and what no sequence of changes may do."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from apixo import ContentViolationError, Failed, GenerationFailedError, Succeeded
from flows.record import transitions
from flows.record.errors import TransitionError
from flows.record.generation import (
    FINISHED,
    PAID,
    ArchivedObject,
    Attempt,
    Generation,
    Owner,
    PaidTask,
    Problem,
    Source,
    State,
)
from tests.support import KITE

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
LATER = START + timedelta(minutes=5)
OWNER = Owner(host="here", pid=7)
TIMED_OUT = Problem(kind="NoReplyError", message="no reply")
VIDEO = ArchivedObject(
    kind="video",
    bucket="b",
    name="videos/2026/03/01/kite/video.mp4",
    content_type="video/mp4",
    size_bytes=9,
    sha256="0" * 64,
    duration_seconds=4.0,
)


def claimed(previous: Generation | None = None, *, now: datetime = START) -> Generation:
    return transitions.claim(previous, key="kite", request=KITE, owner=OWNER, lease_seconds=120, now=now)


def success(task_id: str = "t1", *urls: str) -> Succeeded:
    return Succeeded(task_id=task_id, state="success", result_urls=urls or ("https://h.example/v.mp4",))


def failure(task_id: str = "t1", code: str = "OUT_OF_LUCK") -> Failed:
    return Failed(task_id=task_id, state="failed", fail_code=code, fail_message="no")


def submit(found: Generation, task_id: str = "t1", *, attempt_number: int | None = None) -> Generation:
    number = attempt_number or found.attempt.number
    return transitions.submitted(found, attempt_number=number, task_id=task_id, now=LATER)


def reject(found: Generation, *, attempt_number: int | None = None) -> Generation:
    problem = Problem(kind="BadRequestError", code="400", message="no credits")
    return transitions.rejected(
        found, attempt_number=attempt_number or found.attempt.number, problem=problem, now=LATER
    )


def lose(found: Generation, *, attempt_number: int | None = None) -> Generation:
    number = attempt_number or found.attempt.number
    return transitions.unconfirmed(found, attempt_number=number, problem=TIMED_OUT, now=LATER)


def allow(found: Generation) -> Generation:
    return transitions.resubmit_allowed(found, attempt_number=found.attempt.number, note="a person looked", now=LATER)


def resolve(found: Generation, task_id: str = "t1") -> Generation:
    return transitions.resolved(found, attempt_number=found.attempt.number, task_id=task_id, now=LATER)


def succeed(found: Generation, task_id: str = "t1", *urls: str) -> Generation:
    return transitions.succeeded(found, success(task_id, *urls), now=LATER)


def fail(found: Generation, task_id: str = "t1", code: str = "OUT_OF_LUCK") -> Generation:
    return transitions.failed(found, failure(task_id, code), now=LATER)


def store(found: Generation) -> Generation:
    return transitions.archived(found, task=task_of(found), objects=(VIDEO,), warnings=("shorter",), now=LATER)


def task_of(found: Generation) -> PaidTask:
    """The task that counts; where there is none, one that nobody has ever heard of."""
    return found.task if found.task_id else PaidTask(key=found.key, attempt_number=1, task_id="none", folder="none/")


STANDS: dict[str, Callable[[], Generation]] = {
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
# Every change in every state: the state it leads to, the very same record, or an error.
TABLE = """
                     | claimed     | unconfirmed | rejected  | submitted | succeeded | archived | failed    | for good
claim                | NO          | NO          | claimed   | NO        | NO        | NO       | claimed   | claimed
submitted            | submitted   | submitted   | submitted | SAME      | SAME      | SAME     | SAME      | SAME
submitted as another | submitted   | submitted   | submitted | submitted | succeeded | archived | failed    | failed
rejected             | rejected    | rejected    | SAME      | SAME      | SAME      | SAME     | SAME      | SAME
unconfirmed          | unconfirmed | SAME        | SAME      | SAME      | SAME      | SAME     | SAME      | SAME
resubmission         | NO          | rejected    | SAME      | NO        | NO        | NO       | failed    | NO
resolved             | NO          | submitted   | submitted | SAME      | SAME      | SAME     | SAME      | SAME
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
        (change, stand, expected) for change, *cells in body for stand, expected in zip(head[1:], cells, strict=True)
    ]


@pytest.mark.parametrize(("change", "stand", "expected"), rows())
def test_every_change_in_every_state(change: str, stand: str, expected: str) -> None:
    before = STANDS[stand]()
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


def test_the_table_knows_every_state_and_every_change() -> None:
    assert {stand for _, stand, _ in rows()} == set(STANDS)
    assert {change for change, _, _ in rows()} == set(CHANGES)
    assert {make().state for make in STANDS.values()} == set(State)


def test_only_states_without_a_task_under_way_count_as_finished() -> None:
    assert {State.ARCHIVED} == PAID & FINISHED
    assert {State.CLAIMED, State.UNCONFIRMED, State.SUBMITTED, State.SUCCEEDED}.isdisjoint(FINISHED)


def test_a_first_claim_says_who_when_and_for_what() -> None:
    made = claimed()
    assert (made.key, made.state, made.request) == ("kite", State.CLAIMED, KITE)
    assert made.created_at == made.updated_at == made.attempt.claimed_at == START
    assert made.attempt == Attempt(number=1, claimed_at=START, claimed_by=OWNER, lease_seconds=120)
    assert made.task_id is None
    assert made.video is None


def test_every_attempt_is_kept() -> None:
    found = claimed(reject(claimed()))
    found = claimed(fail(submit(found)))
    found = store(succeed(submit(found, "t3"), "t3"))
    assert [attempt.number for attempt in found.attempts] == [1, 2, 3]
    assert [attempt.state for attempt in found.attempts] == [State.REJECTED, State.FAILED, State.ARCHIVED]
    assert [attempt.task_id for attempt in found.attempts] == [None, "t1", "t3"]
    assert [attempt.problem.code if attempt.problem else None for attempt in found.attempts] == [
        "400",
        "OUT_OF_LUCK",
        None,
    ]
    assert found.created_at == START
    assert found.video == VIDEO
    assert found.warnings == ("shorter",)


@pytest.mark.parametrize("stand", ["unconfirmed", "rejected"])
def test_a_task_id_reconciles_an_attempt_taken_for_lost_or_unpaid(stand: str) -> None:
    reconciled = transitions.submitted(STANDS[stand](), attempt_number=1, task_id="t9", now=LATER)
    assert reconciled.state is State.SUBMITTED
    assert reconciled.task_id == "t9"
    assert reconciled.attempt.problem is None
    assert reconciled.attempt.submitted_at == LATER


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
    told: dict[str, Any] = {"task_id": "t1"} if decide is transitions.resolved else {"note": "I looked"}
    with pytest.raises(TransitionError, match="submitted again meanwhile, in attempt 2"):
        decide(found, attempt_number=1, now=LATER, **told)


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


def test_a_resubmission_that_two_persons_allow_is_noted_once() -> None:
    found = allow(fail(submit(claimed())))
    assert allow(found) == found


@pytest.mark.parametrize("late", [reject, lose])
def test_a_late_no_to_a_given_up_attempt_changes_nothing(late: Callable[..., Generation]) -> None:
    second = submit(claimed(allow(lose(claimed()))))
    assert late(second, attempt_number=1) == second


def test_a_failure_called_too_early_is_reconciled_by_a_later_success() -> None:
    reconciled = succeed(fail(submit(claimed())))
    assert reconciled.state is State.SUCCEEDED
    assert reconciled.attempt.problem is None
    assert reconciled.succeeded_at == LATER


@pytest.mark.parametrize(
    ("code", "error", "permanent"),
    [
        ("CONTENT_VIOLATION", ContentViolationError, True),
        ("INVALID_IMAGE_URL", GenerationFailedError, True),
        ("OUT_OF_LUCK", GenerationFailedError, False),
        ("", GenerationFailedError, False),
    ],
)
def test_a_failure_becomes_the_error_it_was(code: str, error: type[Exception], permanent: bool) -> None:
    found = fail(submit(claimed()), code=code)
    assert found.permanently_failed is permanent
    assert isinstance(found.failure(), error)
    assert found.failure().permanent is permanent
    assert found.failure().task_id == "t1"


def test_a_resubmission_of_a_failure_is_a_note_on_the_attempt_and_pays_nothing_by_itself() -> None:
    found = allow(fail(submit(claimed())))
    assert found.state is State.FAILED
    assert found.attempt.resubmit_allowed
    assert not claimed(found).attempt.resubmit_allowed


def test_what_the_provider_says_of_times_is_kept() -> None:
    status = Succeeded.model_validate(
        {"task_id": "t1", "state": "success", "result_urls": ["https://h.example/v"], "createTime": 1, "costTime": "x"}
    )
    found = transitions.succeeded(submit(claimed()), status, now=LATER)
    assert found.provider_times_ms == {"created": 1, "completed": None, "cost": None}


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://h.example/v.mp4", "https://h.example/v.mp4"),
        ("https://h.example/v.mp4?X-Amz-Signature=SECRET", "https://h.example/v.mp4"),
        ("https://h.example/v.mp4#SECRET", "https://h.example/v.mp4"),
        ("https://me:SECRET@h.example/v.mp4?a=SECRET", "https://h.example/v.mp4"),
        ("https://h.example/v.mp4?name='a b'&sig=SECRET", "https://h.example/v.mp4"),
        ('https://h.example/v.mp4?name="a"&sig=SECRET', "https://h.example/v.mp4"),
        ("https://h.example/v.mp4?a=<b>&sig=SECRET", "https://h.example/v.mp4"),
        ("HTTPS://H.example/v.mp4?sig=SECRET", "HTTPS://H.example/v.mp4"),
        ("https://h.example/v.mp4?", "https://h.example/v.mp4"),
    ],
)
def test_result_urls_are_kept_without_what_signs_them(url: str, kept: str) -> None:
    found = succeed(submit(claimed()), "t1", url, "https://h.example/2.mp4?SECRET")
    assert found.result_urls == (kept, "https://h.example/2.mp4")
    assert "SECRET" not in found.model_dump_json()


def test_what_the_provider_says_of_a_failure_is_kept_short_and_without_signatures() -> None:
    status = failure().model_copy(update={"fail_message": "see https://h.example/a?sig=SECRET " + "x" * 5_000})
    problem = transitions.failed(submit(claimed()), status, now=LATER).attempt.problem
    assert problem is not None
    assert "SECRET" not in problem.message
    assert len(problem.message) == 1_000


@pytest.mark.parametrize("stand", STANDS)
def test_a_record_survives_json(stand: str) -> None:
    found = STANDS[stand]()
    assert Generation.model_validate_json(found.model_dump_json(indent=2)) == found


def test_fields_of_a_sibling_version_survive_reading_changing_and_writing() -> None:
    told = json.loads(submit(claimed()).model_dump_json())
    told["cost"] = "0.40"
    told["attempts"][0]["region"] = "eu"
    told["attempts"][0]["claimed_by"]["user"] = "me"
    again = json.loads(succeed(Generation.model_validate(told)).model_dump_json())
    assert again["state"] == "succeeded"
    assert again["cost"] == "0.40"
    assert again["attempts"][0]["region"] == "eu"
    assert again["attempts"][0]["claimed_by"]["user"] == "me"


def test_a_record_without_an_attempt_is_no_record() -> None:
    told = json.loads(claimed().model_dump_json()) | {"attempts": []}
    with pytest.raises(ValidationError, match="attempts"):
        Generation.model_validate(told)


def test_a_record_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        claimed().state = State.REJECTED  # type: ignore[misc] # what it is about


TASKS = st.sampled_from(["t1", "t2", "t3"])
NUMBERS = st.integers(1, 4)


@dataclass(frozen=True)
class Step:
    """One change with its arguments, as the tests above spell it."""

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
def test_no_sequence_of_changes_loses_a_task_or_opens_what_is_paid(steps: list[Step]) -> None:  # noqa: C901 - a list of rules
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
        assert [attempt.number for attempt in found.attempts] == list(range(1, len(found.attempts) + 1))
        for old, new in zip(before.attempts, found.attempts, strict=False):
            assert old.task_id is None or old.task_id in found.task_ids or old.task_id in (new.note or "")
            assert {item.task_id for item in old.superseded} <= found.task_ids
        for attempt in found.attempts:
            for task_id, folder in [
                (attempt.task_id, attempt.folder),
                *((i.task_id, i.folder) for i in attempt.superseded),
            ]:
                assert folder is None or owner_of.setdefault(folder, task_id) == task_id, "two tasks share a name"
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
                found.state is State.SUBMITTED  # a late answer that is followed now
            )
        if found.state in (State.REJECTED, State.UNCONFIRMED):
            for attempt in found.attempts:
                later = {other.task_id for other in found.attempts[attempt.number :]}
                assert attempt.state is not State.SUBMITTED or attempt.task_id in later
        assert Generation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("named_by", ["person", "callback"])
@pytest.mark.parametrize("state", ["submitted", "succeeded", "failed"])
def test_the_reply_to_the_paid_call_overrules_who_named_a_task_meanwhile(named_by: Source, state: str) -> None:
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by=named_by)
    found = {"submitted": named, "succeeded": succeed(named), "failed": fail(named)}[state]
    after = submit(found, "reply", attempt_number=1)
    assert (after.state, after.task_id, after.attempt.named_by) == (State.SUBMITTED, "reply", "reply")
    assert after.task_ids == {"reply"}
    assert "t1" in (after.attempt.note or "")
    assert after.task.folder != found.task.folder


def test_a_reply_that_comes_after_the_archive_names_one_more_task_that_was_paid_for() -> None:
    named = transitions.submitted(lose(claimed()), attempt_number=1, task_id="t1", now=LATER, named_by="person")
    found = store(succeed(named))
    after = submit(found, "reply", attempt_number=1)
    assert (after.state, after.task_id, after.objects) == (State.ARCHIVED, "t1", found.objects)
    assert [item.task_id for item in after.attempt.superseded] == ["reply"]


def test_a_record_of_the_first_version_keeps_its_folder() -> None:
    told = json.loads(submit(claimed()).model_dump_json()) | {"schema_version": 1}
    told.pop("tasks_named")
    for name in ("folder", "named_by", "superseded"):
        told["attempts"][0].pop(name)
    old = Generation.model_validate(told)
    assert old.task.folder == "videos/2026/03/01/kite/"
    assert resolve(old, "t2").task.folder == "videos/2026/03/01/kite/task-2/"


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
