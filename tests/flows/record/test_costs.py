"""The cost report: what was spent, at the prices recorded with each claim."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from apixo import Failed, Succeeded, VideoRequest
from flows.record import superseded_tasks, transitions
from flows.record.costs import CostRow, Group, costs, fate
from flows.record.generation import ArchivedObject, Generation, Owner, Problem
from flows.record.payments import payments

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
PROBLEM = Problem(kind="x", message="no")


def claimed(key: str, price: str | None = "2", *, over: Generation | None = None, **changed: Any) -> Generation:
    fields: dict[str, Any] = {"now": NOW, "currency": "USD", "request": VideoRequest(prompt="Dunes")} | changed
    return transitions.claim(
        over,
        key=key,
        owner=Owner(host="h", pid=1),
        lease_seconds=1,
        price=None if price is None else Decimal(price),
        **fields,
    )


def submitted(claim: Generation) -> Generation:
    number = len(claim.attempts)
    return transitions.submitted(claim, attempt_number=number, task_id=f"{claim.key}{number}", now=NOW)


def failed(claim: Generation) -> Generation:
    found = submitted(claim)
    assert found.task_id is not None
    status = Failed(task_id=found.task_id, state="failed", fail_code="NSFW", fail_message="no")
    return transitions.failed(found, status, now=NOW)


def archived(claim: Generation) -> Generation:
    found = submitted(claim)
    assert found.task_id is not None
    status = Succeeded(task_id=found.task_id, state="success", result_urls=("https://r2.apixo.ai/v.mp4",))
    video = ArchivedObject(kind="video", bucket="b", name="v", content_type="video/mp4", size_bytes=1, sha256="0")
    done = transitions.succeeded(found, status, now=NOW)
    return transitions.archived(done, task=done.task, objects=(video,), warnings=(), now=NOW)


def rejected(claim: Generation) -> Generation:
    return transitions.rejected(claim, attempt_number=len(claim.attempts), problem=PROBLEM, now=NOW)


RECORDS = [
    archived(claimed("a", "2", batch="spring")),
    submitted(claimed("b", "3", batch="spring", request=VideoRequest(prompt="Dunes", tags=["x", "y"]))),
    claimed("c", "5", model="kling-2-6"),
    rejected(claimed("d", "100")),
    archived(claimed("e", "7", over=failed(claimed("e", "11", now=NOW - timedelta(days=1))))),
    submitted(claimed("f", None)),
    submitted(claimed("g", "13", currency="EUR")),
    submitted(claimed("h", "17", now=NOW + timedelta(days=5))),
]


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("model", {("kling-2-6", "USD"): 5, ("sora-2", "EUR"): 13, ("sora-2", "USD"): 23}),
        ("tag", {("(none)", "EUR"): 13, ("(none)", "USD"): 25, ("x", "USD"): 3, ("y", "USD"): 3}),
        ("batch", {("(none)", "EUR"): 13, ("(none)", "USD"): 23, ("spring", "USD"): 5}),
        ("day", {("2026-11-27", "USD"): 11, ("2026-11-28", "EUR"): 13, ("2026-11-28", "USD"): 17}),
    ],
)
def test_costs_are_grouped_by_model_tag_batch_or_day(by: Group, expected: dict[tuple[str, str], int]) -> None:
    assert {(row.group, row.currency): row.total for row in costs(RECORDS, "2026-11", by)} == expected


def test_total_costs_are_split_by_currency_and_outcome() -> None:
    euros, dollars = costs(RECORDS, "2026-11", None)
    assert euros == CostRow(group="total", currency="EUR", payments=1, open=Decimal(13))
    assert dollars == CostRow(
        group="total",
        currency="USD",
        payments=6,
        archived=Decimal(9),
        open=Decimal(3),
        unclear=Decimal(5),
        failed=Decimal(11),
        unpriced=1,
    )


def test_late_task_adopted_by_later_attempt_counts_once_with_its_outcome() -> None:
    lost = transitions.unconfirmed(claimed("a"), attempt_number=1, problem=PROBLEM, now=NOW)
    freed = transitions.resubmit_allowed(lost, attempt_number=1, note="no", now=NOW)
    again = rejected(claimed("a", over=freed))
    late = transitions.submitted(again, attempt_number=1, task_id="t", now=NOW)
    ended = transitions.failed(late, Failed(task_id="t", state="failed", fail_code="", fail_message=""), now=NOW)
    assert [fate(payment) for payment in payments(ended)] == ["failed"]
    (row,) = costs([ended], "2026-11", None)
    assert [row.payments, row.failed, row.total] == [1, 2, 2]


def test_superseded_task_has_its_own_outcome() -> None:
    found = superseded_tasks.also_taken(submitted(claimed("a")), attempt_number=1, task_id="second", now=NOW)
    status = Failed(task_id="a1", state="failed", fail_code="", fail_message="")
    found = transitions.failed(found, status, now=NOW)

    def outcomes() -> dict[str | None, str]:
        return {payment.task_id: fate(payment) for payment in payments(found)}

    assert outcomes() == {"a1": "failed", "second": "open"}
    (task,) = found.attempt.superseded
    for change, outcome in (
        ({"ended": "it failed"}, "failed"),
        ({"objects": archived(claimed("b")).objects}, "archived"),
    ):
        changed = found.attempt.model_copy(update={"superseded": (task.model_copy(update=change),)})
        found = found.model_copy(update={"attempts": (changed,)})
        assert outcomes() == {"a1": "failed", "second": outcome}


def test_late_task_that_is_adopted_while_its_first_attempt_lists_it_has_the_outcome_of_the_adoption() -> None:
    lost = transitions.unconfirmed(claimed("a"), attempt_number=1, problem=PROBLEM, now=NOW)
    freed = transitions.resubmit_allowed(lost, attempt_number=1, note="no", now=NOW)
    late = transitions.submitted(claimed("a", over=freed), attempt_number=1, task_id="t", now=NOW)
    adopted = transitions.rejected(late, attempt_number=2, problem=PROBLEM, now=NOW)
    assert adopted.task_id == "t"
    assert "t" in {task.task_id for task in adopted.attempts[0].superseded}
    done = transitions.succeeded(
        adopted, Succeeded(task_id="t", state="success", result_urls=("https://r2.apixo.ai/v.mp4",)), now=NOW
    )
    done = transitions.archived(done, task=done.task, objects=archived(claimed("b")).objects, warnings=(), now=NOW)
    assert [fate(payment) for payment in payments(done)] == ["archived"]
