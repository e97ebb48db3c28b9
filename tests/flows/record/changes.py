"""A generation with the key kite, and the changes that tests make to it."""

from datetime import UTC, datetime, timedelta

from apixo import Failed, Succeeded
from flows.record import transitions
from flows.record.generation import (
    ArchivedObject,
    Generation,
    Owner,
    PaidTask,
    Problem,
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
    """The task that counts, or an unknown task if there is none."""
    return found.task if found.task_id else PaidTask(key=found.key, attempt_number=1, task_id="none", folder="none/")
