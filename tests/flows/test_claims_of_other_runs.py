"""A run that finds another run's claim waits for its answer, and sends nothing itself until the lease is over."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from deployments.sandbox import Fault, SandboxServer
from flows.record import transitions
from flows.record.generation import Generation, Problem, State
from flows.record.ledger import Entry, Ledger, record_name
from flows.record.pipeline_errors import LedgerError, SubmissionRejectedError, UnconfirmedError
from flows.resources import PayingResources
from flows.submission import wait_for_answer
from tests.flows.generations import abandoned_claim, charged, recorded, submit
from tests.flows.record.ledgers import SleepingClock


async def join_a_claim(key: str, resources: PayingResources) -> asyncio.Task[Generation]:
    """A run that waits for the answer to another run's claim."""
    await abandoned_claim(key, resources, lease_seconds=30)
    joined = asyncio.create_task(submit(key, resources))
    await asyncio.sleep(0.3)
    return joined


async def test_claim_of_a_dead_owner_becomes_unconfirmed_and_is_not_sent(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await abandoned_claim(key, resources)
    with pytest.raises(UnconfirmedError, match="process 1 on elsewhere"):
        await submit(key, resources)
    assert sandbox.record.submits() == []


async def test_claim_of_another_run_is_waited_for_until_its_lease_is_over(key: str, resources: PayingResources) -> None:
    """Until then, its request may still be sent: a user who decides earlier may pay twice."""
    await abandoned_claim(key, resources, lease_seconds=30)
    clock = SleepingClock()
    answered = await wait_for_answer(await resources.ledger.existing(key), resources.ledger, clock)
    assert answered.generation.state is State.UNCONFIRMED
    assert 30 <= sum(clock.pauses) < 31


async def test_run_that_waits_for_another_runs_claim_gets_its_task(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    joined = await join_a_claim(key, resources)
    await resources.ledger.change(
        key, lambda now: transitions.submitted(now, attempt_number=1, task_id="task_1", now=datetime.now(UTC))
    )
    assert (await joined).task_id == "task_1"
    assert sandbox.record.submits() == []


async def test_rejection_of_another_runs_claim_is_a_try_of_the_run_that_waited_for_it(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    joined = await join_a_claim(key, resources)
    no_credits = Problem(kind="BadRequestError", code="400", message="no credits")
    await resources.ledger.change(
        key, lambda now: transitions.rejected(now, attempt_number=1, problem=no_credits, now=datetime.now(UTC))
    )
    with pytest.raises(SubmissionRejectedError, match="after 1 try: no credits"):
        await joined
    assert sandbox.record.submits() == []


async def test_record_deleted_while_a_run_waits_for_it_is_not_claimed_again(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """It was deleted, perhaps with the bucket's other objects: what was paid for is no longer known."""
    joined = await join_a_claim(key, resources)
    await resources.store.remove(record_name(key))
    with pytest.raises(LedgerError, match=f"The ledger no longer has a record of {key}"):
        await joined
    assert sandbox.record.submits() == []


async def test_owner_presumed_dead_reconciles_the_record_when_its_answer_arrives(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=1))
    paying = asyncio.create_task(submit(key, resources))
    await charged(sandbox)
    problem = Problem(kind="OwnerDied", message="looked dead")
    await resources.ledger.change(
        key, lambda now: transitions.unconfirmed(now, attempt_number=1, problem=problem, now=datetime.now(UTC))
    )
    assert (await paying).state is State.SUBMITTED
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("shown_by", ["monotonic", "wall"])
async def test_process_frozen_after_its_claim_sends_nothing_with_the_stale_claim(
    shown_by: str, key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen_seconds, real, claim = 0.0, resources.clock.monotonic, Ledger.claim
    real_now = resources.clock.now

    async def claim_and_freeze(ledger: Ledger, claimed: Generation, *, over: Entry | None) -> Entry | None:
        nonlocal frozen_seconds
        written = await claim(ledger, claimed, over=over)
        frozen_seconds += 1000.0 if claimed.attempt.number == 1 else 0.0
        return written

    monkeypatch.setattr(Ledger, "claim", claim_and_freeze)
    if shown_by == "monotonic":
        resources.clock.monotonic = lambda: real() + frozen_seconds
    else:
        resources.clock.now = lambda: real_now() + timedelta(seconds=frozen_seconds)
    assert (await submit(key, resources)).state is State.SUBMITTED
    assert len(sandbox.record.submits()) == 1
    found = await recorded(key, resources)
    assert [attempt.state for attempt in found.attempts] == [State.REJECTED, State.SUBMITTED]
    assert found.attempts[0].problem is not None
    assert "too old" in found.attempts[0].problem.message
