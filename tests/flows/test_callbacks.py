"""What a callback changes, and what it cannot change. The tests assert on the ledger and on what the API received."""

import asyncio

import pytest

from apixo import ApixoClient, ApixoError, VideoRequest
from blocks import ApixoApi
from blocks.store_errors import StoreUnavailableError
from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.callbacks import NOTE, CallbackOutcome
from flows.record.generation import State
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import SubmissionRejectedError, UnconfirmedError
from flows.resources import PayingResources, Resources
from tests.flows.generations import (
    abandoned_claim,
    allow,
    charged,
    closed_before_each_change,
    fail,
    finished,
    lost,
    recorded,
    run_collector,
    submit,
)
from tests.support import made_outside, make_archive
from tests.support.events import Sent
from tests.support.receiver import records
from tests.support.store_gate import StoreGate, nothing

from .calls import call, names_of


async def test_finished_task_is_reported_without_changing_any_record(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    task_id = (await submit(key, resources)).task_id
    await finished(sandbox)
    before = await records(resources)
    assert await call(key, resources, task_id) is CallbackOutcome.FINISHED
    assert await records(resources) == before
    assert len(sandbox.record.statuses(task_id)) == 1
    reported = [event for event in sent.all() if event.event == "apixo.task.finished"]
    assert [event.resource.id for event in reported] == [f"sora.generation.{key}"]
    sent_payload = reported[0].payload
    assert sent_payload == {"key": key, "task_id": task_id, "api": "an-api", "archive": "an-archive", "end": None}


async def test_failed_task_is_reported_as_finished(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    await submit(key, resources, VideoRequest(prompt="forbidden"))
    await finished(sandbox)
    assert await call(key, resources) is CallbackOutcome.FINISHED
    assert (await recorded(key, resources)).state is State.SUBMITTED
    assert names_of(sent, key)[-1] == "apixo.task.finished"


async def test_early_callback_changes_and_reports_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    task_id = (await submit(key, resources)).task_id
    before = await records(resources)
    assert await call(key, resources, task_id) is CallbackOutcome.PENDING
    assert await records(resources) == before
    assert names_of(sent, key) == ["sora.generation.submitted"]


async def test_callback_for_an_archived_generation_sends_no_status_request(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = (await submit(key, resources)).task_id
    await finished(sandbox)
    await run_collector(resources)
    assert (await recorded(key, resources)).state is State.ARCHIVED
    before, requested = await records(resources), len(sandbox.record.statuses())
    for claimed_task_id in (task_id, None):
        assert await call(key, resources, claimed_task_id) is CallbackOutcome.ALREADY_HANDLED
    assert len(sandbox.record.statuses()) == requested
    assert await records(resources) == before


async def test_callback_for_a_failed_task_is_checked_and_changes_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = (await submit(key, resources, VideoRequest(prompt="forbidden"))).task_id
    await finished(sandbox)
    await run_collector(resources)
    before, requested = await records(resources), len(sandbox.record.statuses())
    assert await call(key, resources, task_id) is CallbackOutcome.ALREADY_HANDLED
    assert await records(resources) == before
    assert len(sandbox.record.statuses()) == requested + 1


async def test_video_of_a_task_reported_as_failed_before_is_archived(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    task_id = (await submit(key, resources)).task_id
    sandbox.faults.add(Fault(call="status", kind="failed_once"))
    await run_collector(resources)
    assert (await recorded(key, resources)).state is State.FAILED
    assert await resources.ledger.open_keys() == []
    await finished(sandbox)
    assert await call(key, resources, task_id) is CallbackOutcome.FINISHED
    (collected,) = await run_collector(resources)
    assert (collected.what, collected.task_id) == ("archived", task_id)
    assert await resources.ledger.open_keys() == []
    assert names_of(sent, key)[-1] == "sora.generation.archived"
    assert len(sandbox.record.submits()) == 1


async def test_video_of_a_failed_task_that_was_paid_again_is_archived_alongside(
    key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = (await submit(key, resources)).task_id
    sandbox.faults.add(Fault(call="status", kind="failed_once", times=2))
    await run_collector(resources)
    await allow(key, resources)
    second = (await submit(key, resources)).task_id
    await finished(sandbox)
    await run_collector(resources)
    assert await call(key, resources, first) is CallbackOutcome.ALREADY_HANDLED
    assert f"task {first} is paid as well" in caplog.text
    await run_collector(resources)
    found = await recorded(key, resources)
    assert (found.state, found.task_id) == (State.ARCHIVED, second)
    (superseded_task,) = found.attempts[0].superseded
    assert (superseded_task.task_id, [item.kind for item in superseded_task.objects][:1]) == (first, ["video"])
    assert await resources.ledger.open_keys() == []
    assert len(sandbox.record.submits()) == 2


@pytest.mark.parametrize("attempt", [0, -1, 2, 999_999])
async def test_callback_for_an_unknown_key_or_attempt_changes_nothing(
    attempt: int, key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert await call(f"{key}.none", resources, "task_1") is CallbackOutcome.UNKNOWN
    task_id = (await submit(key, resources)).task_id
    before = await records(resources)
    assert await call(key, resources, task_id, attempt=attempt) is CallbackOutcome.UNKNOWN
    assert await records(resources) == before
    assert sandbox.record.statuses() == []
    assert caplog.text.count("which this ledger does not have") == 2


async def test_unconfirmed_payment_is_reconciled_and_its_video_archived(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    task_id = await lost(key, resources, sandbox)
    await finished(sandbox)
    assert await call(key, resources, task_id) is CallbackOutcome.FINISHED
    assert len(sandbox.record.statuses()) == 1
    reconciled = await recorded(key, resources)
    assert (reconciled.state, reconciled.task_id, reconciled.attempt.note) == (State.SUBMITTED, task_id, NOTE)
    assert reconciled.attempt.problem is None
    assert "reconciled by its callback" in caplog.text
    (collected,) = await run_collector(resources)
    assert collected.what == "archived"
    assert len(sandbox.record.submits()) == 1
    reported = names_of(sent, key)
    assert reported[:3] == ["sora.generation.unconfirmed", "sora.generation.submitted", "apixo.task.finished"]


async def test_a_claim_whose_owner_died_is_reconciled(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await abandoned_claim(key, resources)
    task_id = await made_outside(resources.api)  # by the owner, right before it died
    assert await call(key, resources, task_id) in (CallbackOutcome.PENDING, CallbackOutcome.FINISHED)
    assert (await submit(key, resources)).task_id == task_id
    assert len(sandbox.record.submits()) == 1


async def test_paid_submission_recorded_as_rejected_is_reopened_for_the_collector(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    await allow(key, resources)  # the user did not find the task
    await resources.ledger.close(await recorded(key, resources))
    await call(key, resources, task_id)
    found = await recorded(key, resources)
    assert (found.state, found.task_id) == (State.SUBMITTED, task_id)
    assert found.attempt.note == f"a person allowed another submission; {NOTE}"
    assert await resources.ledger.open_keys() == [key]
    assert (await submit(key, resources)).task_id == task_id
    assert len(sandbox.record.submits()) == 1


async def test_open_marker_removed_by_another_process_is_restored(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    await allow(key, resources)
    closed_before_each_change(key, resources)
    await call(key, resources, task_id)
    assert await resources.ledger.is_published(key) is not None


@pytest.mark.parametrize("kind", ["http_404", "reset_before", "other_task"])
async def test_callback_changes_nothing_if_its_task_cannot_be_polled(
    kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    before = await records(resources)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    with pytest.raises(ApixoError):
        await call(key, resources, task_id)
    assert len(sandbox.record.statuses()) == 1
    assert await records(resources) == before


async def test_store_outage_during_a_callback_leaves_the_task_id_in_the_log(
    key: str,
    api: ApixoApi,
    minio: ObjectStoreServer,
    sandbox: SandboxServer,
    prefect_server: PrefectServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with StoreGate(minio.endpoint) as gate:
        archive = make_archive(minio)
        archive.endpoint = gate.endpoint
        async with PayingResources(api, archive, options=" --api x") as resources:
            resources.ledger = Ledger(resources.store, retry_timeout_seconds=0.5)
            task_id = await lost(key, resources, sandbox)
            before = await records(resources)
            gate.shut = lambda request: request.startswith(b"PUT") and b"/ledger/" in request
            with pytest.raises(StoreUnavailableError):
                await call(key, resources, task_id)
            assert gate.cut > 0
            assert f"sora resolve {key} --task-id {task_id} --api x" in caplog.text
            gate.shut = nothing
            assert await records(resources) == before
            await call(key, resources, task_id)
            assert (await recorded(key, resources)).task_id == task_id


async def test_late_callback_for_a_resubmitted_attempt_is_not_applied_to_the_next_one(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    first = await lost(key, resources, sandbox)
    await allow(key, resources)
    second = (await submit(key, resources)).task_id
    await finished(sandbox)
    assert await call(key, resources, first, attempt=1) is CallbackOutcome.ALREADY_HANDLED
    found = await recorded(key, resources)
    assert [attempt.task_id for attempt in found.attempts] == [first, second]
    assert (found.state, found.task_id) == (State.SUBMITTED, second)
    assert f"task {first} is paid as well" in caplog.text
    assert len(sandbox.record.statuses()) == 1
    reported = [(event.event, event.payload["task_id"]) for event in sent.all()]
    assert reported[1:] == [("sora.generation.submitted", second), ("sora.generation.submitted", first)]
    assert await call(key, resources, first, attempt=1) is CallbackOutcome.ALREADY_HANDLED
    assert await call(key, resources, None, attempt=2) is CallbackOutcome.FINISHED
    assert [request.task_id for request in sandbox.record.statuses()] == [first, second]


async def test_late_callback_is_adopted_if_nothing_else_was_paid(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    first = await lost(key, resources, sandbox)
    await allow(key, resources)
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    with pytest.raises(SubmissionRejectedError):
        await submit(key, resources)
    await finished(sandbox)
    for _ in range(2):
        assert await call(key, resources, first, attempt=1) is CallbackOutcome.FINISHED
    assert (await submit(key, resources)).task_id == first
    assert (await run_collector(resources))[0].what == "archived"
    assert (await recorded(key, resources)).task_id == first
    assert len(sandbox.record.charged()) == 1


async def test_late_callback_after_the_next_attempt_failed_logs_the_resolve_command(
    key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = await lost(key, resources, sandbox)
    await allow(key, resources)
    await submit(key, resources)
    await fail(key, resources, sandbox)
    assert await call(key, resources, first) is CallbackOutcome.ALREADY_HANDLED
    assert (await recorded(key, resources)).attempts[0].task_id == first
    assert f"sora resolve {key} --task-id {first}" in caplog.messages[-1]


async def test_late_callback_after_the_end_archives_alongside_without_another_event(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    """That video was paid for, too. If a second event were published, downstream flows would run twice."""
    first = await lost(key, resources, sandbox)
    await allow(key, resources)
    await submit(key, resources)
    await finished(sandbox)
    await run_collector(resources)
    assert await call(key, resources, first) is CallbackOutcome.ALREADY_HANDLED
    found = await recorded(key, resources)
    assert (found.state, found.attempts[0].task_id) == (State.ARCHIVED, first)
    await run_collector(resources)
    (superseded_task,) = (await recorded(key, resources)).attempts[0].superseded
    assert superseded_task.task_id == first
    assert {item.kind for item in superseded_task.objects} == {"video", "poster", "sidecar"}
    assert {item.name for item in superseded_task.objects}.isdisjoint(item.name for item in found.objects)
    assert await resources.ledger.open_keys() == []
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1
    assert len(sandbox.record.charged()) == 2


async def test_concurrent_callbacks_reconcile_once(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    await finished(sandbox)
    outcomes = await asyncio.gather(*(call(key, resources, task_id) for _ in range(8)))
    assert set(outcomes) == {CallbackOutcome.FINISHED}
    found = await recorded(key, resources)
    assert [(attempt.task_id, attempt.note) for attempt in found.attempts] == [(task_id, NOTE)]


async def test_callback_before_a_lost_reply_times_out_saves_the_run(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="hang_after"))
    paying = asyncio.create_task(submit(key, resources))
    task_id = await charged(sandbox)
    await call(key, resources, task_id)
    assert not paying.done()
    made = await paying
    assert (made.state, made.task_id) == (State.SUBMITTED, task_id)
    assert made == await recorded(key, resources)
    assert f"was accepted after all, as task {task_id}" in caplog.text
    assert len(sandbox.record.submits()) == 1
    assert "sora.generation.unconfirmed" not in names_of(sent, key)


async def test_callback_and_slow_reply_lead_to_the_same_record(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.8))
    paying = asyncio.create_task(submit(key, resources))
    task_id = await charged(sandbox)
    await call(key, resources, task_id)
    reconciled = await recorded(key, resources)
    assert not paying.done()
    assert await paying == reconciled
    assert reconciled.task_id == task_id
    assert len(sandbox.record.submits()) == 1


async def test_crashed_paid_call_raises_error_although_a_callback_reconciled_its_record(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit_and_crash(client: ApixoClient, *_: object, **__: object) -> str:
        monkeypatch.undo()
        async with Resources(resources.api, resources.archive) as receiver:  # in another process
            await call(key, receiver, await made_outside(resources.api))
        raise ZeroDivisionError

    monkeypatch.setattr(ApixoClient, "submit_once", submit_and_crash)
    with pytest.raises(UnconfirmedError) as caught:
        await submit(key, resources)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert (await recorded(key, resources)).state is State.SUBMITTED
    assert "sora.generation.unconfirmed" not in names_of(sent, key)
