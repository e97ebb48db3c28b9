"""Which of a generation's attempts were paid, or may have been. All pure."""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Final

from blocks.prices import Price, price_of
from flows.record.generation import Attempt, Generation, State

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


def spent_on(generations: Iterable[Generation | None], prices: Mapping[str, Price]) -> Decimal:
    """What was paid for these generations so far: by the price at the time, else by today's, as far as it is known."""
    total = Decimal(0)
    for generation in filter(None, generations):
        for attempt in payments(generation):
            price = attempt.price
            if price is None:
                price = price_of(attempt.model, generation.request.on(attempt.model).seconds, prices)
            total += price or Decimal(0)
    return total
