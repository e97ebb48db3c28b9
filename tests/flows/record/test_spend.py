"""The spend of a month: no order of reservations, claims, answers, crashes and settlements exceeds a ceiling."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flows.record.generation import Generation
from flows.record.indexes import CLOCKS_DIFFER_AT_MOST
from flows.record.monthly_spend import (
    Ceilings,
    MonthlySpend,
    Period,
    Use,
    first_count,
    in_the_way,
    next_period,
    reserve,
    resolve,
    settle,
    use_of,
    use_of_attempt,
)

from . import changes
from .changes import lose, reject, submit

DAY = date(2026, 11, 28)
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
PRICE = Decimal(3)


def try_reserve(
    month: MonthlySpend, name: str, least: int, wanted: int, *, ceilings: Ceilings, day: date = DAY
) -> MonthlySpend | None:
    return reserve(
        month,
        name,
        least=Decimal(least),
        wanted=Decimal(wanted),
        day=day,
        ceilings=ceilings,
        now=NOW,
        expires_at=NOW + timedelta(minutes=10),
    )


def claimed(key: str, reservation: str | None, over: Generation | None = None, *, at: datetime = NOW) -> Generation:
    return changes.claimed(over, key=key, now=at, price=PRICE, reservation=reservation)


def accepted(claim: Generation) -> Generation:
    return submit(claim, f"{claim.key}-{claim.attempt.number}")


@pytest.mark.parametrize(
    ("per_day", "per_month", "least", "wanted", "amount"),
    [
        (100, None, 3, 60, 60),  # the full amount
        (30, None, 3, 60, 30),  # or what is left
        (None, 30, 3, 60, 30),
        (50, 30, 3, 60, 30),  # the smaller one counts
        (30, 50, 3, 60, 30),
        (2, None, 3, 60, None),  # too little for one video
        (3, None, 3, 60, 3),
        (0, None, 3, 3, None),
        (0, None, 0, 0, 0),  # a video that costs nothing
    ],
)
def test_reservation_takes_the_wanted_amount_up_to_what_is_left(
    per_day: int | None, per_month: int | None, least: int, wanted: int, amount: int | None
) -> None:
    ceilings = Ceilings(
        None if per_day is None else Decimal(per_day), None if per_month is None else Decimal(per_month)
    )
    month = try_reserve(MonthlySpend(), "a", least, wanted, ceilings=ceilings)
    assert (month.reservations["a"].amount if month else None) == amount


def test_retried_reservation_reserves_nothing_more() -> None:
    once = try_reserve(MonthlySpend(), "a", 3, 60, ceilings=Ceilings(Decimal(50)))
    assert once is not None
    assert try_reserve(once, "a", 3, 60, ceilings=Ceilings(Decimal(50))) == once


def test_month_has_one_warning_per_day_and_one_for_itself() -> None:
    ceilings = Ceilings(Decimal(10), Decimal(20))
    month = try_reserve(MonthlySpend(), "a", 3, 7, ceilings=ceilings)
    assert month is not None
    assert month.warned == ()
    month = try_reserve(month, "a", 8, 8, ceilings=ceilings)
    assert month is not None
    assert month.warned == ("2026-11-28",)
    month = try_reserve(month, "b", 8, 8, ceilings=ceilings, day=date(2026, 11, 29))
    assert month is not None
    assert month.warned == ("2026-11-28", "2026-11-29", "2026-11")
    again = try_reserve(month, "b", 9, 9, ceilings=ceilings, day=date(2026, 11, 29))
    assert again is not None
    assert again.warned == month.warned


def test_use_of_a_dead_run_is_taken_from_the_ledger() -> None:
    late = claimed("late", "a")
    records = [
        accepted(claimed("spent", "a")),
        reject(claimed("free", "a")),
        lose(claimed("unclear", "a")),
        late,  # its run died between the claim and the answer
        accepted(claimed("again", "a", reject(claimed("again", "a")))),
        accepted(claimed("other", "b")),
        accepted(claimed("none", None)),
    ]
    use = use_of(records, "a")
    assert use == Use(2 * PRICE, (("unclear", 1, PRICE), ("late", 1, PRICE)))
    month = try_reserve(MonthlySpend(), "a", 60, 60, ceilings=Ceilings(Decimal(60)))
    assert month is not None
    month = settle(month, "a", use)
    assert (month.spent_in(DAY), month.unclear_in(DAY), month.reserved_in(DAY)) == (2 * PRICE, 2 * PRICE, Decimal(0))
    assert settle(month, "a", use) == month  # only once
    for item, answered in zip(month.unclear, (accepted(records[2]), reject(late)), strict=True):
        assert resolve(month, item, use_of_attempt(claimed("x", "a"), 1)) == month  # still unclear
        month = resolve(month, item, use_of_attempt(answered, item.attempt_number))
        assert resolve(month, item, use_of_attempt(answered, item.attempt_number)) == month  # only once
    assert (month.spent_in(DAY), month.unclear_in(DAY)) == (3 * PRICE, Decimal(0))
    again = records[4]
    assert (use_of_attempt(again, 1), use_of_attempt(again, 2)) == (Use(), Use(PRICE))


def test_renewed_reservation_is_not_considered_dead() -> None:
    month = try_reserve(MonthlySpend(), "a", 3, 60, ceilings=Ceilings(Decimal(60)))
    assert month is not None
    seen = month.reservations["a"]
    expiry = seen.expires_at + 2 * CLOCKS_DIFFER_AT_MOST
    assert not month.dead(expiry)
    assert month.dead(expiry + timedelta(seconds=1)) == {"a": seen}
    renewed = reserve(
        month,
        "a",
        least=PRICE,
        wanted=PRICE,
        day=DAY,
        ceilings=Ceilings(Decimal(60)),
        now=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
    assert renewed is not None
    assert renewed.reservations["a"].amount == 60
    assert settle(renewed, "a", Use(), seen=seen) == renewed


def test_first_count_includes_payments_made_before_the_ceiling() -> None:
    records = [
        accepted(claimed("a", None)),
        lose(claimed("b", None)),
        reject(claimed("c", None)),
        accepted(claimed("d", None, at=NOW - timedelta(days=1))),
        accepted(claimed("e", None, at=NOW - timedelta(days=28))),
    ]
    month = first_count(records, DAY.replace(day=1))
    assert (month.spent_in(DAY), month.unclear_in(DAY), month.spent_in()) == (PRICE, PRICE, 2 * PRICE)


@pytest.mark.parametrize(
    ("period", "day", "following"),
    [
        ("day", date(2026, 11, 30), date(2026, 12, 1)),
        ("month", date(2026, 11, 1), date(2026, 12, 1)),
        ("month", date(2026, 12, 31), date(2027, 1, 1)),
        ("month", date(2028, 1, 31), date(2028, 2, 1)),
    ],
)
def test_next_period_starts_on_the_following_day_or_month(period: Period, day: date, following: date) -> None:
    assert next_period(period, day) == following


def test_ceiling_that_lasts_longer_is_reported() -> None:
    month = MonthlySpend(spent={DAY: Decimal(10)})
    for per_month, period in ((Decimal(10), "month"), (Decimal(20), "day")):
        limit = in_the_way(month, Ceilings(Decimal(10), per_month), DAY, PRICE)
        assert limit is not None
        assert (limit.period, limit.amount) == (period, Decimal(10))
    assert in_the_way(month, Ceilings(Decimal(20), Decimal(20)), DAY, PRICE) is None


class Spending(RuleBasedStateMachine):
    """Runs that reserve, claim, get an answer or none, end or crash, in any order, on two days of a month."""

    CEILINGS = Ceilings(Decimal(15), Decimal(24))

    def __init__(self) -> None:
        super().__init__()
        self.month = MonthlySpend()
        self.records: dict[str, Generation] = {}
        self.held: dict[str, tuple[date, Decimal]] = {}
        self.used: dict[str, Decimal] = {}
        self.dead: set[str] = set()

    @rule(run=st.sampled_from("abc"), day=st.sampled_from((DAY, DAY + timedelta(days=1))), videos=st.integers(1, 4))
    def reserve_and_claim(self, run: str, day: date, videos: int) -> None:
        name = f"{run}-{day}"
        if name in self.dead:
            return
        used = self.used.get(name, Decimal(0))
        if name not in self.held or self.held[name][1] < used + PRICE:
            month = try_reserve(
                self.month, name, int(used + PRICE), int(used + videos * PRICE), ceilings=self.CEILINGS, day=day
            )
            if month is None:
                return
            self.month, self.held[name] = month, (day, month.reservations[name].amount)
        key = f"k{len(self.records)}"
        self.records[key] = claimed(key, name)
        self.used[name] = used + PRICE

    def _claims(self) -> list[str]:
        return sorted(key for key, found in self.records.items() if found.state in ("claimed", "unconfirmed"))

    @precondition(lambda self: self._claims())
    @rule(data=st.data(), answer=st.sampled_from((accepted, reject, lose)))
    def answer_claim(self, data: st.DataObject, answer: object) -> None:
        key = data.draw(st.sampled_from(self._claims()))
        self.records[key] = answer(self.records[key])  # type: ignore[operator]
        name = self.records[key].attempt.reservation
        if self.records[key].state == "rejected" and name is not None and name not in self.dead:
            self.used[name] -= PRICE

    @precondition(lambda self: self.held.keys() - self.dead)
    @rule(data=st.data())
    def end_or_crash_and_settle(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.held.keys() - self.dead)))
        self.month = settle(self.month, name, use_of(self.records.values(), name))
        self.dead.add(name)

    @rule()
    def resolve_unclear_amounts(self) -> None:
        for item in self.month.unclear:
            self.month = resolve(self.month, item, use_of_attempt(self.records.get(item.key), item.attempt_number))

    @invariant()
    def no_ceiling_is_exceeded(self) -> None:
        by_day: dict[date, Decimal] = {}
        for found in self.records.values():
            name = found.attempt.reservation
            if found.state != "rejected" and name is not None:
                day = self.held[name][0]
                by_day[day] = by_day.get(day, Decimal(0)) + PRICE
        assert self.CEILINGS.per_day is not None
        assert self.CEILINGS.per_month is not None
        assert all(amount <= self.CEILINGS.per_day for amount in by_day.values())
        assert sum(by_day.values()) <= self.CEILINGS.per_month
        assert all(self.month.committed(day) >= amount for day, amount in by_day.items())

    def teardown(self) -> None:
        """Once all is settled, the month counts what was or may have been paid, and nothing stays reserved."""
        for name in self.held.keys() - self.dead:
            self.month = settle(self.month, name, use_of(self.records.values(), name))
        self.resolve_unclear_amounts()
        paid = [found for found in self.records.values() if found.state != "rejected"]
        assert self.month.committed() == PRICE * len(paid)


TestSpending = Spending.TestCase
TestSpending.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
