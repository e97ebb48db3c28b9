"""The ceilings per day and month, on a real store: never exceeded, and nothing stays reserved forever."""

import asyncio
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from apixo import ApixoClient
from blocks import ApixoApi, VideoArchive
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.clock import Clock
from flows.paid_call import Accepted, LostRace, Outcome, PaidCall, Rejected, SpendGuard, Unclear
from flows.record import transitions
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from flows.record.monthly_spend import Ceilings, month_of
from flows.record.pipeline_errors import CeilingError, LedgerError, UnconfirmedError
from flows.resolution import allow_resubmission, load_generation
from flows.resources import PayingResources
from flows.submission import Submission
from tests.flows.generations import recorded, submit
from tests.flows.paid_call.spending import PRICE, Answer, answer, claim, guard, month, pay, total_paid
from tests.flows.record.ledgers import open_ledger
from tests.support import KITE, make_api, make_archive, unique
from tests.support.events import Sent
from tests.support.store_gate import StoreGate

pytestmark = pytest.mark.usefixtures("sent")

RACERS, ROWS = 8, 50


async def batch(archive: VideoArchive, number: int, ceiling: Decimal) -> None:
    """One of several batches that race for the money."""
    async with open_ledger(archive) as own:
        spending = guard(own, ceiling)
        spending.expect(ROWS * PRICE)
        for row in range(ROWS):
            # Every seventh is rejected: its money is used by a later row.
            answer_type: Answer = Rejected if row % 7 == 6 else Accepted
            try:
                await pay(own, spending, f"b{number}-{row}", answer_type)
            except CeilingError:
                break
        await spending.aclose()


def run_batch(archive: VideoArchive, number: int, ceiling: Decimal) -> None:
    asyncio.run(batch(archive, number, ceiling))


@pytest.mark.parametrize(
    "start",
    [threading.Thread, pytest.param(multiprocessing.get_context("spawn").Process, marks=pytest.mark.attack)],
    ids=["threads", "processes"],
)
async def test_racing_batches_spend_the_ceiling_to_within_one_video(
    archive: VideoArchive, ledger: Ledger, start: Callable[..., Any]
) -> None:
    ceiling = PRICE * 100 + 1  # half a video is left over
    racing = [start(target=run_batch, args=(archive, number, ceiling)) for number in range(RACERS)]
    for racer in racing:
        racer.start()
    for racer in racing:
        await asyncio.to_thread(racer.join)
    assert [getattr(racer, "exitcode", 0) for racer in racing] == [0] * RACERS
    paid = await total_paid(ledger)
    assert paid == PRICE * 100
    found = await month(ledger)
    assert (found.spent_in(), found.reservations, found.unclear) == (paid, {}, ())


async def test_fifty_rows_write_the_budget_object_five_times(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    put_if = ledger._store.put_if

    async def counting_put_if(name: str, data: bytes, **options: object) -> str:
        writes.append(name)
        return await put_if(name, data, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ledger._store, "put_if", counting_put_if)
    spending = guard(ledger, 1000)
    spending.expect(ROWS * PRICE)
    await asyncio.gather(*(pay(ledger, spending, f"k{row}") for row in range(ROWS)))
    await spending.aclose()
    assert sum(name.startswith("budget/") for name in writes) == 1 + 3 + 1  # created, 20 + 20 + 10 reserved, settled


async def test_reservation_of_dead_run_is_freed_and_unclear_amounts_once_resolved(ledger: Ledger) -> None:
    now = datetime(2025, 11, 28, 12, tzinfo=UTC)  # fixed, so no day ends during the test
    dead = guard(ledger, 10 * PRICE, now=lambda: now)
    dead.expect(10 * PRICE)
    for key, answer_type in (("a", Accepted), ("b", Unclear), ("c", Rejected)):
        await pay(ledger, dead, key, answer_type)
    async with dead.reserved("d", "sora-2", PRICE) as reserved:  # the run dies after its claim
        await claim(ledger, "d", reserved.name)
    living = guard(ledger, 10 * PRICE, now=lambda: now)
    with pytest.raises(CeilingError, match=r"max_spend_per_day is 20, of which 0 are spent, 0 unclear and 20 reserved"):
        await pay(ledger, living, "e")
    now += timedelta(minutes=43)
    heir = guard(ledger, 10 * PRICE, now=lambda: now)
    heir.expect(20 * PRICE)
    for number in range(7):
        await pay(ledger, heir, f"f{number}")
    with pytest.raises(CeilingError, match=r"of which 2 are spent, 4 unclear and 14 reserved"):
        await pay(ledger, heir, "g")
    assert await total_paid(ledger) == 10 * PRICE
    await ledger.change(
        "b", lambda found: transitions.resubmit_allowed(found, attempt_number=1, note="no", now=datetime.now(UTC))
    )
    other = guard(ledger, 10 * PRICE, now=lambda: now)
    await pay(ledger, other, "h")
    for spending in (heir, other, dead):  # the dead run resumes, too late to change anything
        await spending.aclose()
    found = await month(ledger, now)
    assert (found.spent_in(), found.unclear_in(), found.reservations) == (9 * PRICE, PRICE, {})


@pytest.mark.parametrize("answer_type", [Rejected, LostRace])
async def test_amount_of_an_unpaid_call_is_available_again_in_the_same_run(
    ledger: Ledger,
    answer_type: Answer,
) -> None:
    spending = guard(ledger, PRICE)
    for key in ("a", "b"):
        if answer_type is Rejected:
            await pay(ledger, spending, key, Rejected)
        else:
            async with spending.reserved(key, "sora-2", PRICE) as reserved:
                reserved.outcome = LostRace()
    await pay(ledger, spending, "c")
    with pytest.raises(CeilingError):
        await pay(ledger, spending, "d")


async def test_rejection_is_not_free_if_its_task_was_named_meanwhile(ledger: Ledger) -> None:
    spending = guard(ledger, PRICE)
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        named = await answer(ledger, await claim(ledger, "a", reserved.name), Accepted)
        assert isinstance(named, Accepted)
        reserved.outcome = Rejected(named.entry)
    with pytest.raises(CeilingError):
        await pay(ledger, spending, "b")
    await spending.aclose()
    assert (await month(ledger)).spent_in() == PRICE


async def test_call_in_progress_is_unclear_when_its_run_settles(ledger: Ledger) -> None:
    spending = guard(ledger, 10 * PRICE)
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        claimed = await claim(ledger, "a", reserved.name)
        await spending.aclose()
        assert (await month(ledger)).unclear_in() == PRICE
        reserved.outcome = await answer(ledger, claimed, Accepted)
    assert (await month(ledger)).committed() == PRICE


async def test_run_whose_reservation_was_settled_makes_a_new_one(ledger: Ledger) -> None:
    now = datetime.now(UTC).replace(hour=1)
    sleeper = guard(ledger, 10 * PRICE, now=lambda: now)
    await pay(ledger, sleeper, "a")
    await ledger.spend.change(month_of(now.date()), lambda found: found.model_copy(update={"reservations": {}}))
    now += timedelta(hours=2)
    await pay(ledger, sleeper, "b")
    (left,) = (await month(ledger)).reservations.values()
    assert left.amount == PRICE  # without the amount of the first one


async def test_daily_ceiling_starts_over_each_day_and_monthly_ceiling_counts_all_days(
    ledger: Ledger, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2025, 11, 28, 23, 59, 50, tzinfo=UTC)

    async def all_records(_: datetime) -> list[Generation]:  # the store does not use the test's clock
        return list((await ledger.read_all(await ledger.keys())).values())

    monkeypatch.setattr(ledger, "changed_since", all_records)
    spending = SpendGuard(ledger, Ceilings(PRICE, 2 * PRICE), now=lambda: now)
    async with spending.reserved("a", "sora-2", PRICE) as reserved:
        assert reserved.valid_until == datetime(2025, 11, 29, tzinfo=UTC)  # it ends with its day
        reserved.outcome = await answer(ledger, await claim(ledger, "a", reserved.name), Accepted)
    with pytest.raises(CeilingError, match="after 2025-11-29 00:00 UTC"):
        await pay(ledger, spending, "b")
    now = datetime(2025, 11, 29, 12, tzinfo=UTC)
    await pay(ledger, spending, "c")
    now = datetime(2025, 11, 30, 12, tzinfo=UTC)
    with pytest.raises(CeilingError, match=r"max_spend_per_month is 4.*after 2025-12-01 00:00 UTC"):
        await pay(ledger, spending, "d")
    now = datetime(2025, 12, 1, 12, tzinfo=UTC)
    await pay(ledger, spending, "d")


async def test_unreadable_budget_object_stops_every_claim(ledger: Ledger) -> None:
    await ledger._store.put(f"budget/{datetime.now(UTC):%Y-%m}.json", b"junk")
    with pytest.raises(LedgerError, match="cannot be read"):
        await pay(ledger, guard(ledger, 100), "a")
    assert await ledger.keys() == []


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    """A video of 4 s costs 2 dollars: the ceiling allows one and a half videos."""
    return make_api(sandbox, price_per_second=Decimal("0.5"), max_spend_per_day=Decimal(3), currency="USD")


@pytest.fixture(params=["answered", "not answered"])
def unclear(request: pytest.FixtureRequest, sandbox: SandboxServer) -> bool:
    """Whether the paid call gets no answer."""
    lost: bool = request.param == "not answered"
    if lost:
        sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    return lost


async def test_run_at_the_ceiling_ends_before_its_claim_and_says_when_to_continue(
    key: str, resources: PayingResources, sandbox: SandboxServer, unclear: bool, sent: Sent
) -> None:
    if unclear:
        with pytest.raises(UnconfirmedError):
            await submit(key, resources)
    else:
        await submit(key, resources)
    second = unique("second")
    today = datetime.now(UTC).date()
    with pytest.raises(CeilingError, match=rf"{second} was not submitted.*after {today + timedelta(days=1)} 00:00 UTC"):
        await Submission(second, KITE.model_copy(update={"prompt": "Another"}), resources).run()
    assert await resources.ledger.read(second) is None
    assert len(sandbox.tasks) == 1
    found = await recorded(key, resources)
    await resources.spending.aclose()
    spent = await month(resources.ledger)
    assert found.attempt.reservation is not None
    assert (spent.spent_in(today), spent.unclear_in(today)) == ((Decimal(0), PRICE) if unclear else (PRICE, Decimal(0)))
    assert not [event for event in sent.all() if event.event == "sora.budget.low"]  # only two thirds are used


async def test_budget_low_event_is_sent_once_a_day(
    archive: VideoArchive, sandbox: SandboxServer, sent: Sent, prefect_server: object
) -> None:
    limits = {"max_spend_per_day": Decimal(4), "max_spend_per_month": Decimal(50)}
    api = make_api(sandbox, price_per_second=Decimal("0.5"), **limits)
    for number in range(2):
        async with PayingResources(api, archive) as own:
            await submit(f"k{number}", own, KITE.model_copy(update={"prompt": f"Number {number}"}))
    async with PayingResources(api, archive) as own:
        with pytest.raises(CeilingError):
            await submit("k3", own, KITE.model_copy(update={"prompt": "Number 3"}))
    (low,) = [event for event in sent.all() if event.event == "sora.budget.low"]
    assert low.resource.id == f"sora.budget.{datetime.now(UTC).date()}"
    assert low.payload["committed"] == "4.0"


async def test_budget_low_event_is_sent_even_if_the_store_reply_is_lost(
    minio: ObjectStoreServer, sandbox: SandboxServer, sent: Sent, prefect_server: object
) -> None:
    api = make_api(sandbox, price_per_second=Decimal("0.5"), max_spend_per_day=Decimal(2))
    with StoreGate(minio.endpoint) as gate:
        async with PayingResources(api, make_archive(minio, endpoint=gate.endpoint)) as own:
            gate.lose_reply = lambda data: not gate.cut and data.startswith(b"PUT ") and b"if-match" in data.lower()
            await submit("k0", own)
        assert gate.cut == 1
    assert len([event for event in sent.all() if event.event == "sora.budget.low"]) == 1
    assert len(sandbox.record.submits()) == 1


async def test_ceiling_without_a_price_raises_error(
    key: str, archive: VideoArchive, sandbox: SandboxServer, prefect_server: object
) -> None:
    api = make_api(sandbox, max_spend_per_month=Decimal(100))
    async with PayingResources(api, archive) as own:
        with pytest.raises(CeilingError, match="need the price of sora-2, and none is known: set price_per_second"):
            await submit(key, own)
    assert len(sandbox.tasks) == 0


async def test_allowing_a_resubmission_frees_the_unclear_amount(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_before"))
    with pytest.raises(UnconfirmedError):
        await submit(key, resources)
    await resources.spending.aclose()
    await allow_resubmission(await load_generation(key, resources.ledger), resources)
    made = await submit(key, resources)
    assert (made.state, len(made.attempts), len(sandbox.tasks)) == (State.SUBMITTED, 2, 1)


async def test_expired_reservation_is_not_used_for_a_claim(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have been frozen in between. By then, others consider its money free."""
    make, late = PaidCall.make, Clock(now=lambda: datetime.now(UTC) + timedelta(hours=1))
    outcomes: list[Outcome] = []

    async def frozen_once(call: PaidCall, client: ApixoClient, ledger: Ledger, stopping: threading.Event) -> Outcome:
        outcomes.append(await make(call if outcomes else replace(call, clock=late), client, ledger, stopping))
        return outcomes[-1]

    monkeypatch.setattr(PaidCall, "make", frozen_once)
    made = await submit(key, resources)
    assert [type(outcome) for outcome in outcomes] == [LostRace, Accepted]
    assert (made.state, len(made.attempts), len(sandbox.tasks)) == (State.SUBMITTED, 1, 1)
    await resources.spending.aclose()
    assert (await month(resources.ledger)).committed() == PRICE
