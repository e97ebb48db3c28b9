"""Runs that reserve money and pay, against a real store, without a provider."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

from flows.paid_call import Accepted, LostRace, Outcome, Rejected, SpendGuard, Unclear
from flows.record import transitions
from flows.record.generation import Generation, Problem
from flows.record.ledger import Entry, Ledger
from flows.record.monthly_spend import Ceilings, MonthlySpend, month_of
from flows.record.payments import spent_on
from flows.record.pipeline_errors import UnconfirmedError
from tests.flows.record import changes

Answer = type[Accepted] | type[Rejected] | type[LostRace] | type[Unclear]

PRICE = Decimal(2)
PROBLEM = Problem(kind="RateLimitError", message="no")


def guard(ledger: Ledger, per_day: Decimal | int, *, now: Callable[[], datetime] | None = None) -> SpendGuard:
    return SpendGuard(ledger, Ceilings(Decimal(per_day)), now=now or (lambda: datetime.now(UTC)))


async def claim(ledger: Ledger, key: str, reservation: str | None, over: Entry | None = None) -> Entry:
    now, previous = datetime.now(UTC), over.generation if over else None
    made = changes.claimed(previous, key=key, lease_seconds=1, now=now, price=PRICE, reservation=reservation)
    entry = await ledger.claim(made, over=over)
    assert entry is not None
    return entry


async def answer(ledger: Ledger, claimed: Entry, answer_type: Answer) -> Outcome:
    """Records what the provider answered, as the paid call does."""
    key, now = claimed.generation.key, datetime.now(UTC)

    def transition(found: Generation) -> Generation:
        number = len(found.attempts)
        if answer_type is Rejected:
            return transitions.rejected(found, attempt_number=number, problem=PROBLEM, now=now)
        if answer_type is Unclear:
            return transitions.unconfirmed(found, attempt_number=number, problem=PROBLEM, now=now)
        return transitions.submitted(found, attempt_number=number, task_id=f"{key}-{number}", now=now)

    entry = await ledger.change(key, transition, known=claimed)
    if answer_type is Rejected:
        return Rejected(entry)
    if answer_type is Unclear:
        return Unclear(entry, UnconfirmedError("unclear"), RuntimeError())
    return Accepted(entry, f"{key}-1")


async def pay(ledger: Ledger, spending: SpendGuard, key: str, answer_type: Answer = Accepted) -> None:
    async with spending.reserved(key, "sora-2", PRICE) as reserved:
        reserved.outcome = await answer(ledger, await claim(ledger, key, reserved.name), answer_type)


async def month(ledger: Ledger, now: datetime | None = None) -> MonthlySpend:
    found = await ledger.spend.read(month_of((now or datetime.now(UTC)).date()))
    assert found is not None
    return found


async def total_paid(ledger: Ledger) -> Decimal:
    return spent_on(list((await ledger.read_all(await ledger.keys())).values()), {})
