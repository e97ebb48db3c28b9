"""The cost report: what was spent, at the prices recorded with each claim."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from apixo import VideoRequest
from flows.record import superseded_tasks
from flows.record.costs import CostRow, Group, costs, fate
from flows.record.generation import Generation
from flows.record.payments import payments

from . import changes
from .changes import allow, fail, lose, reject, store, submit, succeed

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def claimed(key: str, price: str | None = "2", *, over: Generation | None = None, **changed: Any) -> Generation:
    fields = {"now": NOW, "price": None if price is None else Decimal(price), "currency": "USD"} | changed
    return changes.claimed(over, key=key, **fields)


def submitted(claim: Generation) -> Generation:
    return submit(claim, f"{claim.key}{claim.attempt.number}")


def failed(claim: Generation) -> Generation:
    return fail(submitted(claim), f"{claim.key}{claim.attempt.number}")


def archived(claim: Generation) -> Generation:
    return store(succeed(submitted(claim), f"{claim.key}{claim.attempt.number}"))


RECORDS = [
    archived(claimed("a", "2", batch="spring")),
    submitted(claimed("b", "3", batch="spring", request=VideoRequest(prompt="Dunes", tags=["x", "y"]))),
    claimed("c", "5", model="kling-2-6"),
    reject(claimed("d", "100")),
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
    again = reject(claimed("a", over=allow(lose(claimed("a")))))
    ended = fail(submit(again, "t", attempt_number=1), "t")
    assert [fate(payment) for payment in payments(ended)] == ["failed"]
    (row,) = costs([ended], "2026-11", None)
    assert [row.payments, row.failed, row.total] == [1, 2, 2]


def test_superseded_task_has_its_own_outcome() -> None:
    found = superseded_tasks.also_taken(submitted(claimed("a")), attempt_number=1, task_id="second", now=NOW)
    found = fail(found, "a1")

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
    again = claimed("a", over=allow(lose(claimed("a"))))
    adopted = reject(submit(again, "t", attempt_number=1))
    assert adopted.task_id == "t"
    assert "t" in {task.task_id for task in adopted.attempts[0].superseded}
    done = store(succeed(adopted, "t"))
    assert [fate(payment) for payment in payments(done)] == ["archived"]
