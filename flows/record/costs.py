"""What was spent, calculated from the ledger's records: each payment at the price of its claim. All pure."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date
from decimal import Decimal
from typing import Final, Literal

from pydantic import BaseModel, Field, computed_field

from flows.record.generation import Attempt, Generation, State
from flows.record.monthly_spend import Ceilings, MonthlySpend
from flows.record.payments import UNCLEAR, Payment, all_payments

Group = Literal["model", "tag", "batch", "day"]
Fate = Literal["archived", "open", "unclear", "failed"]
Groups = Callable[[Generation, Attempt], Iterable[str]]
"""The groups that a payment counts in."""

NONE: Final = "(none)"
"""The group of payments without a tag or batch."""


class CostRow(BaseModel):
    """What one group of payments cost, in one currency."""

    group: str = Field(description="A model, a tag, a batch's key or a day.")
    currency: str = Field(default="", description="As named in the API block; empty if it names none.")
    payments: int = 0
    archived: Decimal = Field(default=Decimal(0), description="For videos that are archived.")
    open: Decimal = Field(default=Decimal(0), description="Accepted, and not archived yet.")
    unclear: Decimal = Field(default=Decimal(0), description="Unknown whether it was paid.")
    failed: Decimal = Field(default=Decimal(0), description="For failed tasks, if APIXO charges for those.")
    unpriced: int = Field(default=0, description="Payments whose price was unknown at the claim. Not in the sums.")

    @computed_field  # type: ignore[prop-decorator] # mypy does not know it
    @property
    def total(self) -> Decimal:
        """Everything that was, or may have been, spent."""
        return self.archived + self.open + self.unclear + self.failed


class CeilingUse(BaseModel):
    """What counts against a ceiling."""

    ceiling: Literal["max_spend_per_day", "max_spend_per_month"]
    limit: Decimal
    spent: Decimal
    unclear: Decimal
    reserved: Decimal = Field(description="By runs in progress.")
    left: Decimal


class CostReport(BaseModel):
    """What a month cost."""

    month: str = Field(description="Such as 2026-11, UTC.")
    by: Group = Field(description="What a row is about.")
    rows: list[CostRow]
    totals: list[CostRow] = Field(description="One for each currency.")
    ceilings: list[CeilingUse] = Field(description="Of the current month; empty for other months.")


def ceiling_uses(ceilings: Ceilings, spend: MonthlySpend, today: date) -> list[CeilingUse]:
    """What counts against each ceiling that is set."""
    return [
        CeilingUse(
            ceiling=f"max_spend_per_{limit.period}",
            limit=limit.amount,
            spent=spend.spent_in(limit.day),
            unclear=spend.unclear_in(limit.day),
            reserved=spend.reserved_in(limit.day),
            left=max(limit.amount - spend.committed(limit.day), Decimal(0)),
        )
        for limit in ceilings.limits(today)
    ]


def costs(generations: Iterable[Generation], month: str, by: Group | None) -> list[CostRow]:
    """What the claims of a month cost, by group and currency, sorted by these.

    Args:
        generations: all that may have been claimed in the month.
        month: such as `2026-11`, UTC.
        by: what each row is about; None: everything, in one row per currency. A video with several tags counts in
            several rows.
    """
    rows: dict[tuple[str, str], CostRow] = {}
    for payment in all_payments(generations):
        found, attempt, _ = payment
        for group in _GROUPS[by](found, attempt) if _day(attempt).startswith(month) else ():
            currency = attempt.currency or ""
            row = rows.setdefault((group, currency), CostRow(group=group, currency=currency))
            row.payments += 1
            if attempt.price is None:
                row.unpriced += 1
            else:
                what = fate(payment)
                setattr(row, what, getattr(row, what) + attempt.price)
    return [row for _, row in sorted(rows.items())]


def fate(payment: Payment) -> Fate:
    """What came of a payment. A task from a late answer is in two attempts: the later one counts."""
    attempts, task_id = payment.generation.attempts, payment.task_id
    same = [item for item in attempts if item.task_id == task_id] if task_id else [payment.attempt]
    if not same:  # another task counts in its attempt
        (task,) = (item for item in payment.attempt.superseded if item.task_id == task_id)
        return "archived" if task.objects else "failed" if task.ended is not None else "open"
    state = same[-1].state
    if state in UNCLEAR:
        return "unclear"
    if state is State.FAILED:
        return "failed"
    return "archived" if state is State.ARCHIVED else "open"


def _day(attempt: Attempt) -> str:
    return f"{attempt.claimed_at.astimezone(UTC):%Y-%m-%d}"


_GROUPS: Final[Mapping[Group | None, Groups]] = {
    None: lambda _found, _attempt: ("total",),
    "model": lambda _, attempt: (attempt.model,),
    "tag": lambda found, _: found.request.tags or (NONE,),
    "batch": lambda _, attempt: (attempt.batch or NONE,),
    "day": lambda _, attempt: (_day(attempt),),
}
