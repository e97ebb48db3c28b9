"""What a batch may still pay. Prices are the user's own: the block's `price_per_second`."""

from collections.abc import Iterable
from decimal import Decimal
from typing import Final

from flows.record.errors import PipelineError
from flows.record.generation import Generation, State


class BudgetError(PipelineError):
    """The paid call was not made: it would exceed `max_spend`, or the batch pays nothing any more. Nothing was sent."""


class Budget:
    """Counts what one run of a batch pays, and stops before the call that would exceed the limit.

    Rows ask in the order in which they are ready to pay, which need not be that of the calendar. Once it has said no it
    says no to everything that asks later, cheaper or not.

    Args:
        price_per_second: of video; None: unknown, so nothing is counted.
        max_spend: the most all runs of the batch together may pay; None: no limit.
        spent_before: what earlier runs paid.

    Raises:
        BudgetError: there is a limit and no price to count with.
    """

    def __init__(
        self, *, price_per_second: Decimal | None, max_spend: Decimal | None = None, spent_before: Decimal = Decimal(0)
    ) -> None:
        if max_spend is not None and price_per_second is None:
            raise BudgetError(
                "max_spend needs a price: set price_per_second in the apixo-api block to what you pay for a second of "
                "video. Nothing was submitted."
            )
        self.price_per_second = price_per_second
        self.max_spend = max_spend
        self.spent_before = spent_before
        self._reserved: dict[str, Decimal] = {}
        self.closed: str | None = None

    @property
    def spent(self) -> Decimal | None:
        """What this run paid, as far as it knows; None without a price."""
        return sum(self._reserved.values(), Decimal(0)) if self.price_per_second is not None else None

    def price(self, duration_seconds: int) -> Decimal | None:
        """What a video costs; None without a price."""
        return self.price_per_second * duration_seconds if self.price_per_second is not None else None

    def reserve(self, key: str, duration_seconds: int) -> None:
        """Takes the price of a video out, once per key: of several tries at most one is paid.

        Raises:
            BudgetError: that would exceed the limit, or the budget is closed.
        """
        if key in self._reserved:
            return
        if self.closed is not None:
            raise BudgetError(f"{key} was not submitted: {self.closed}.", key=key)
        price = self.price(duration_seconds) or Decimal(0)
        total = self.spent_before + sum(self._reserved.values(), Decimal(0)) + price
        if self.max_spend is not None and total > self.max_spend:
            self.close(
                f"max_spend is {self.max_spend}, and with this video the batch would come to {total}. Raise it and "
                "run the batch again to go on"
            )
            raise BudgetError(f"{key} was not submitted: {self.closed}.", key=key)
        self._reserved[key] = price

    def release(self, key: str) -> None:
        """Gives a price back: the video was provably not paid."""
        self._reserved.pop(key, None)

    def close(self, why: str) -> None:
        """Has every further call refused."""
        self.closed = self.closed or why


NOT_PAID: Final = frozenset({State.REJECTED})
"""States of an attempt that cost nothing. A claim without an answer may have been paid, so it counts as paid. So does
one that failed: whether APIXO charges for those is not documented."""


def paid_attempts(generation: Generation | None) -> int:
    """How many attempts of a generation were, or may have been, paid."""
    if generation is None:
        return 0
    # A late answer's task stands in two attempts and was paid once; one that another superseded was paid as well.
    unclear = [item for item in generation.attempts if item.task_id is None and item.state not in NOT_PAID]
    return len(unclear) + len(generation.task_ids)


def spent_on(generations: Iterable[Generation | None], price_per_second: Decimal | None) -> Decimal:
    """What was paid for these generations so far."""
    if price_per_second is None:
        return Decimal(0)
    seconds = sum(paid_attempts(item) * item.request.duration for item in generations if item is not None)
    return price_per_second * seconds
