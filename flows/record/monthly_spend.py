"""What is spent and reserved in a month by all runs and machines: the content of `budget/<yyyy-mm>.json`. All pure.

Each claim names its reservation, so the ledger shows what the reservation was really used for, even if its run died.
The order of reserving, paying and settling: "Ceilings per day and month" in `docs/ledger.md`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple

from pydantic import Field

from flows.record.generation import Generation, StoredModel
from flows.record.indexes import CLOCKS_DIFFER_AT_MOST
from flows.record.payments import UNCLEAR, Payment, all_payments

WARN_AT: Final = Decimal("0.8")
"""The fraction of a ceiling from which an event warns that the money is running low, once per period."""

Period = Literal["day", "month"]


class Reservation(StoredModel):
    """What one run may spend on one day."""

    day: date = Field(description="UTC.")
    amount: Decimal = Field(description="In all, including what it has already used.")
    taken_at: datetime = Field(description="When it was first made, by its run's clock.")
    expires_at: datetime = Field(description="After this, by its run's clock, no request is sent on it.")


class UnclearSpend(StoredModel):
    """What may have been spent from a settled reservation."""

    day: date
    amount: Decimal
    key: str = Field(description="The generation whose record will say.")
    attempt_number: int


class Limit(NamedTuple):
    """One ceiling: the limit for a day, or, without a day, for the month. Its label is that day or month."""

    period: Period
    amount: Decimal
    day: date | None
    label: str


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The most that may be spent per day and per month (UTC); None: no limit."""

    per_day: Decimal | None = None
    per_month: Decimal | None = None

    def __bool__(self) -> bool:
        return self.per_day is not None or self.per_month is not None

    def limits(self, day: date) -> list[Limit]:
        """The ceilings that are set, for this day."""
        per_day = [] if self.per_day is None else [Limit("day", self.per_day, day, day.isoformat())]
        return per_day + ([] if self.per_month is None else [Limit("month", self.per_month, None, month_of(day))])


@dataclass(frozen=True, slots=True)
class Use:
    """What a reservation was used for, according to the ledger's records.

    Attributes:
        spent: the price of accepted requests.
        unclear: key, attempt number and amount of each payment that is unknown.
    """

    spent: Decimal = Decimal(0)
    unclear: tuple[tuple[str, int, Decimal], ...] = ()


class MonthlySpend(StoredModel):
    """What is spent, unclear and reserved in one month."""

    spent: dict[date, Decimal] = Field(default_factory=dict, description="What is settled, by day.")
    unclear: tuple[UnclearSpend, ...] = ()
    reservations: dict[str, Reservation] = Field(default_factory=dict, description="Of runs that have not ended.")
    warned: tuple[str, ...] = Field(default=(), description="Days, or the month, that a warning was published for.")

    def spent_in(self, day: date | None = None) -> Decimal:
        """What is spent and settled on a day; None: in the whole month."""
        return sum((amount for on, amount in self.spent.items() if day in (None, on)), Decimal(0))

    def unclear_in(self, day: date | None = None) -> Decimal:
        """What is unclear on a day; None: in the whole month."""
        return sum((item.amount for item in self.unclear if day in (None, item.day)), Decimal(0))

    def reserved_in(self, day: date | None = None) -> Decimal:
        """What runs may still spend, or have spent but not settled."""
        return sum((item.amount for item in self.reservations.values() if day in (None, item.day)), Decimal(0))

    def committed(self, day: date | None = None) -> Decimal:
        """All of it: what counts against a ceiling."""
        return self.spent_in(day) + self.unclear_in(day) + self.reserved_in(day)

    def left(self, ceilings: Ceilings, day: date) -> Decimal:
        """What can still be reserved for a day. At least one ceiling must be set."""
        return min(limit.amount - self.committed(limit.day) for limit in ceilings.limits(day))

    def dead(self, now: datetime) -> dict[str, Reservation]:
        """Reservations on which no request can be sent any more, however far the clocks are off."""
        late = now - 2 * CLOCKS_DIFFER_AT_MOST
        return {name: item for name, item in self.reservations.items() if item.expires_at < late}


def reserve(
    month: MonthlySpend,
    name: str,
    *,
    least: Decimal,
    wanted: Decimal,
    day: date,
    ceilings: Ceilings,
    now: datetime,
    expires_at: datetime,
) -> MonthlySpend | None:
    """Makes or enlarges a reservation. None: the ceilings do not leave that much.

    The amounts are the reservation's totals, so that a write whose reply was lost can be repeated.

    Args:
        least: the smallest useful total.
        wanted: the preferred total, if the ceilings leave that much.
        day: the day it counts for.
        expires_at: until when requests may be sent on it.
    """
    before = month.reservations.get(name)
    held = before.amount if before else Decimal(0)
    amount = max(held, min(wanted, held + month.left(ceilings, day)))
    if amount < least:
        return None
    made = Reservation(day=day, amount=amount, taken_at=before.taken_at if before else now, expires_at=expires_at)
    changed = _with(month, reservations={**month.reservations, name: made})
    low = [
        limit.label
        for limit in ceilings.limits(day)
        if changed.committed(limit.day) >= WARN_AT * limit.amount and limit.label not in month.warned
    ]
    return _with(changed, warned=(*month.warned, *low))


def settle(month: MonthlySpend, name: str, use: Use, *, seen: Reservation | None = None) -> MonthlySpend:
    """Ends a reservation: the unused amount is free again. If it no longer exists, it is already settled.

    Args:
        seen: the reservation as it was when considered dead; if it has been renewed since, nothing changes.
    """
    ended = month.reservations.get(name)
    if ended is None or (seen is not None and ended != seen):
        return month
    unclear = _unclear(ended.day, use)
    return _with(
        month,
        reservations={other: item for other, item in month.reservations.items() if other != name},
        spent=_added(month.spent, ended.day, use.spent),
        unclear=(*month.unclear, *unclear),
    )


def resolve(month: MonthlySpend, item: UnclearSpend, use: Use) -> MonthlySpend:
    """Applies what the record says about an unclear amount, if it says more by now."""
    if use.unclear or item not in month.unclear:
        return month
    left = list(month.unclear)
    left.remove(item)
    return _with(month, unclear=tuple(left), spent=_added(month.spent, item.day, use.spent))


def use_of(generations: Iterable[Generation], reservation: str) -> Use:
    """What these generations used of a reservation."""
    return _use(item for item in all_payments(generations) if item.attempt.reservation == reservation)


def use_of_attempt(generation: Generation | None, number: int) -> Use:
    """What one attempt cost; nothing without a record, because then nothing was ever claimed."""
    found = [] if generation is None else [generation]
    return _use(item for item in all_payments(found) if item.attempt.number == number)


def first_count(generations: Iterable[Generation], first: date) -> MonthlySpend:
    """The month before its first reservation: what its claims paid so far, with or without ceilings.

    Args:
        generations: all that may have been claimed in the month.
    """
    by_day: dict[date, list[Payment]] = {}
    for payment in all_payments(generations):
        day = payment.attempt.claimed_at.astimezone(UTC).date()
        if month_of(day) == month_of(first):
            by_day.setdefault(day, []).append(payment)
    uses = {day: _use(paid) for day, paid in by_day.items()}
    return MonthlySpend(
        spent={day: use.spent for day, use in uses.items() if use.spent},
        unclear=tuple(item for day, use in uses.items() for item in _unclear(day, use)),
    )


def in_the_way(month: MonthlySpend, ceilings: Ceilings, day: date, amount: Decimal) -> Limit | None:
    """The ceiling that this amount would exceed, preferably the month's, which lasts longer. None: there is none."""
    limits = reversed(ceilings.limits(day))
    return next((limit for limit in limits if month.committed(limit.day) + amount > limit.amount), None)


def next_period(period: Period, day: date) -> date:
    """The first day of the next period."""
    if period == "day":
        return day + timedelta(days=1)
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def month_of(day: date) -> str:
    """The month of a day as in the object's name: `2026-11`."""
    return f"{day:%Y-%m}"


def _with(month: MonthlySpend, **changed: Any) -> MonthlySpend:
    return month.model_copy(update=changed)


def _added(spent: dict[date, Decimal], day: date, amount: Decimal) -> dict[date, Decimal]:
    return {**spent, day: spent.get(day, Decimal(0)) + amount} if amount else spent


def _unclear(day: date, use: Use) -> tuple[UnclearSpend, ...]:
    return tuple(
        UnclearSpend(day=day, amount=amount, key=key, attempt_number=number) for key, number, amount in use.unclear
    )


def _use(paid: Iterable[Payment]) -> Use:
    spent, unclear = Decimal(0), list[tuple[str, int, Decimal]]()
    for found, attempt, _ in paid:
        price = attempt.price or Decimal(0)
        if attempt.state in UNCLEAR:
            unclear.append((found.key, attempt.number, price))
        else:
            spent += price
    return Use(spent, tuple(unclear))
