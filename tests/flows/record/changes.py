"""A generation, and the changes that tests make to it, each five minutes after the last claim."""

from datetime import UTC, datetime, timedelta
from typing import Any

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


def claimed(previous: Generation | None = None, **changed: Any) -> Generation:
    fields: dict[str, Any] = {"key": "kite", "request": KITE, "owner": OWNER, "lease_seconds": 120, "now": START}
    return transitions.claim(previous, **(fields | changed))


def later(found: Generation) -> datetime:
    return found.attempt.claimed_at + (LATER - START)


def success(task_id: str = "t1", *urls: str) -> Succeeded:
    return Succeeded(task_id=task_id, state="success", result_urls=urls or ("https://h.example/v.mp4",))


def failure(task_id: str = "t1", code: str = "OUT_OF_LUCK") -> Failed:
    return Failed(task_id=task_id, state="failed", fail_code=code, fail_message="no")


def submit(found: Generation, task_id: str = "t1", *, attempt_number: int | None = None) -> Generation:
    number = attempt_number or found.attempt.number
    return transitions.submitted(found, attempt_number=number, task_id=task_id, now=later(found))


def reject(found: Generation, *, attempt_number: int | None = None) -> Generation:
    problem = Problem(kind="BadRequestError", code="400", message="no credits")
    return transitions.rejected(
        found, attempt_number=attempt_number or found.attempt.number, problem=problem, now=later(found)
    )


def lose(found: Generation, *, attempt_number: int | None = None) -> Generation:
    number = attempt_number or found.attempt.number
    return transitions.unconfirmed(found, attempt_number=number, problem=TIMED_OUT, now=later(found))


def allow(found: Generation) -> Generation:
    return transitions.resubmit_allowed(
        found, attempt_number=found.attempt.number, note="a person looked", now=later(found)
    )


def resolve(found: Generation, task_id: str = "t1") -> Generation:
    return transitions.resolved(found, attempt_number=found.attempt.number, task_id=task_id, now=later(found))


def succeed(found: Generation, task_id: str = "t1", *urls: str) -> Generation:
    return transitions.succeeded(found, success(task_id, *urls), now=later(found))


def fail(found: Generation, task_id: str = "t1", code: str = "OUT_OF_LUCK") -> Generation:
    return transitions.failed(found, failure(task_id, code), now=later(found))


def store(found: Generation) -> Generation:
    return transitions.archived(found, task=task_of(found), objects=(VIDEO,), warnings=("shorter",), now=later(found))


def task_of(found: Generation) -> PaidTask:
    """The task that counts, or an unknown task if there is none."""
    return found.task if found.task_id else PaidTask(key=found.key, attempt_number=1, task_id="none", folder="none/")
