"""Keeps all runs together below the ceilings per day and per month, on any number of machines.

The order is: reserve, claim, POST. A reservation is stored in the bucket before the claim that names it. It covers many
videos, so that not every video of a batch writes the same object.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Final

from blocks.store_errors import StoreError
from flows.paid_call.call import Accepted, LostRace, Outcome, Rejected
from flows.record.ledger import Ledger
from flows.record.monthly_spend import (
    Ceilings,
    MonthlySpend,
    Reservation,
    Use,
    first_count,
    in_the_way,
    month_of,
    next_period,
    reserve,
    resolve,
    settle,
    use_of,
    use_of_attempt,
)
from flows.record.payments import NOT_PAID
from flows.record.pipeline_errors import CeilingError, LedgerError
from flows.signals.events import emit_budget_low
from flows.signals.progress import run_logger

VALID_FOR: Final = timedelta(minutes=10)
"""How long claims may use a reservation; it is renewed if needed. The unused amount of a dead run becomes free half
an hour after the reservation expires, because clocks differ."""
SHORTEST: Final = timedelta(seconds=30)
"""How much of that must be left when a video is about to be claimed."""
VIDEOS_AT_ONCE: Final = 20
"""For how many videos a reservation is made or enlarged at once: a batch of 1,000 writes it 50 times, and withholds
little from other runs."""
CLOSING_SECONDS: Final = 20.0
"""How long a run tries to settle its reservation at its end. If that fails, another run settles it later."""


NEVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Held:
    """A run's reservation for one day, and how much of it has been used so far."""

    day: date
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    amount: Decimal = Decimal(0)
    valid_until: datetime = NEVER
    taken: dict[str, Decimal] = field(default_factory=dict)
    """By key: the amounts of accepted calls and of calls in progress."""
    unclear: set[str] = field(default_factory=set)
    """Keys for which only the record knows what was paid."""

    @property
    def used(self) -> Decimal:
        """The amount that cannot be used for other videos."""
        return sum(self.taken.values(), Decimal(0))

    def covers(self, price: Decimal, now: datetime) -> bool:
        """Whether a video of this price can be claimed with it now."""
        return self.used + price <= self.amount and now + SHORTEST <= self.valid_until


@dataclass(slots=True)
class Reserved:
    """The price of one video, reserved for one paid call.

    Attributes:
        name: the reservation's name, for the attempt; None: there is no ceiling.
        valid_until: the claim must be made before this; None: no limit.
        outcome: set by the caller as soon as it is known.
    """

    name: str | None = None
    valid_until: datetime | None = None
    outcome: Outcome | None = None


class SpendGuard:
    """One run's reservations.

    Args:
        lease_seconds: how long after its claim a request may still be sent, at most.
    """

    def __init__(
        self,
        ledger: Ledger,
        ceilings: Ceilings,
        *,
        currency: str | None = None,
        lease_seconds: float = 120.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.ceilings = ceilings
        self._ledger, self._currency, self._now = ledger, currency or "", now
        self._lease = timedelta(seconds=lease_seconds)
        self._lock = asyncio.Lock()
        self._held: dict[date, Held] = {}
        self._expected = Decimal(0)
        self._refused: tuple[date, str] | None = None

    def expect(self, amount: Decimal) -> None:
        """Sets the amount that the run will pay in all, so that it reserves for many videos at once."""
        self._expected = amount

    @asynccontextmanager
    async def reserved(self, key: str, model: str, price: Decimal | None) -> AsyncIterator[Reserved]:
        """Wraps one paid call. Without a ceiling it does nothing.

        Raises:
            CeilingError: a ceiling leaves no room for it, or its price is not known. Nothing was claimed or sent.
            StoreError: the store did not answer. Nothing was claimed or sent either.
        """
        if not self.ceilings:
            yield Reserved()
            return
        if price is None:
            raise CeilingError(f"{key} was not submitted: {price_needed(model)}", key=key)
        held = await self._take(key, price)
        reserved = Reserved(held.name, held.valid_until)
        # A run that is being ended may settle while this call is in progress. The record then shows what was paid.
        was_unclear = key in held.unclear
        held.unclear.add(key)
        try:
            yield reserved
        finally:
            free = is_free(reserved.outcome, held.name)
            if free:
                held.taken[key] -= price
            if not was_unclear and (free or isinstance(reserved.outcome, Accepted)):
                held.unclear.discard(key)

    async def aclose(self) -> None:
        """Settles the reservations. Errors of the store or ledger are ignored: another run then settles them later."""
        for held in self._held.values():
            with suppress(StoreError, LedgerError, TimeoutError):
                async with asyncio.timeout(CLOSING_SECONDS):
                    use = await self._use(held)
                    await self._ledger.spend.change(month_of(held.day), partial(settle, name=held.name, use=use))
        self._held.clear()

    async def _use(self, held: Held) -> Use:
        use = Use(sum((price for key, price in held.taken.items() if key not in held.unclear), Decimal(0)))
        for key in sorted(held.unclear):
            entry = await self._ledger.read(key)
            recorded = use_of([entry.generation] if entry else [], held.name)
            use = Use(use.spent + recorded.spent, use.unclear + recorded.unclear)
        return use

    async def _take(self, key: str, price: Decimal) -> Held:
        async with self._lock:  # one write at a time: the others use what it reserved
            now = self._now()
            day = now.astimezone(UTC).date()
            if self._refused is not None and self._refused[0] == day:
                raise CeilingError(f"{key} was not submitted: {self._refused[1]}", key=key)
            held = self._held.get(day)
            if held is None or not held.covers(price, now):
                held = await self._enlarge(key, held or Held(day), price)
            held.taken[key] = held.taken.get(key, Decimal(0)) + price
            self._expected = max(self._expected - price, Decimal(0))
            return held

    async def _enlarge(self, key: str, held: Held, price: Decimal) -> Held:
        """Makes, enlarges or renews the reservation, after making room if necessary."""
        name = month_of(held.day)
        await self._ledger.spend.begin(name, lambda: self._count(held.day))
        month = await self._reserve(held, price)
        if month is None:
            await self._make_room(name)
            month = await self._reserve(held, price)
        if month is None:
            month = await self._ledger.spend.read(name) or MonthlySpend()
            why = self._why(month, held.day, price)
            self._refused = held.day, why
            run_logger().error("This run submits no more videos: %s", why)
            raise CeilingError(f"{key} was not submitted: {why}", key=key)
        return self._held[held.day]

    async def _reserve(self, held: Held, price: Decimal) -> MonthlySpend | None:
        now = self._now()
        midnight = datetime.combine(held.day + timedelta(days=1), datetime.min.time(), UTC)
        valid_until = min(now + VALID_FOR, midnight)
        more = max(price, min(self._expected, price * VIDEOS_AT_ONCE))
        low: tuple[str, ...] = ()
        wrote: Reservation | None = None
        mine = held

        def how(month: MonthlySpend) -> MonthlySpend | None:
            nonlocal low, mine, wrote
            # If another run has settled it, since this run was suspended for long, what it had used is already counted.
            mine = held if not held.amount or held.name in month.reservations else Held(held.day)
            self._held[held.day] = mine  # before the write, whose reply may be lost
            after = reserve(
                month,
                mine.name,
                least=mine.used + price,
                wanted=mine.used + more,
                day=held.day,
                ceilings=self.ceilings,
                now=now,
                expires_at=valid_until + self._lease,
            )
            if wrote is None or month.reservations.get(mine.name) != wrote:  # else only the reply was lost
                low = after.warned[len(month.warned) :] if after else ()
            wrote = after.reservations[mine.name] if after else None
            return after

        month = await self._ledger.spend.change(month_of(held.day), how)
        if month is None:
            return None
        mine.amount, mine.valid_until = month.reservations[mine.name].amount, valid_until
        for label in low:
            self._warn(label, month, held.day)
        return month

    async def _make_room(self, name: str) -> None:
        """Settles the reservations of dead runs, and amounts that are no longer unclear."""
        month = await self._ledger.spend.read(name)
        if month is None:
            return
        dead = month.dead(self._now())
        try:
            changed = await self._ledger.changed_since(min(item.taken_at for item in dead.values())) if dead else []
        except LedgerError as error:
            run_logger().warning("What dead runs have reserved of the budget stays reserved: %s", error)
            dead, changed = {}, []
        for reservation, seen in dead.items():
            use = use_of(changed, reservation)
            await self._ledger.spend.change(name, partial(settle, name=reservation, use=use, seen=seen))
        records = await self._ledger.read_all([item.key for item in month.unclear])
        for item in month.unclear:
            use = use_of_attempt(records.get(item.key), item.attempt_number)
            if not use.unclear:
                await self._ledger.spend.change(name, partial(resolve, item=item, use=use))

    async def _count(self, day: date) -> MonthlySpend:
        """What was paid in a month before its first reservation, for example without a ceiling."""
        first = day.replace(day=1)
        start = datetime.combine(first, datetime.min.time(), UTC)
        return first_count(await self._ledger.changed_since(start), first)

    def _why(self, month: MonthlySpend, day: date, price: Decimal) -> str:
        period, limit, on, _ = in_the_way(month, self.ceilings, day, price) or self.ceilings.limits(day)[0]
        balance = (
            f"max_spend_per_{period} is {limit} {self._currency}".rstrip()
            + f", of which {month.spent_in(on)} are spent, {month.unclear_in(on)} unclear and {month.reserved_in(on)} "
            f"reserved by runs in progress, and this video costs {price}. Nothing was sent. "
        )
        if price > limit:
            return f"{balance}It can never fit: raise max_spend_per_{period} in the apixo-api block."
        again = next_period(period, day)
        return f"{balance}Run it again after {again} 00:00 UTC, or raise max_spend_per_{period} in the apixo-api block."

    def _warn(self, label: str, month: MonthlySpend, day: date) -> None:
        limit = next(limit for limit in self.ceilings.limits(day) if limit.label == label)
        committed = month.committed(limit.day)
        run_logger().warning("%s of %s %s are spent or reserved in %s.", committed, limit.amount, self._currency, label)
        emit_budget_low(label, limit=limit.amount, committed=committed, currency=self._currency)


def is_free(outcome: Outcome | None, reservation: str) -> bool:
    """Whether a paid call provably cost nothing, so that its price is available again. Pure.

    For a rejection, the record decides: a task may have been named before the rejection was written.
    """
    if isinstance(outcome, LostRace):
        return True
    if not isinstance(outcome, Rejected):
        return False
    made = [attempt for attempt in outcome.entry.generation.attempts if attempt.reservation == reservation]
    return bool(made) and made[-1].state in NOT_PAID


def price_needed(model: str) -> str:
    """What to do about a model without a price if there is a ceiling."""
    return (
        f"max_spend_per_day and max_spend_per_month need the price of {model}, and none is known: set price_per_second "
        "(of sora-2) or prices in the apixo-api block to what you pay. Nothing was sent."
    )
