"""Manual decisions about a generation: which state allows which decision, and that an invalid one changes nothing."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from apixo import Status, Succeeded
from deployments.sandbox import Fault, SandboxServer
from flows.collect_videos import collect
from flows.record import superseded_tasks, transitions
from flows.record.generation import Generation, State
from flows.record.indexes import TaskOwner
from flows.record.pipeline_errors import UnconfirmedError
from flows.resolution import ResolutionError, load_generation, resolve_as_task
from flows.resources import PayingResources
from tests.flows.generations import abandoned_claim, allow, closed_before_each_change, fail, lost, recorded, submit
from tests.flows.record.changes import store, succeed
from tests.flows.record.changes import submit as submitted
from tests.flows.record.ledgers import same
from tests.support import KITE, made_outside


async def resolve(key: str, task_id: str, resources: PayingResources) -> Generation:
    """Does what `sora resolve --task-id` does."""
    return await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)


async def test_manual_resolution_is_recorded(key: str, resources: PayingResources, sandbox: SandboxServer) -> None:
    resolved = await resolve(key, await lost(key, resources, sandbox), resources)
    assert resolved == await recorded(key, resources)
    assert "a person named" in (resolved.attempt.note or "")
    assert resolved.attempt.problem is None
    owner = await resources.ledger.tasks.owner(resolved.task_id or "")
    assert owner is not None
    assert (owner.key, owner.named_by) == (key, "person")


async def test_abandoned_claim_is_waited_out_and_reread_before_it_is_resolved(
    key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    """What a user saw in the account while the claim was still valid may be outdated."""
    task_id = await lost(f"{key}.other", resources, sandbox)
    await abandoned_claim(key, resources)
    with caplog.at_level("INFO"):
        assert (await resolve(key, task_id, resources)).state is State.SUBMITTED, "the task itself is polled"
    assert f"{key} may still be in progress" in caplog.text
    await abandoned_claim(f"{key}.2", resources)
    with pytest.raises(UnconfirmedError, match="--resubmit"):
        await allow(f"{key}.2", resources)
    assert (await allow(f"{key}.2", resources)).state is State.REJECTED
    assert len(sandbox.record.submits()) == 1


async def test_rejected_generation_that_was_accepted_after_all_continues(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    await allow(key, resources)
    await resources.ledger.close(await recorded(key, resources))
    assert (await resolve(key, task_id, resources)).task_id == task_id
    assert await resources.ledger.open_keys() == [key]
    assert (await submit(key, resources)).task_id == task_id
    assert len(sandbox.record.submits()) == 1


async def test_resolving_twice_with_the_same_task_changes_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    first = await resolve(key, task_id, resources)
    assert await resolve(key, task_id, resources) == first


async def test_a_failed_generation_stays_closed_when_its_own_task_is_named(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = (await submit(key, resources)).task_id or ""
    await fail(key, resources, sandbox)
    await resources.ledger.close(await recorded(key, resources))
    before = await resources.ledger.read(key)
    with pytest.raises(ResolutionError, match=r"reports task .* as failed.*nothing paid"):
        await resolve(key, task_id, resources)
    assert same(await resources.ledger.read(key), before)
    assert await resources.ledger.is_published(key) is None


async def test_open_marker_removed_by_another_process_is_restored(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    await allow(key, resources)
    closed_before_each_change(key, resources)
    await resolve(key, task_id, resources)
    assert await resources.ledger.is_published(key) is not None


@pytest.mark.parametrize("kind", ["http_401", "reset_before"])
async def test_resolution_changes_nothing_if_the_task_cannot_be_polled(
    kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await lost(key, resources, sandbox)
    before = await resources.ledger.read(key)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    with pytest.raises(ResolutionError, match=r"could not be polled.*Nothing was changed") as caught:
        await resolve(key, task_id, resources)
    assert (caught.value.key, caught.value.task_id) == (key, task_id)
    assert same(await resources.ledger.read(key), before)


async def test_key_that_was_never_submitted_cannot_be_resolved(key: str, resources: PayingResources) -> None:
    with pytest.raises(ResolutionError, match=r"no record.*Nothing was ever submitted"):
        await resolve(key, "task_1", resources)
    assert await resources.ledger.keys() == []


async def test_allowing_a_resubmission_twice_pays_only_once_more(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await fail(key, resources, sandbox)
    for _ in range(2):
        assert (await allow(key, resources)).attempt.resubmit_allowed
    again = await submit(key, resources)
    assert await submit(key, resources) == again
    assert [attempt.number for attempt in again.attempts] == [1, 2]
    assert len(sandbox.record.submits()) == 2


async def answered_with_a_replaced_task(key: str, resources: PayingResources, sandbox: SandboxServer) -> str:
    """Makes a key whose second attempt was answered with a task that a user had replaced, before its process died."""
    first = (await submit(key, resources)).task_id or ""
    second = await made_outside(resources.api)
    await resolve(key, second, resources)
    await fail(key, resources, sandbox)
    await allow(key, resources)
    over = await resources.ledger.existing(key)
    claimed = transitions.claim(
        over.generation, key=key, request=KITE, owner=resources.owner(), lease_seconds=0.3, now=datetime.now(UTC)
    )
    assert await resources.ledger.claim(claimed, over=over)
    await resources.ledger.tasks.bind(first, key, 2, naming=claimed.next_naming)
    return first


@pytest.mark.parametrize("by", ["a run", "a user who names it", "a user who names another", "the collector"])
async def test_attempt_answered_with_a_replaced_task_continues_with_it(
    by: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    first = await answered_with_a_replaced_task(key, resources, sandbox)
    async with asyncio.timeout(20):
        match by:
            case "a run":
                await submit(key, resources)
            case "a user who names it":
                await resolve(key, first, resources)
            case "a user who names another":
                with pytest.raises(ResolutionError, match=f"accepted it as task {first}"):
                    await resolve(key, await made_outside(resources.api), resources)
            case _:
                sandbox.faults.add(Fault(call="status", kind="http_500", times=-1))
                await collect([key], resources)
    found = await recorded(key, resources)
    assert (found.state, found.task_id, found.unarchived_superseded) == (State.SUBMITTED, first, ())
    assert found.task.folder == found.attempts[0].superseded[0].folder
    outside = 1 + (by == "a user who names another")
    assert len(sandbox.record.submits()) == 1 + outside


@pytest.mark.parametrize("decision", ["a run", "its task", "once more"])
async def test_claim_becomes_unconfirmed_if_its_answer_changes_nothing(
    decision: str, key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the store knows, a claim that stays unanswered becomes unconfirmed, and needs a manual decision."""
    first = await answered_with_a_replaced_task(key, resources, sandbox)
    monkeypatch.setattr(transitions, "submitted", lambda found, **_: found)
    async with asyncio.timeout(20):
        with pytest.raises(UnconfirmedError):
            await submit(key, resources)
        assert (await recorded(key, resources)).state is State.UNCONFIRMED
        match decision:
            case "a run":
                with pytest.raises(UnconfirmedError):
                    await submit(key, resources)
            case "its task":
                assert (await resolve(key, first, resources)).task_id == first
            case _:
                assert (await allow(key, resources)).state is State.REJECTED


async def test_task_replaced_while_it_is_polled_does_not_stop_other_generations(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user corrects a wrong task at the moment when the collector records the end of the wrong one."""
    right = await lost(key, resources, sandbox)
    await resolve(key, await made_outside(resources.api), resources)
    await lost(f"{key}.other", resources, sandbox)
    poll = resources.client.status_once

    async def poll_late(task_id: str, *, model: str) -> Status:
        if task_id == right:
            return await poll(task_id, model=model)
        await resolve(key, right, resources)
        return Succeeded(task_id=task_id, state="success", result_urls=("https://h.example/wrong.mp4",))

    monkeypatch.setattr(resources.client, "status_once", poll_late)
    replaced, other = await collect([key, f"{key}.other"], resources)
    assert (replaced.what, other.what) == ("error", "unconfirmed")
    assert f"{key} has the task {right}" in replaced.note
    assert (await recorded(key, resources)).state is State.SUBMITTED


async def test_task_named_again_while_it_is_released_stays_bound(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user corrects a mistake, and another one undoes the correction before the task is released."""
    wrong, right = await made_outside(resources.api), await made_outside(resources.api)
    await lost(key, resources, sandbox)
    await resolve(key, wrong, resources)
    release, reached, gate = resources.ledger.tasks.release, asyncio.Event(), asyncio.Event()

    async def release_late(*arguments: Any, **named: Any) -> None:
        if not reached.is_set():
            reached.set()
            await gate.wait()
        await release(*arguments, **named)

    monkeypatch.setattr(resources.ledger.tasks, "release", release_late)
    correcting = asyncio.create_task(resolve(key, right, resources))
    await reached.wait()
    assert (await resolve(key, wrong, resources)).task_id == wrong
    gate.set()
    await correcting
    other = f"{key}-other"
    await lost(other, resources, sandbox)
    with pytest.raises(ResolutionError, match=f"belongs to {key}"):
        await resolve(other, wrong, resources)
    assert (await resolve(other, right, resources)).task_id == right


@pytest.mark.parametrize("also_this_task", [False, True])
async def test_task_named_while_the_generation_is_archived_stays_bound_only_if_the_record_has_it(
    also_this_task: bool,
    key: str,
    resources: PayingResources,
    sandbox: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its late reply, and in one case a callback too, come between the user's naming and its record."""
    named, bind = await made_outside(resources.api), resources.ledger.tasks.bind
    await lost(key, resources, sandbox)

    def archive_another(found: Generation) -> Generation:
        archived = store(succeed(submitted(found, "own"), "own"))
        if not also_this_task:
            return archived
        return superseded_tasks.also_taken(archived, attempt_number=1, task_id=named, now=archived.updated_at)

    async def bind_before_the_reply(*arguments: Any, **options: Any) -> TaskOwner:
        owner = await bind(*arguments, **options)
        monkeypatch.setattr(resources.ledger.tasks, "bind", bind)
        await resources.ledger.change(key, archive_another)
        return owner

    monkeypatch.setattr(resources.ledger.tasks, "bind", bind_before_the_reply)
    with pytest.raises(ResolutionError, match="is archived, as task own"):
        await resolve(key, named, resources)
    owner = await resources.ledger.tasks.owner(named)
    assert (owner is not None and owner.key == key) is also_this_task
