"""Divides a batch among several flow runs, its shards, so that its limits apply to all of them together."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal
from typing import Final

from pydantic import BaseModel, Field

from flows.batch.calendar_rows import Row

FOLDER: Final = "shards/"
"""Where shares and their results are stored while a batch is in progress. Its last run removes them."""


class Share(BaseModel):
    """The work of one shard of a batch."""

    key: str = Field(description="The batch's key.")
    folder: str = Field(description="Where in the bucket this run of the batch stores its shares; ends with a slash.")
    number: int = Field(description="Number of this shard; the first is 1.")
    of: int = Field(description="How many shards there are. Each gets an equal part of the limits per minute.")
    parent_run_id: str = Field(description="The flow run that made the share.")
    rows: list[Row]
    waits: bool
    refuse_duplicates: bool
    max_in_flight: int
    submissions_per_second: float
    max_spend: Decimal | None = Field(description="The most that all runs may pay for these rows; None: no limit.")

    @property
    def name(self) -> str:
        """The object that holds it."""
        return f"{self.folder}{self.number}.json"

    @property
    def summary_name(self) -> str:
        """The object that the shard writes at its end: the shard is done once it exists."""
        return f"{self.folder}{self.number}.summary.json"

    @property
    def stop_name(self) -> str:
        """The object that says why all shards have stopped submitting: one of them hit a problem that affects all."""
        return f"{self.folder}stop"

    def beat_name(self, attempt: int) -> str:
        """The object that the shard writes every few seconds, to show that it is alive."""
        return f"{self.folder}{self.number}.alive-{attempt}"


@dataclass(frozen=True, slots=True)
class Priced:
    """A row with what was paid for it before and what it will still cost, as far as prices are known."""

    row: Row
    spent: Decimal
    cost: Decimal


def deal(
    priced: Sequence[Priced], shards: int, *, max_spend: Decimal | None, spent_before: Decimal
) -> tuple[list[tuple[list[Row], Decimal | None]], list[Row]]:
    """Deals out rows in turn, so that all shards have about as many rows and the first rows come first. Pure.

    The limits of the parts, including what was spent before, add up to at most `max_spend`. So shards need not
    coordinate, and a restarted one cannot pay too much.

    Args:
        priced: the rows that are due, in the calendar's order.
        shards: how many parts; at least one.
        max_spend: the most that all runs of the batch may pay; None: no limit.
        spent_before: what earlier runs paid, including for rows that are not due.

    Returns:
        The parts, each with the most that may be paid for its rows, and the rows that exceed the budget.
    """
    affordable, unaffordable, total = list(priced), list[Row](), spent_before
    if max_spend is not None:
        affordable = []
        for item in priced:
            if not item.cost or (not unaffordable and total + item.cost <= max_spend):
                total += item.cost
                affordable.append(item)
            else:  # as in a single run: after the first row that exceeds the limit, cheaper ones are not paid either
                unaffordable.append(item.row)
    parts: list[tuple[list[Row], Decimal | None]] = []
    # Each part gets a share of the surplus, for videos that are paid for twice, such as resubmitted failed ones.
    surplus = Decimal(0) if max_spend is None else max(max_spend - total, Decimal(0)) / shards
    for first in range(shards):
        mine = affordable[first::shards]
        limit = None
        if max_spend is not None:
            needed = sum((item.spent + item.cost for item in mine), Decimal(0))
            limit = needed if unaffordable else needed + surplus.quantize(Decimal("0.000001"), ROUND_DOWN)
        parts.append(([item.row for item in mine], limit))
    return parts, unaffordable
