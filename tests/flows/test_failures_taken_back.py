"""A failed task is polled once more before another one is paid for."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from apixo.errors import NO_END, NO_STATUS
from deployments.sandbox import Fault, SandboxServer
from flows.collect_videos import collect
from flows.record.generation import Generation, State
from flows.record.pipeline_errors import SubmissionRejectedError, VideoFailedError
from flows.resolution import load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.submission import Submission, Terms
from tests.flows.generations import allow, fail, finished, granted_by_click, recorded, run_collector, set_clock, submit
from tests.support import KITE

Decision = Callable[[str, PayingResources], Awaitable[Generation]]


async def after_resolve_command(key: str, resources: PayingResources) -> Generation:
    """Submits after `sora resolve --resubmit`."""
    await allow(key, resources)
    return await submit(key, resources)


async def after_ui_retry(key: str, resources: PayingResources) -> Generation:
    """Submits after a click on Retry."""
    return await submit(key, resources, terms=Terms(may_submit_again=granted_by_click))


DECISIONS = pytest.mark.parametrize("decide", [after_resolve_command, after_ui_retry])


async def reported_as_failed(
    key: str, resources: PayingResources, sandbox: SandboxServer, fail_code: str = "GENERATION_FAILED"
) -> str:
    """Records a generation as failed although its task continues. Returns the task's id."""
    task_id = (await submit(key, resources)).task_id or ""
    sandbox.faults.add(Fault(call="status", kind="failed_once", fail_code=fail_code))
    await run_collector(resources)
    assert (await recorded(key, resources)).state is State.FAILED
    assert await resources.ledger.open_keys() == []
    return task_id


@DECISIONS
@pytest.mark.parametrize("ended", [True, False])
async def test_task_that_did_not_fail_after_all_is_not_paid_for_again(
    decide: Decision, ended: bool, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await reported_as_failed(key, resources, sandbox)
    if ended:
        await finished(sandbox)
    else:
        sandbox.faults.add(Fault(call="status", kind="unknown_state"))
    found = await decide(key, resources)
    state = State.SUCCEEDED if ended else State.SUBMITTED
    assert (found.state, found.task_id, len(found.attempts)) == (state, task_id, 1)
    assert (found.attempt.note or "").endswith("the task has not failed after all")
    await finished(sandbox)
    (collected,) = await run_collector(resources)
    assert (collected.what, collected.task_id) == ("archived", task_id)
    assert await resources.ledger.open_keys() == []
    assert len(sandbox.record.submits()) == 1


@DECISIONS
@pytest.mark.parametrize(("kind", "posts"), [("unknown_state", 1), ("stuck_state", 2)])
async def test_undocumented_state_takes_failure_back_only_if_it_means_in_progress(
    decide: Decision, kind: str, posts: int, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await fail(key, resources, sandbox)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
    assert len((await decide(key, resources)).attempts) == posts
    assert len(sandbox.record.submits()) == posts


async def test_moderation_retry_polls_the_failed_task_first(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    resources.api.moderation_retries = 1
    task_id = await reported_as_failed(key, resources, sandbox, "OutputVideoSensitiveContentDetected")
    assert (await submit(key, resources)).task_id == task_id
    assert len(sandbox.record.submits()) == 1


@DECISIONS
async def test_a_task_that_fails_again_needs_another_decision(
    decide: Decision, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await reported_as_failed(key, resources, sandbox)
    sandbox.faults.add(Fault(call="status", kind="unknown_state"))  # in progress, even if the sandbox is fast
    await decide(key, resources)
    await fail(key, resources, sandbox)
    with pytest.raises(VideoFailedError, match="--resubmit"):
        await submit(key, resources)
    assert len((await decide(key, resources)).attempts) == 2
    assert len(sandbox.record.submits()) == 2


@DECISIONS
@pytest.mark.parametrize(
    "kind",
    [
        "http_500", "junk", "reset_before", "http_502_html", "http_400_html", "http_403_html", "http_404_html",
        "wrong_types", "http_429", "http_401", "http_404",
    ],
)  # fmt: skip
async def test_unanswered_poll_of_a_failed_task_pays_nothing_and_keeps_the_decision(
    decide: Decision, kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    task_id = (await fail(key, resources, sandbox)).task_id or ""
    before = await recorded(key, resources)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    with pytest.raises(
        SubmissionRejectedError, match=f"about task {task_id}.*Nothing was paid; run it again"
    ) as raised:
        await decide(key, resources)
    assert (raised.value.key, raised.value.task_id) == (key, task_id)
    found = await recorded(key, resources)
    assert (found.state, len(found.attempts)) == (State.FAILED, 1)
    if decide is after_ui_retry:
        assert found == before
    assert len(sandbox.record.submits()) == 1
    sandbox.faults.clear()
    assert len((await decide(key, resources)).attempts) == 2
    assert len(sandbox.record.submits()) == 2


@DECISIONS
async def test_a_failed_task_that_apixo_no_longer_knows_is_paid_for_again(
    decide: Decision, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await fail(key, resources, sandbox)
    sandbox.faults.add(Fault(call="status", kind="task_unknown", times=-1))
    assert len((await decide(key, resources)).attempts) == 2
    assert len(sandbox.record.submits()) == 2


@DECISIONS
async def test_a_404_for_a_failed_task_counts_as_forgotten_once_its_result_would_be_deleted(
    decide: Decision, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """Before that, it may be about the model."""
    await submit(key, resources)
    await fail(key, resources, sandbox)
    sandbox.faults.add(Fault(call="status", kind="http_404", times=-1))
    now = resources.clock.now
    set_clock(resources, now() + timedelta(hours=resources.api.result_valid_hours + 1))
    assert len((await decide(key, resources)).attempts) == 2
    assert len(sandbox.record.submits()) == 2


async def test_rejected_payment_for_a_failed_task_polls_it_again_on_the_next_run(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """What allowed the payment may be long past by then."""
    await submit(key, resources)
    task_id = (await fail(key, resources, sandbox)).task_id or ""
    await finished(sandbox)
    sandbox.faults.add(Fault(call="submit", kind="http_402"))
    with pytest.raises(SubmissionRejectedError):
        await after_resolve_command(key, resources)
    assert [attempt.state for attempt in (await recorded(key, resources)).attempts] == [State.FAILED, State.REJECTED]
    task = sandbox.tasks.get(task_id)
    assert task is not None
    task.state = "success"
    found = await submit(key, resources)
    assert (found.state, found.task_id) == (State.SUCCEEDED, task_id)
    (collected,) = await run_collector(resources)
    assert (collected.what, collected.task_id) == ("archived", task_id)
    assert len(sandbox.record.charged()) == 1


async def test_rejected_payment_for_a_failed_task_is_made_on_the_next_run_if_it_still_has_failed(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await fail(key, resources, sandbox)
    sandbox.faults.add(Fault(call="submit", kind="http_402"))
    with pytest.raises(SubmissionRejectedError):
        await after_resolve_command(key, resources)
    sandbox.faults.add(Fault(call="status", kind="http_500", times=-1))
    with pytest.raises(SubmissionRejectedError, match="no usable answer"):
        await submit(key, resources)
    sandbox.faults.clear()
    assert len((await submit(key, resources)).attempts) == 3
    assert len(sandbox.record.charged()) == 2


async def given_up(key: str, resources: PayingResources, sandbox: SandboxServer, kind: str) -> Generation:
    """Makes a generation whose task was polled in vain until it was given up. APIXO keeps answering in this way."""
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    await submit(key, resources)
    now, kept = resources.clock.now, timedelta(hours=resources.api.result_valid_hours)
    for hours in (1, 26):
        set_clock(resources, now() + kept + timedelta(hours=hours))
        await collect(None, resources)
    found = await recorded(key, resources)
    assert found.given_up
    return found


@DECISIONS
@pytest.mark.parametrize(("kind", "code"), [("stuck_state", NO_END), ("http_500", NO_STATUS), ("junk", NO_STATUS)])
async def test_a_task_that_was_given_up_and_has_no_result_is_paid_for_again(
    decide: Decision, kind: str, code: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """The user has checked the task, and decided not to wait any longer."""
    found = await given_up(key, resources, sandbox, kind)
    assert found.attempt.problem is not None
    assert found.attempt.problem.code == code
    assert len((await decide(key, resources)).attempts) == 2
    assert len(sandbox.record.submits()) == 2


@DECISIONS
async def test_a_task_that_was_given_up_and_has_a_result_now_is_not_paid_for_again(
    decide: Decision, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = (await given_up(key, resources, sandbox, "stuck_state")).task_id
    await finished(sandbox)
    sandbox.faults.clear()
    assert (await decide(key, resources)).task_id == task_id
    (collected,) = await run_collector(resources)
    assert (collected.what, collected.task_id) == ("archived", task_id)
    assert len(sandbox.record.submits()) == 1


async def test_concurrent_runs_that_may_pay_again_continue_with_the_existing_task(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await reported_as_failed(key, resources, sandbox)
    await finished(sandbox)
    await allow(key, resources)
    found = await asyncio.gather(*(Submission(key, KITE, resources, Terms()).run() for _ in range(5)))
    assert {(entry.generation.task_id, len(entry.generation.attempts)) for entry in found} == {(task_id, 1)}
    assert len(sandbox.record.submits()) == 1


async def test_task_that_a_user_resumes_meanwhile_is_not_paid_for_again(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record changes right after the poll."""
    await submit(key, resources)
    await fail(key, resources, sandbox)
    await finished(sandbox)
    await allow(key, resources)
    poll = resources.client.status

    async def resume_after_poll(task_id: str, *, model: str) -> object:
        monkeypatch.undo()
        status = await poll(task_id, model=model)
        task = sandbox.tasks.get(task_id)
        assert task is not None
        task.state = "success"
        await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)
        return status

    monkeypatch.setattr(resources.client, "status", resume_after_poll)
    assert len((await submit(key, resources)).attempts) == 1
    assert len(sandbox.record.submits()) == 1
