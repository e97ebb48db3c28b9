"""Reservations that expire, are renewed, taken over or settled: each amount counts once."""

from datetime import UTC, datetime, timedelta

import pytest

from apixo import Failed
from flows.paid_call import Accepted, LostRace, Rejected, Unclear
from flows.paid_call.spend_guard import is_free
from flows.record import transitions
from flows.record.generation import Generation
from flows.record.ledger import Ledger, record_name
from flows.record.pipeline_errors import CeilingError
from tests.flows.paid_call.spending import PRICE, answer, claim, guard, month, pay, total_paid
from tests.flows.record.changes import reject

pytestmark = pytest.mark.usefixtures("sent")


async def test_reservation_is_renewed_before_it_expires(ledger: Ledger) -> None:
    now = datetime(2025, 11, 28, 12, tzinfo=UTC)
    spending = guard(ledger, 10 * PRICE, now=lambda: now)
    spending.expect(10 * PRICE)
    await pay(ledger, spending, "a")
    now += timedelta(minutes=9, seconds=50)
    async with spending.reserved("b", "sora-2", PRICE) as reserved:
        assert reserved.valid_until == now + timedelta(minutes=10)
        reserved.outcome = LostRace()
    (kept,) = (await month(ledger, now)).reservations.values()
    assert (kept.amount, kept.expires_at) == (10 * PRICE, now + timedelta(minutes=12))


async def test_amount_freed_by_user_is_not_counted_when_the_run_pays_again(ledger: Ledger) -> None:
    spending = guard(ledger, 10 * PRICE)
    await pay(ledger, spending, "a", Unclear)
    over = await ledger.change(
        "a", lambda found: transitions.resubmit_allowed(found, attempt_number=1, note="no", now=datetime.now(UTC))
    )
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        reserved.outcome = await answer(ledger, await claim(ledger, "a", reserved.name, over), Accepted)
    await spending.aclose()
    assert (await month(ledger)).committed() == PRICE


async def test_run_that_renews_while_presumed_dead_keeps_its_reservation(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2025, 11, 28, 12, tzinfo=UTC)
    sleeper, heir = (guard(ledger, 3 * PRICE, now=lambda: now) for _ in range(2))
    sleeper.expect(3 * PRICE)
    await pay(ledger, sleeper, "a")
    now += timedelta(minutes=43)
    changed_since = ledger.changed_since

    async def renewed_meanwhile(moment: datetime) -> list[Generation]:
        found = await changed_since(moment)
        await pay(ledger, sleeper, "b")
        return found

    monkeypatch.setattr(ledger, "changed_since", renewed_meanwhile)
    with pytest.raises(CeilingError):
        await pay(ledger, heir, "c")
    await pay(ledger, sleeper, "d")
    assert await total_paid(ledger) == 3 * PRICE


async def test_reservation_of_dead_run_is_kept_while_a_record_is_unreadable(ledger: Ledger) -> None:
    """The content of that record is unknown, so it may name a reservation of a dead run."""
    now = datetime(2025, 11, 28, 12, tzinfo=UTC)
    dead = guard(ledger, PRICE, now=lambda: now)
    await pay(ledger, dead, "a")
    await ledger._store.put(record_name("a"), b"junk")
    now += timedelta(minutes=43)
    with pytest.raises(CeilingError, match="2 reserved"):
        await pay(ledger, guard(ledger, PRICE, now=lambda: now), "b")


async def test_run_with_unreadable_record_ends_normally_and_stays_reserved(ledger: Ledger) -> None:
    spending = guard(ledger, PRICE)
    await pay(ledger, spending, "a", Unclear)
    await ledger._store.put(record_name("a"), b"junk")
    await spending.aclose()
    assert (await month(ledger)).reserved_in() == PRICE


async def test_records_since_the_start_of_the_first_dead_run_are_read(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewed reservation began when it was first made."""
    start = now = datetime(2025, 11, 28, 12, tzinfo=UTC)
    first, second = (guard(ledger, 4 * PRICE, now=lambda: now) for _ in range(2))
    await pay(ledger, first, "a")
    now += timedelta(minutes=20)
    await pay(ledger, second, "b")
    await pay(ledger, first, "c")
    requested: list[datetime] = []

    async def all_records(moment: datetime) -> list[Generation]:
        requested.append(moment)
        return list((await ledger.read_all(await ledger.keys())).values())

    monkeypatch.setattr(ledger, "changed_since", all_records)
    now += timedelta(minutes=43)
    heir = guard(ledger, 4 * PRICE, now=lambda: now)
    await pay(ledger, heir, "d")
    with pytest.raises(CeilingError):
        await pay(ledger, heir, "e")
    assert requested[0] == start


async def test_key_paid_twice_by_one_run_is_counted_twice(ledger: Ledger) -> None:
    spending = guard(ledger, 2 * PRICE)
    await pay(ledger, spending, "a")
    status = Failed(task_id="a-1", state="failed", fail_code="OUT_OF_LUCK", fail_message="no")
    over = await ledger.change("a", lambda found: transitions.failed(found, status, now=datetime.now(UTC)))
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        reserved.outcome = await answer(ledger, await claim(ledger, "a", reserved.name, over), Accepted)
    with pytest.raises(CeilingError):
        await pay(ledger, spending, "b")
    await spending.aclose()
    assert (await month(ledger)).spent_in() == await total_paid(ledger) == 2 * PRICE


async def test_rejection_is_free_only_if_last_attempt_on_the_reservation_was_unpaid(ledger: Ledger) -> None:
    over = await ledger.change((await claim(ledger, "a", "r")).generation.key, reject)
    paid = await answer(ledger, await claim(ledger, "a", "r", over), Accepted)
    assert isinstance(paid, Accepted)
    assert is_free(Rejected(over), "r")
    assert not is_free(Rejected(over), "another"), "the record does not say"
    assert not is_free(Rejected(paid.entry), "r")
