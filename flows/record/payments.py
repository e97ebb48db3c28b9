"""Which of a generation's attempts were paid, or may have been. All pure."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from types import MappingProxyType
from typing import Final

from blocks.prices import Price, price_of
from flows.record.generation import Attempt, Generation, State

NO_PRICES: Final[Mapping[str, Price]] = MappingProxyType({})

NOT_PAID: Final = frozenset({State.REJECTED})
"""States of an attempt that cost nothing. A claim without an answer may have been paid, so it counts as paid. So does
one that failed: whether APIXO charges for those is not documented."""
UNCLEAR: Final = frozenset({State.CLAIMED, State.UNCONFIRMED})
"""States of an attempt that was paid or was not: nobody can know yet."""


def payments(generation: Generation) -> list[Attempt]:
    """For each payment that there was, or may have been, the attempt that it was made in."""
    found: list[Attempt] = []
    seen: set[str] = set()
    for attempt in generation.attempts:
        if attempt.task_id is None and attempt.state not in NOT_PAID:
            found.append(attempt)
        # A late answer's task stands in two attempts and was paid once; one that another superseded was paid as well.
        new = attempt.task_ids - seen
        found += [attempt] * len(new)
        seen |= new
    return found


def paid_attempts(generation: Generation | None) -> int:
    """How many attempts of a generation were, or may have been, paid."""
    return 0 if generation is None else len(payments(generation))


def price_paid(
    generation: Generation,
    attempt: Attempt,
    price_per_second: Decimal | None,
    prices: Mapping[str, Price] = NO_PRICES,
) -> Decimal | None:
    """What one attempt cost: by the price at the time, else by today's; None: neither is known."""
    if attempt.price is not None:
        return attempt.price
    seconds = generation.request.on(attempt.model).seconds
    return price_of(attempt.model, seconds, price_per_second=price_per_second, prices=prices)


def spent_on(
    generations: Iterable[Generation | None],
    price_per_second: Decimal | None,
    prices: Mapping[str, Price] = NO_PRICES,
) -> Decimal:
    """What was paid for these generations so far: by the price at the time, else by today's."""
    total = Decimal(0)
    for generation in filter(None, generations):
        for attempt in payments(generation):
            total += price_paid(generation, attempt, price_per_second, prices) or Decimal(0)
    return total
