"""Which of a generation's attempts were paid, or may have been. All pure."""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Final, NamedTuple

from blocks.prices import Price, price_of
from flows.record.generation import Attempt, Generation, State

NOT_PAID: Final = frozenset({State.REJECTED})
"""States of an attempt that cost nothing. A claim without an answer may have been paid, so it counts as paid. So does a
failed attempt: whether APIXO charges for failures is undocumented."""
UNCLEAR: Final = frozenset({State.CLAIMED, State.UNCONFIRMED})
"""States of an attempt in which it is unknown whether it was paid."""


class Payment(NamedTuple):
    """An actual or possible payment.

    Attributes:
        generation, attempt: what it was made for.
        task_id: the task that was accepted; None: it is unknown whether one was.
    """

    generation: Generation
    attempt: Attempt
    task_id: str | None


def payments(generation: Generation) -> list[Payment]:
    """All actual and possible payments for a generation."""
    found: list[Payment] = []
    seen: set[str] = set()
    for attempt in generation.attempts:
        if attempt.task_id is None and attempt.state not in NOT_PAID:
            found.append(Payment(generation, attempt, None))
        # A task from a late answer is in two attempts but was paid once. Superseded tasks were paid as well.
        new = attempt.task_ids - seen
        found += [Payment(generation, attempt, task_id) for task_id in sorted(new)]
        seen |= new
    return found


def all_payments(generations: Iterable[Generation]) -> Iterator[Payment]:
    """All actual and possible payments for these generations."""
    return (payment for generation in generations for payment in payments(generation))


def paid_attempts(generation: Generation | None) -> int:
    """How many attempts of a generation were, or may have been, paid."""
    return 0 if generation is None else len(payments(generation))


def spent_on(generations: Iterable[Generation | None], prices: Mapping[str, Price]) -> Decimal:
    """What was paid for these generations so far, at the prices of their claims, else at today's, as far as known."""
    known = (price for generation in filter(None, generations) for price in _prices_paid(generation, prices))
    return sum(filter(None, known), Decimal(0))


def full_cost(generation: Generation, prices: Mapping[str, Price]) -> Decimal | None:
    """What was paid for a generation in all; None: the price of a payment is unknown."""
    paid = _prices_paid(generation, prices)
    known = [price for price in paid if price is not None]
    return sum(known, Decimal(0)) if len(known) == len(paid) else None


def _prices_paid(generation: Generation, prices: Mapping[str, Price]) -> list[Decimal | None]:
    """The price of each payment: that of its claim, else today's; None: neither is known."""
    return [
        price_of(attempt.model, generation.request.on(attempt.model).seconds, prices)
        if attempt.price is None
        else attempt.price
        for _, attempt, _ in payments(generation)
    ]
