"""What a batch may still spend, at the prices in the API block."""

from collections.abc import Collection, Mapping
from decimal import Decimal

from apixo.constants import DEFAULT_MODEL
from blocks.prices import Price, price_of
from flows.record.pipeline_errors import PipelineError


class BudgetError(PipelineError):
    """The paid call was not made: it would exceed `max_spend`, or the batch has stopped paying. Nothing was sent."""


class Budget:
    """Counts what one run of a batch pays, and stops before the call that would exceed the limit.

    Rows reserve in the order in which they are ready to pay, which may differ from the calendar's. Once a reservation
    exceeds the limit, all later ones are rejected too, even cheaper ones.

    Args:
        prices: the price of each model, by its name. Without any, nothing is counted.
        models: the models that may be used. With a limit, each needs a price.
        max_spend: the most that all runs of the batch may pay together; None: no limit.
        spent_before: what earlier runs paid.

    Raises:
        BudgetError: there is a limit, and a model has no price.
    """

    def __init__(
        self,
        prices: Mapping[str, Price],
        *,
        models: Collection[str] = (DEFAULT_MODEL,),
        max_spend: Decimal | None = None,
        spent_before: Decimal = Decimal(0),
    ) -> None:
        self._prices = prices
        unknown = [model for model in models if self.price(1, model) is None]
        if max_spend is not None and unknown:
            raise BudgetError(
                f"max_spend needs a price of {', '.join(unknown)}: set price_per_second (of {DEFAULT_MODEL}) or prices "
                "in the apixo-api block to what you pay. Nothing was submitted."
            )
        self.max_spend = max_spend
        self.spent_before = spent_before
        self._reserved: dict[str, Decimal] = {}
        self._lost: set[str] = set()
        """The reserved videos that another run pays for."""
        self._paid = Decimal(0)
        self.closed: str | None = None

    @property
    def spent(self) -> Decimal | None:
        """What this run paid, as far as it knows; None without a price."""
        mine = [price for key, price in self._reserved.items() if key not in self._lost]
        return sum(mine, self._paid) if self.counts else None

    @property
    def counts(self) -> bool:
        """Whether there is any price to count with."""
        return bool(self._prices)

    def price(self, duration_seconds: int | None, model: str = DEFAULT_MODEL) -> Decimal | None:
        """What a video costs; None without a price."""
        return price_of(model, duration_seconds, self._prices)

    def reserve(self, key: str, duration_seconds: int | None, model: str = DEFAULT_MODEL) -> None:
        """Reserves the price of a video, once per key: of several tries at most one is paid.

        A try with a fallback model replaces the reservation for the previous model.

        Raises:
            BudgetError: that would exceed the limit, it has no price and there is a limit, or the budget is closed.
        """
        known = self.price(duration_seconds, model)
        price = known or Decimal(0)
        self._lost.discard(key)
        held = self._reserved.get(key)
        if held == price:
            return
        if held is None and self.closed is not None:
            raise BudgetError(f"{key} was not submitted: {self.closed}.", key=key)
        if known is None and self.max_spend is not None:
            raise BudgetError(
                f"{key} was not submitted: max_spend needs its price, and with {model} it has none. Give it a "
                "duration, or the model a price per video.",
                key=key,
            )
        total = self.spent_before + self._paid + sum(self._reserved.values(), Decimal(0)) - (held or Decimal(0)) + price
        if self.max_spend is not None and total > self.max_spend:
            self.closed = (
                f"max_spend is {self.max_spend}, and with this video the batch would come to {total}. Raise it and "
                "run the batch again to continue"
            )
            raise BudgetError(f"{key} was not submitted: {self.closed}.", key=key)
        self._reserved[key] = price

    def pay(self, key: str) -> None:
        """Records that a video was accepted: another submission of it is paid as well."""
        self._paid += self._reserved.pop(key, Decimal(0))

    def release(self, key: str) -> None:
        """Releases a price: the video was provably not paid."""
        self._reserved.pop(key, None)

    def lose(self, key: str) -> None:
        """Records that another run submits a video: its price counts toward the limit, but this run does not pay it."""
        self._lost.add(key)
