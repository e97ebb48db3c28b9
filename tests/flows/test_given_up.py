"""A task that never ends, or whose result is unavailable, is given up once, and can be resumed."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from apixo import AuthenticationError, InProgress, UnknownState
from apixo.errors import NO_END, NO_STATUS
from deployments.sandbox import Fault, SandboxServer
from flows.collect_videos import Collected, collect
from flows.record.generation import Generation, State
from flows.record.ledger import Entry
from flows.resolution import load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.task_end import given_up
from tests.flows.generations import finished, recorded, set_clock, submit
from tests.flows.record.changes import store
from tests.support.events import Sent

DAY: Final = timedelta(days=1)


async def collect_after(hours: float, resources: PayingResources) -> Collected:
    """Runs the collector this long after now. There is one open generation."""
    set_clock(resources, datetime.now(UTC) + timedelta(hours=hours))
    (found,) = await collect(None, resources)
    return found


async def test_task_in_an_undocumented_state_for_a_day_is_given_up(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="status", kind="stuck_state", times=-1))
    await submit(key, resources)
    for hours in (30, 53):  # the day starts when the state is first seen, not when the task was submitted
        assert (await collect_after(hours, resources)).what == "pending"
    found = await collect_after(55, resources)
    assert found.what == "failed"
    assert "calls the task 'expired' 1 day since that was first seen" in found.note
    assert f"sora resolve {key} --resubmit" in found.note
    failed = await recorded(key, resources)
    assert failed.attempt.problem is not None
    assert (failed.state, failed.attempt.problem.code) == (State.FAILED, NO_END)
    requested = len(sandbox.record.statuses())
    assert await collect(None, resources) == []
    assert len(sandbox.record.statuses()) == requested
    assert len(sandbox.record.submits()) == 1


async def test_documented_state_in_between_restarts_the_day(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)

    async def state_after(hours: float) -> str | None:
        assert (await collect_after(hours, resources)).what == "pending"
        return (await recorded(key, resources)).attempt.stands_as

    sandbox.faults.add(Fault(call="status", kind="stuck_state"))
    sandbox.faults.add(Fault(call="status", kind="unknown_state"))  # its name shows that the task is in progress
    sandbox.faults.add(Fault(call="status", kind="stuck_state"))
    assert await state_after(1) == "expired"
    assert await state_after(2) is None
    assert await state_after(26) == "expired"


@pytest.mark.parametrize("kind", ["task_unknown", "reset_before"])
async def test_task_whose_status_is_never_answered_is_not_polled_forever(
    key: str, resources: PayingResources, sandbox: SandboxServer, kind: str
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    for hours, what in ((-1, "error"), (1, "error"), (24, "error"), (26, "failed")):
        found = await collect_after(resources.api.result_valid_hours + hours, resources)
        assert found.what == what
    assert "gives no status of the task 1 day since that was first seen" in found.note
    assert f"sora resolve {key} --resubmit" in found.note
    requested = len(sandbox.record.statuses())
    assert await collect(None, resources) == []
    assert len(sandbox.record.statuses()) == requested
    assert len(sandbox.record.submits()) == 1


async def test_task_is_not_given_up_while_the_api_key_is_invalid(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    sandbox.faults.add(Fault(call="status", kind="http_401", times=-1))
    for hours in (1, 26, 52):
        with pytest.raises(AuthenticationError):
            await collect_after(resources.api.result_valid_hours + hours, resources)
    found = await recorded(key, resources)
    assert (found.state, found.attempt.stands_as) == (State.SUBMITTED, None)


async def test_task_is_not_given_up_while_this_machine_cannot_reach_the_api(
    key: str, resources: PayingResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(key, resources)
    async with resources.api.model_copy(update={"base_url": "http://127.0.0.1:9"}).status_client() as unreachable:
        monkeypatch.setattr(resources, "client", unreachable)
        for hours in (1, 26, 52):
            assert (await collect_after(resources.api.result_valid_hours + hours, resources)).what == "error"
    found = await recorded(key, resources)
    assert (found.state, found.attempt.stands_as) == (State.SUBMITTED, None)


@pytest.mark.parametrize("kind", ["http_404", "http_500", "html_200"])
async def test_unavailable_result_is_not_fetched_forever(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, kind: str
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": -1}))
    assert [item.what for item in await collect(None, resources)] == ["error"]
    assert (await recorded(key, resources)).state is State.SUCCEEDED
    for hours, what in ((-1, "error"), (1, "error"), (24, "error"), (26, "failed")):
        found = await collect_after(resources.api.result_valid_hours + hours, resources)
        assert found.what == what
    assert "was given up (no result: it was finished 16 days ago" in found.note
    assert f"sora resolve {key} --resubmit" in found.note
    assert [event.event for event in sent.all()].count("sora.generation.failed") == 1
    requested = len(sandbox.record.all())
    assert await collect(None, resources) == []
    assert len(sandbox.record.all()) == requested
    assert len(sandbox.record.submits()) == 1


async def test_result_is_kept_for_its_days_from_the_success_and_not_from_the_claim(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    for days in (10, 16, 18):
        assert (await collect_after(days * 24, resources)).what == "error"
    assert (await recorded(key, resources)).state is State.SUCCEEDED


async def test_video_that_another_run_archives_while_its_result_is_given_up_does_not_fail(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    await collect(None, resources)
    await collect_after(resources.api.result_valid_hours + 1, resources)
    change = resources.ledger.change

    async def change_after_another_run(key: str, how: Callable[[Generation], Generation], **known: Any) -> Entry:
        if how((await resources.ledger.existing(key)).generation).state is State.FAILED:
            await change(key, store)
        return await change(key, how, **known)

    monkeypatch.setattr(resources.ledger, "change", change_after_another_run)
    assert (await collect_after(resources.api.result_valid_hours + 26, resources)).what == "error"
    assert (await recorded(key, resources)).state is State.ARCHIVED
    assert "sora.generation.failed" not in [event.event for event in sent.all()]


@pytest.mark.parametrize("call", ["status", "result"])
async def test_given_up_task_is_resumed_by_its_task_id_without_paying(
    key: str, resources: PayingResources, sandbox: SandboxServer, call: str
) -> None:
    """If a broken proxy blocked it for weeks, the provider may still have the result."""
    task_id = (await submit(key, resources)).task_id or ""
    await finished(sandbox)
    sandbox.faults.add(Fault.model_validate({"call": call, "kind": "http_500", "times": -1}))
    await collect(None, resources)
    for hours in (1, 26):
        found = await collect_after(resources.api.result_valid_hours + hours, resources)
    assert f"Run `sora resolve {key} --task-id {task_id}" in found.note
    sandbox.faults.clear()
    resumed = await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)
    assert (resumed.state, resumed.attempt.problem) == (State.SUBMITTED, None)
    assert await resources.ledger.open_keys() == [key]
    assert [item.what for item in await collect(None, resources)] == ["archived"]
    assert len(sandbox.record.submits()) == 1


async def test_resumed_task_gets_its_full_time_again(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    task_id = (await submit(key, resources)).task_id or ""
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    kept_hours = resources.api.result_valid_hours
    assert (await collect_after(kept_hours + 1, resources)).what == "failed"
    await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)
    assert [item.what for item in await collect(None, resources)] == ["pending"]
    assert (await collect_after(2 * kept_hours + 2, resources)).what == "failed"
    ends = [event.id for event in sent.all() if event.event == "sora.generation.failed"]
    assert len(ends) == len(set(ends)) == 2, "Prefect drops an event with a known id as a duplicate"


async def test_result_that_becomes_available_on_the_last_day_is_archived(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    kept_hours = resources.api.result_valid_hours
    for hours in (-300, 1):
        assert (await collect_after(kept_hours + hours, resources)).what == "error"
    sandbox.faults.clear()
    assert (await collect_after(kept_hours + 30, resources)).what == "archived"


async def test_one_bad_answer_does_not_end_an_old_task(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    sandbox.faults.add(Fault(call="status", kind="http_500", times=1))
    later = resources.api.result_valid_hours + 48  # no collector has run since
    assert (await collect_after(later, resources)).what == "error"
    assert (await collect_after(later, resources)).what == "archived"


@pytest.mark.parametrize(
    ("status", "age", "stood", "ends"),
    [
        (UnknownState(task_id="t", state="cancelled"), 3 * DAY, timedelta(hours=23, minutes=59), False),
        (UnknownState(task_id="t", state="cancelled"), 3 * DAY, DAY, True),
        (UnknownState(task_id="t", state="cancelled"), 15 * DAY, timedelta(0), True),
        (InProgress(task_id="t", state="processing_r2"), 14 * DAY, 14 * DAY, False),
        (InProgress(task_id="t", state="IN_PROGRESS"), 14 * DAY, 14 * DAY, False),
        (InProgress(task_id="t", state="processing_r2"), 15 * DAY, timedelta(0), True),
        (InProgress(task_id="t", state="pending"), 14.9 * DAY, timedelta(0), False),
        (InProgress(task_id="t", state="Processing"), 15 * DAY, timedelta(0), True),
        (UnknownState(task_id="t", state=NO_STATUS), 20 * DAY, 0.9 * DAY, False),
        (UnknownState(task_id="t", state=NO_STATUS), 20 * DAY, DAY, True),
    ],
)
def test_unfinished_task_is_given_up_by_its_state_and_age(
    status: InProgress | UnknownState, age: timedelta, stood: timedelta, ends: bool
) -> None:
    found = given_up(status, age=age, stood=stood, kept=15 * DAY)
    assert (found is not None) == ends
    assert found is None or (found.state, found.task_id) == (status.state, "t")
    assert found is None or found.fail_code == (NO_STATUS if status.state == NO_STATUS else NO_END)
