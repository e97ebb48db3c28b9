"""Recording the answer to the paid call when the store fails at that very moment."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apixo import ApixoClient
from blocks.store_errors import StoreRefusedError, StoreUnavailableError
from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import Generation, Problem, State
from flows.record.indexes import TaskOwner, TaskOwners, task_name
from flows.record.ledger import Entry, Ledger, record_name
from flows.record.pipeline_errors import LedgerError, UnconfirmedError
from flows.record.transitions import unconfirmed
from flows.resources import PayingResources
from tests.flows.generations import recorded, submit
from tests.support import make_api, make_archive
from tests.support.store_gate import StoreGate, nothing

RETRY_TIMEOUT_SECONDS = 0.4


@pytest.fixture
def gate(minio: ObjectStoreServer) -> Iterator[StoreGate]:
    """A gate in front of MinIO, for all store calls of the resources."""
    with StoreGate(minio.endpoint) as opened:
        yield opened


@pytest.fixture
async def gated(
    gate: StoreGate,
    minio: ObjectStoreServer,
    sandbox: SandboxServer,
    prefect_server: PrefectServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[PayingResources]:
    """Resources with a short retry timeout for the store."""
    monkeypatch.setitem(Ledger.__init__.__kwdefaults__ or {}, "retry_timeout_seconds", RETRY_TIMEOUT_SECONDS)
    monkeypatch.setattr("flows.paid_call.call.ALARM_SECONDS", RETRY_TIMEOUT_SECONDS)
    monkeypatch.setattr("flows.paid_call.call.ANSWER_RETRY_TIMEOUT_SECONDS", 3.0)
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.3, times=-1))
    api = make_api(sandbox, deadline_seconds=3, retry_delay_seconds=0.05)  # the retries outlast the outage
    async with PayingResources(api, make_archive(minio, endpoint=gate.endpoint)) as opened:
        opened.work_root = tmp_path / "work"
        yield opened


async def outage_until_end_of(run: asyncio.Task[Any], reached: Callable[[], object], gate: StoreGate) -> None:
    """Makes the store unavailable from the moment something is reached until the run has ended."""
    while not reached():
        await asyncio.sleep(0.005)
    gate.shut = lambda _: True
    await asyncio.wait([run])
    gate.shut = nothing


async def short_outage(reached: Callable[[], object], gate: StoreGate, *, seconds: float) -> None:
    """Makes the store unavailable for some seconds from the moment something is reached."""
    while not reached():
        await asyncio.sleep(0.005)
    gate.shut = lambda _: True
    await asyncio.sleep(seconds)
    gate.shut = nothing


async def test_unrecorded_acceptance_is_logged_with_its_task_and_recorded_after_the_outage(
    gate: StoreGate, gated: PayingResources, sandbox: SandboxServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    made, _ = await asyncio.gather(submit(key, gated), short_outage(sandbox.record.submits, gate, seconds=1.5))
    (charged,) = sandbox.record.charged()
    assert (made.state, made.task_id) == (State.SUBMITTED, charged.task_id)
    assert "the ledger is not written yet" in caplog.text
    assert f"sora resolve {key} --task-id {charged.task_id}" in caplog.text
    assert await recorded(key, gated) == made
    assert len(sandbox.record.submits()) == 1


async def test_unrecordable_acceptance_raises_error_with_resolve_command(
    gate: StoreGate, gated: PayingResources, sandbox: SandboxServer, key: str
) -> None:
    failing = asyncio.create_task(submit(key, gated))
    await outage_until_end_of(failing, sandbox.record.submits, gate)
    with pytest.raises(LedgerError) as caught:
        await failing
    (charged,) = sandbox.record.charged()
    assert caught.value.task_id == charged.task_id
    assert f"sora resolve {key} --task-id {charged.task_id}" in str(caught.value)
    left = await recorded(key, gated)
    assert left.state is State.CLAIMED  # never resubmitted automatically: see `wait_for_answer`
    assert await gated.ledger.is_published(key) is not None
    assert len(sandbox.record.submits()) == 1


async def test_unclear_answer_is_reported_even_if_it_cannot_be_recorded(
    gate: StoreGate, gated: PayingResources, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.clear()
    sandbox.faults.add(Fault(call="submit", kind="hang_after", seconds=60))
    failing = asyncio.create_task(submit(key, gated))
    await outage_until_end_of(failing, sandbox.record.submits, gate)
    with pytest.raises(UnconfirmedError, match=f"sora resolve {key} --resubmit"):
        await failing
    assert (await recorded(key, gated)).state is State.CLAIMED
    assert len(sandbox.record.submits()) == 1


async def test_request_is_not_sent_if_its_claim_cannot_be_checked_again(
    gate: StoreGate, gated: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that is no longer fresh is checked before the request is sent: others may have given it up meanwhile."""
    monkeypatch.setattr("flows.paid_call.call.FRESH_SECONDS", -1.0)
    claimed = []

    def after_the_claim(request: bytes) -> bool:
        line = request.split(b"\r\n", 1)[0]
        if line.startswith(b"PUT ") and b"/ledger/" in line:
            claimed.append(line)
        return bool(claimed) and line.startswith(b"GET ") and b"/ledger/" in line

    gate.shut = after_the_claim
    failing = asyncio.create_task(submit(key, gated))
    await asyncio.sleep(1.5)
    gate.shut = nothing
    made = await failing
    *rejected, last = made.attempts
    assert {attempt.state for attempt in rejected} == {State.REJECTED}
    assert last.state is State.SUBMITTED
    assert made.attempts[0].problem is not None
    assert "could not be checked before sending" in made.attempts[0].problem.message
    assert len(sandbox.record.submits()) == 1


async def test_request_is_sent_only_with_a_new_claim_if_others_gave_up_the_first(
    resources: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was frozen between its claim and the paid call. A user may have resubmitted since."""
    monkeypatch.setattr("flows.paid_call.call.FRESH_SECONDS", -1.0)
    claim = Ledger.claim
    problem = Problem(kind="NoReplyError", message="nobody answered")

    async def claim_then_give_up(ledger: Ledger, claimed: Generation, *, over: Entry | None) -> Entry | None:
        written = await claim(ledger, claimed, over=over)
        if claimed.attempt.number == 1:
            await ledger.change(
                key, lambda now: unconfirmed(now, attempt_number=1, problem=problem, now=resources.clock.now())
            )
        return written

    monkeypatch.setattr(Ledger, "claim", claim_then_give_up)
    made = await submit(key, resources)
    assert made.attempt.number == 2
    assert made.attempts[0].state is State.REJECTED
    assert made.attempts[0].task_id is None
    assert len(sandbox.record.submits()) == 1


@pytest.fixture
def record_removed(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is deleted right after its claim."""
    claim = Ledger.claim

    async def claim_then_remove(ledger: Ledger, claimed: Generation, *, over: Entry | None) -> Entry | None:
        written = await claim(ledger, claimed, over=over)
        await ledger._store.remove(record_name(key))
        return written

    monkeypatch.setattr(Ledger, "claim", claim_then_remove)


@pytest.mark.usefixtures("record_removed")
async def test_request_is_not_sent_if_its_claim_was_deleted(
    resources: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its key is unknown then, so the next run with this key pays."""
    monkeypatch.setattr("flows.paid_call.call.FRESH_SECONDS", -1.0)
    with pytest.raises(LedgerError, match="no longer has a record"):
        await submit(key, resources)
    assert sandbox.record.submits() == []


@pytest.mark.usefixtures("record_removed")
async def test_unclear_answer_is_reported_even_if_its_record_was_deleted(
    resources: PayingResources, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError, match="--task-id"):
        await submit(key, resources)
    assert len(sandbox.record.submits()) == 1


def reject_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store rejects the first three attempts to record whose task it is."""
    bind, left = TaskOwners.bind, [3]

    async def reject_or_bind(owners: TaskOwners, *arguments: Any, **named: Any) -> TaskOwner:
        if left[0]:
            left[0] -= 1
            raise StoreRefusedError("AccessDenied", code="AccessDenied")
        return await bind(owners, *arguments, **named)

    monkeypatch.setattr("flows.paid_call.call.PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(TaskOwners, "bind", reject_or_bind)


async def test_store_rejection_after_acceptance_is_retried_and_logged_at_once(
    resources: PayingResources,
    sandbox: SandboxServer,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Keys are rotated, a clock jumps, a quota is reached: none of these may lose the task."""
    reject_at_first(monkeypatch)
    made = await submit(key, resources)
    (charged,) = sandbox.record.charged()
    assert (made.state, made.task_id) == (State.SUBMITTED, charged.task_id)
    assert caplog.text.count(f"sora resolve {key} --task-id {charged.task_id}") == 1


@pytest.fixture
def single_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger retries nothing, so that each failure of the store or lost race ends one try of the paid call."""
    monkeypatch.setitem(Ledger.__init__.__kwdefaults__ or {}, "retry_timeout_seconds", 0.0)
    monkeypatch.setattr("flows.paid_call.call.PAUSE_SECONDS", 0.05)
    monkeypatch.setattr("flows.paid_call.call.ANSWER_RETRY_TIMEOUT_SECONDS", 30.0)


@pytest.mark.usefixtures("single_tries")
async def test_acceptance_is_recorded_even_if_its_record_loses_races_for_longer_than_the_ledger_retries(
    resources: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, lost = Ledger._replace, list[str]()

    async def after_another(ledger: Ledger, entry: Entry, changed: Generation) -> Entry | None:
        if changed.state is State.SUBMITTED and len(lost) < 5:
            lost.append(f"race {len(lost)}")
            now = await ledger.existing(key)
            await replace(ledger, now, now.generation.model_copy(update={"warnings": tuple(lost)}))
        return await replace(ledger, entry, changed)

    monkeypatch.setattr(Ledger, "_replace", after_another)
    made = await submit(key, resources)
    (charged,) = sandbox.record.charged()
    assert (made.state, made.task_id, made.warnings) == (State.SUBMITTED, charged.task_id, tuple(lost))
    assert len(lost) == 5
    assert await recorded(key, resources) == made
    assert len(sandbox.record.submits()) == 1


@pytest.mark.usefixtures("single_tries")
async def test_acceptance_is_recorded_once_if_its_writes_get_no_reply_for_longer_than_the_ledger_retries(
    resources: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, bind, lost = Ledger._replace, TaskOwners.bind, list[str]()

    async def bind_without_reply(owners: TaskOwners, *arguments: Any, **named: Any) -> TaskOwner:
        owner = await bind(owners, *arguments, **named)
        if not lost:
            lost.append("owner")
            raise StoreUnavailableError("no reply")
        return owner

    async def replace_without_reply(ledger: Ledger, entry: Entry, changed: Generation) -> Entry | None:
        written = await replace(ledger, entry, changed)
        if lost == ["owner"]:
            lost.append("record")
            raise StoreUnavailableError("no reply")
        return written

    monkeypatch.setattr(TaskOwners, "bind", bind_without_reply)
    monkeypatch.setattr(Ledger, "_replace", replace_without_reply)
    made = await submit(key, resources)
    (charged,) = sandbox.record.charged()
    assert (made.state, made.task_id, len(made.attempts)) == (State.SUBMITTED, charged.task_id, 1)
    assert made.task_ids == {charged.task_id}
    assert lost == ["owner", "record"]
    assert await recorded(key, resources) == made
    assert len(sandbox.record.submits()) == 1


async def test_acceptance_is_recorded_even_if_no_alarm_thread_can_start(
    resources: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container with a limit on processes."""
    start = threading.Thread.start

    def start_unless_alarm(thread: threading.Thread) -> None:
        if thread.name == "payment-alarm":
            raise RuntimeError("can't start new thread")
        start(thread)

    reject_at_first(monkeypatch)
    monkeypatch.setattr(threading.Thread, "start", start_unless_alarm)
    made = await submit(key, resources)
    assert (made.state, made.task_id) == (State.SUBMITTED, sandbox.record.charged()[0].task_id)
    assert len(sandbox.record.submits()) == 1


async def test_time_spent_checking_a_claim_counts_toward_its_age(
    resources: PayingResources, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the call could start after others have given the claim up and a user has resubmitted."""
    monkeypatch.setattr("flows.paid_call.call.FRESH_SECONDS", -1.0)
    passed, real, read = 0.0, resources.clock.monotonic, Ledger.read

    async def slow(ledger: Ledger, name: str) -> Entry | None:
        nonlocal passed
        found = await read(ledger, name)
        passed += 1000.0 if threading.current_thread().name == "payment" and passed == 0 else 0.0
        return found

    monkeypatch.setattr(Ledger, "read", slow)
    resources.clock.monotonic = lambda: real() + passed
    made = await submit(key, resources)
    assert [attempt.state for attempt in made.attempts] == [State.REJECTED, State.SUBMITTED]
    assert len(sandbox.record.submits()) == 1


async def test_unreadable_task_owner_after_acceptance_is_logged_with_the_task(
    resources: PayingResources,
    sandbox: SandboxServer,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is not a store error, so a retry would not help. The log names the task in case the run was cancelled."""
    put = TaskOwners._put

    async def put_after_junk(owners: TaskOwners, task_id: str, owner: TaskOwner, *, etag: str | None) -> bool:
        await owners._store.put(task_name(task_id), b"{junk")
        return await put(owners, task_id, owner, etag=etag)

    monkeypatch.setattr(TaskOwners, "_put", put_after_junk)
    with pytest.raises(LedgerError) as caught:
        await submit(key, resources)
    (charged,) = sandbox.record.charged()
    command = f"sora resolve {key} --task-id {charged.task_id}"
    assert command in str(caught.value)
    async with asyncio.timeout(60):
        while command not in caplog.text:  # the alarm runs in its own thread
            await asyncio.sleep(0.01)
    assert (await recorded(key, resources)).state is State.CLAIMED
    assert len(sandbox.record.submits()) == 1


async def test_call_that_is_cancelled_after_sending_is_recorded_as_unconfirmed(
    gated: PayingResources, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the event loop of the payment thread is torn down. Otherwise only the lease would show it."""

    async def cancelled(*_: object, **__: object) -> str:
        raise asyncio.CancelledError

    monkeypatch.setattr(ApixoClient, "submit_once", cancelled)
    with pytest.raises(UnconfirmedError, match=f"sora resolve {key} --resubmit"):
        await submit(key, gated)
    found = await recorded(key, gated)
    assert (found.state, found.attempt.problem and found.attempt.problem.kind) == (State.UNCONFIRMED, "CancelledError")
