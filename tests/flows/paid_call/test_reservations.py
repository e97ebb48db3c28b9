"""Reservations that run out, are renewed, taken over or settled: each amount counts once."""

from datetime import UTC, datetime, timedelta

import pytest

from apixo import Failed
from flows.paid_call import Accepted, LostRace, Rejected, Unclear
from flows.paid_call.spend_guard import is_free
from flows.record import transitions
from flows.record.generation import Generation
from flows.record.ledger import Ledger, record_name
from flows.record.pipeline_errors import CeilingError
from tests.flows.paid_call.spending import PRICE, answer, claim, guard, month, paid_in_all, pay
from tests.flows.record.ledgers import rejected

pytestmark = pytest.mark.usefixtures("sent")


async def test_a_reservation_is_renewed_before_it_runs_out(ledger: Ledger) -> None:
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


async def test_what_a_person_freed_meanwhile_is_not_counted_by_the_run_that_paid_it_again(ledger: Ledger) -> None:
    spending = guard(ledger, 10 * PRICE)
    await pay(ledger, spending, "a", Unclear)
    over = await ledger.change(
        "a", lambda found: transitions.resubmit_allowed(found, attempt_number=1, note="no", now=datetime.now(UTC))
    )
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        reserved.outcome = await answer(ledger, await claim(ledger, "a", reserved.name, over), Accepted)
    await spending.aclose()
    assert (await month(ledger)).committed() == PRICE


async def test_a_run_that_renews_while_it_is_taken_for_dead_keeps_its_money(
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
    assert await paid_in_all(ledger) == 3 * PRICE


async def test_where_a_record_cannot_be_read_what_dead_runs_reserved_stays_reserved(ledger: Ledger) -> None:
    """Its content is unknown: it may name their reservations."""
    now = datetime(2025, 11, 28, 12, tzinfo=UTC)
    dead = guard(ledger, PRICE, now=lambda: now)
    await pay(ledger, dead, "a")
    await ledger._store.put(record_name("a"), b"junk")
    now += timedelta(minutes=43)
    with pytest.raises(CeilingError, match="2 reserved"):
        await pay(ledger, guard(ledger, PRICE, now=lambda: now), "b")


async def test_a_run_whose_record_cannot_be_read_ends_well_and_leaves_its_money_reserved(ledger: Ledger) -> None:
    spending = guard(ledger, PRICE)
    await pay(ledger, spending, "a", Unclear)
    await ledger._store.put(record_name("a"), b"junk")
    await spending.aclose()
    assert (await month(ledger)).reserved_in() == PRICE


async def test_all_records_since_the_first_of_the_dead_runs_began_are_looked_through(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was renewed began when it was first made."""
    start = now = datetime(2025, 11, 28, 12, tzinfo=UTC)
    first, second = (guard(ledger, 4 * PRICE, now=lambda: now) for _ in range(2))
    await pay(ledger, first, "a")
    now += timedelta(minutes=20)
    await pay(ledger, second, "b")
    await pay(ledger, first, "c")
    requested: list[datetime] = []

    async def everything(moment: datetime) -> list[Generation]:
        requested.append(moment)
        return list((await ledger.read_all(await ledger.keys())).values())

    monkeypatch.setattr(ledger, "changed_since", everything)
    now += timedelta(minutes=43)
    heir = guard(ledger, 4 * PRICE, now=lambda: now)
    await pay(ledger, heir, "d")
    with pytest.raises(CeilingError):
        await pay(ledger, heir, "e")
    assert requested[0] == start


async def test_a_key_that_one_run_pays_twice_is_counted_twice(ledger: Ledger) -> None:
    spending = guard(ledger, 2 * PRICE)
    await pay(ledger, spending, "a")
    status = Failed(task_id="a-1", state="failed", fail_code="OUT_OF_LUCK", fail_message="no")
    over = await ledger.change("a", lambda found: transitions.failed(found, status, now=datetime.now(UTC)))
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        reserved.outcome = await answer(ledger, await claim(ledger, "a", reserved.name, over), Accepted)
    with pytest.raises(CeilingError):
        await pay(ledger, spending, "b")
    await spending.aclose()
    assert (await month(ledger)).spent_in() == await paid_in_all(ledger) == 2 * PRICE


async def test_a_rejection_is_free_only_if_the_last_attempt_on_the_reservation_was_not_paid(ledger: Ledger) -> None:
    over = await ledger.change((await claim(ledger, "a", "r")).generation.key, rejected)
    paid = await answer(ledger, await claim(ledger, "a", "r", over), Accepted)
    assert isinstance(paid, Accepted)
    assert is_free(Rejected(over), "r")
    assert not is_free(Rejected(over), "another"), "the record does not say"
    assert not is_free(Rejected(paid.entry), "r")
