"""The record of a generation: what it keeps of each attempt, and what it leaves out."""

import json

import pytest
from pydantic import ValidationError

from apixo import ContentViolationError, GenerationFailedError, Succeeded
from flows.record import transitions
from flows.record.generation import (
    Attempt,
    Generation,
    State,
)
from tests.support import KITE

from .changes import (
    LATER,
    OWNER,
    START,
    VIDEO,
    allow,
    claimed,
    fail,
    failure,
    reject,
    resolve,
    store,
    submit,
    succeed,
)


def test_first_claim_records_owner_time_and_request() -> None:
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


def test_resubmission_allowed_twice_is_recorded_once() -> None:
    found = allow(fail(submit(claimed())))
    assert allow(found) == found


@pytest.mark.parametrize(
    ("code", "error", "permanent"),
    [
        ("CONTENT_VIOLATION", ContentViolationError, True),
        ("INVALID_IMAGE_URL", GenerationFailedError, True),
        ("OUT_OF_LUCK", GenerationFailedError, False),
        ("", GenerationFailedError, False),
    ],
)
def test_recorded_failure_becomes_the_matching_error(code: str, error: type[Exception], permanent: bool) -> None:
    found = fail(submit(claimed()), code=code)
    assert found.permanently_failed is permanent
    assert isinstance(found.failure(), error)
    assert found.failure().permanent is permanent
    assert found.failure().task_id == "t1"


def test_allowing_a_resubmission_only_marks_the_failed_attempt() -> None:
    found = allow(fail(submit(claimed())))
    assert found.state is State.FAILED
    assert found.attempt.resubmit_allowed
    assert not claimed(found).attempt.resubmit_allowed


def test_provider_times_are_kept() -> None:
    status = Succeeded(task_id="t1", state="success", result_urls=("https://h.example/v",), create_time_ms=1)
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
def test_result_urls_are_kept_without_signatures(url: str, kept: str) -> None:
    found = succeed(submit(claimed()), "t1", url, "https://h.example/2.mp4?SECRET")
    assert found.result_urls == (kept, "https://h.example/2.mp4")
    assert "SECRET" not in found.model_dump_json()


def test_failure_message_is_truncated_and_has_no_signatures() -> None:
    status = failure().model_copy(update={"fail_message": "see https://h.example/a?sig=SECRET " + "x" * 5_000})
    problem = transitions.failed(submit(claimed()), status, now=LATER).attempt.problem
    assert problem is not None
    assert "SECRET" not in problem.message
    assert len(problem.message) == 1_000


def test_unknown_fields_survive_reading_changing_and_writing() -> None:
    data = json.loads(submit(claimed()).model_dump_json())
    data["cost"] = "0.40"
    data["attempts"][0]["region"] = "eu"
    data["attempts"][0]["claimed_by"]["user"] = "me"
    again = json.loads(succeed(Generation.model_validate(data)).model_dump_json())
    assert again["state"] == "succeeded"
    assert again["cost"] == "0.40"
    assert again["attempts"][0]["region"] == "eu"
    assert again["attempts"][0]["claimed_by"]["user"] == "me"


def test_record_without_attempts_is_invalid() -> None:
    data = json.loads(claimed().model_dump_json()) | {"attempts": []}
    with pytest.raises(ValidationError, match="attempts"):
        Generation.model_validate(data)


def test_records_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        claimed().state = State.REJECTED  # type: ignore[misc] # the point of this test


def test_version_1_record_keeps_its_folder() -> None:
    data = json.loads(submit(claimed()).model_dump_json()) | {"schema_version": 1}
    data.pop("tasks_named")
    for name in ("folder", "named_by", "superseded"):
        data["attempts"][0].pop(name)
    old = Generation.model_validate(data)
    assert old.task.folder == "videos/2026/03/01/kite/"
    assert resolve(old, "t2").task.folder == "videos/2026/03/01/kite/task-2/"
