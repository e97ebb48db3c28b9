"""The collector: it archives what is open, reports what needs a manual decision, and never submits anything."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from apixo import AuthenticationError, VideoRequest
from deployments.sandbox import Fault, SandboxServer
from flows.collect_videos import Collected, CollectionError, collect, collect_videos, run_name
from flows.record import transitions
from flows.record.generation import Generation, PaidTask, State
from flows.record.pipeline_errors import SubmissionRejectedError, UnconfirmedError
from flows.resources import PayingResources
from flows.steps import retrieve
from flows.submission import Submission, Terms
from tests.flows.conftest import StoredBlocks
from tests.flows.generations import abandoned_claim, finished, recorded, submit
from tests.flows.record import changes
from tests.support import KITE
from tests.support.events import Sent


async def run(stored: StoredBlocks, **parameters: object) -> dict[str, Collected]:
    found = await collect_videos(api=stored.name, archive=stored.name, **parameters)  # type: ignore[call-overload]
    return {item.key: item for item in found}


async def test_detached_videos_are_archived_by_the_collector(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    keys = [f"{key}-{number}" for number in range(4)]
    for name in keys:
        await stored.generate(KITE, key=name, wait=False)
    await finished(sandbox)
    found = await run(stored)
    assert {name: item.what for name, item in found.items()} == dict.fromkeys(keys, "archived")
    assert len(sandbox.record.submits()) == 4
    assert await run(stored) == {}


async def test_collector_processes_only_the_given_keys(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    for name in (f"{key}-a", f"{key}-b"):
        await stored.generate(KITE, key=name, wait=False)
    await finished(sandbox)
    assert set(await run(stored, keys=[f"{key}-a"])) == {f"{key}-a"}
    assert set(await run(stored)) == {f"{key}-b"}


async def test_unfinished_task_is_polled_once_and_stays_open(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    await submit(key, resources)
    (found,) = await collect(None, resources)
    assert found.what == "pending"
    assert len(sandbox.record.statuses()) == 1
    assert await resources.ledger.open_keys() == [key]


async def test_collector_handles_every_state_and_submits_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    sandbox.faults.add(Fault(call="submit", kind="http_400", prompt_contains="refused"))
    with pytest.raises(UnconfirmedError):
        await submit(f"{key}-lost", resources, VideoRequest(prompt="lost"))
    with pytest.raises(SubmissionRejectedError):
        await submit(f"{key}-refused", resources, VideoRequest(prompt="refused"))
    await resources.ledger.mark_open(f"{key}-refused")  # its run died before it removed the marker
    await submit(f"{key}-forbidden", resources, VideoRequest(prompt="forbidden"))
    await resources.ledger.mark_open(f"{key}-nobody")
    await abandoned_claim(f"{key}-dead", resources, lease_seconds=0.2)
    await finished(sandbox)
    before = len(sandbox.record.submits())
    found = {item.key: item for item in await collect(None, resources)}
    assert {name.removeprefix(f"{key}-"): item.what for name, item in found.items()} == {
        "lost": "unconfirmed",
        "refused": "rejected",
        "forbidden": "failed",
        "nobody": "unknown",
        "dead": "unconfirmed",
    }
    for name in ("lost", "dead"):
        assert f"sora resolve {key}-{name} --task-id" in found[f"{key}-{name}"].note
    assert "CONTENT_VIOLATION" in found[f"{key}-forbidden"].note
    assert await resources.ledger.open_keys() == sorted(f"{key}-{name}" for name in ("dead", "lost", "nobody"))
    assert len(sandbox.record.submits()) == before


async def test_failure_that_a_run_could_not_publish_is_reported_by_the_collector(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources, VideoRequest(prompt="forbidden"))
    await finished(sandbox)
    await collect(None, resources)
    await resources.ledger.mark_open(key)
    (found,) = await collect(None, resources)
    assert (found.what, found.task_id) == ("failed", sandbox.record.charged()[0].task_id)
    assert "CONTENT_VIOLATION" in found.note


async def test_error_in_one_generation_does_not_stop_the_others_but_fails_the_run(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="html_200", times=-1, prompt_contains="broken"))
    await stored.generate(VideoRequest(prompt="broken"), key=f"{key}-broken", wait=False)
    await stored.generate(VideoRequest(prompt="fine"), key=f"{key}-fine", wait=False)
    await finished(sandbox)
    with pytest.raises(CollectionError, match=f"1 of 2.*{key}-broken"):
        await run(stored)
    fine = await stored.existing(f"{key}-fine")
    assert fine.state is State.ARCHIVED
    sandbox.faults.clear()
    assert (await run(stored))[f"{key}-broken"].what == "archived"


async def test_unexpected_error_in_one_generation_does_not_stop_the_others(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (f"{key}-a", f"{key}-b"):
        await stored.generate(KITE, key=name, wait=False)
    await finished(sandbox)

    async def fail_for_a(paid: PaidTask, *rest: Any) -> Generation:
        if paid.key == f"{key}-a":
            raise ZeroDivisionError
        return await retrieve(paid, *rest)

    monkeypatch.setattr("flows.collect_videos.retrieve", fail_for_a)
    with pytest.raises(CollectionError, match=f"1 of 2 .*{key}-a: ZeroDivisionError"):
        await run(stored)
    monkeypatch.undo()
    assert set(await run(stored)) == {f"{key}-a"}  # the other one is archived
    assert len(sandbox.record.submits()) == 2


async def test_invalid_api_key_ends_the_run_at_once(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    sandbox.faults.add(Fault(call="status", kind="http_401", times=-1))
    with pytest.raises(AuthenticationError):
        await collect(None, resources)
    assert (await recorded(key, resources)).state is State.SUBMITTED


async def test_invalid_api_key_does_not_suppress_expiry_warnings(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    keys = [f"{key}-{number}" for number in range(3)]
    for name in keys:
        await submit(name, resources, VideoRequest(prompt=name))
    sandbox.faults.add(Fault(call="status", kind="http_401", times=-1))
    resources.clock.now = lambda: datetime.now(UTC) + timedelta(days=13)
    with pytest.raises(AuthenticationError):
        await collect(None, resources)
    warned = [event.resource.name for event in sent.all() if event.event == "sora.generation.expiring"]
    assert sorted(str(name) for name in warned) == keys


@pytest.mark.parametrize(("days", "expiring"), [(0.45, False), (0.55, True)])
async def test_generation_that_will_soon_expire_is_reported(
    days: float, expiring: bool, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    await submit(key, resources)
    resources.clock.now = lambda: datetime.now(UTC) + timedelta(days=days)
    (found,) = await collect(None, resources)
    assert found.expiring is expiring
    assert ("360 hours" in found.note) is expiring


async def test_expiring_event_is_sent_once_a_day(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    await submit(key, resources)
    start = datetime.now(UTC)
    clock = {"hours": 0}
    resources.clock.now = lambda: start + timedelta(hours=clock["hours"])
    for clock["hours"] in (13 * 24 + 1, 13 * 24 + 2, 14 * 24, 14 * 24 + 2):
        (found,) = await collect(None, resources)
        assert found.expiring
    reported = [event for event in sent.all() if event.event == "sora.generation.expiring"]
    assert [event.payload["age_days"] for event in reported] == [13, 14]
    assert {event.resource.name for event in reported} == {key}


async def test_all_of_many_open_generations_are_polled_once(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    now = datetime.now(UTC) - timedelta(minutes=5)
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    task_id = (await submit(f"{key}-0", resources)).task_id or ""
    for number in range(1, 120):
        claimed = changes.claimed(key=f"{key}-{number}", now=now)
        await resources.ledger.claim(changes.submit(claimed, task_id), over=None)
    found = await collect(None, resources)
    assert len(found) == 120
    assert {item.what for item in found} == {"pending"}
    assert len(sandbox.record.statuses()) == 120


@pytest.mark.parametrize(("waits", "age_seconds", "requested"), [(True, 0, 0), (False, 0, 1), (True, 60, 1)])
async def test_detached_only_skips_what_a_run_waits_for_until_its_deadline(
    waits: bool, age_seconds: float, requested: int, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await Submission(key, KITE, resources, Terms(waits=waits)).run()
    await finished(sandbox)
    resources.clock.now = lambda: datetime.now(UTC) + timedelta(seconds=age_seconds)
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    await collect(None, resources, detached_only=True)
    assert len(sandbox.record.statuses()) == requested
    await collect(None, resources)
    assert len(sandbox.record.statuses()) == requested + 1


def test_generation_reconciled_by_a_callback_has_no_waiting_run() -> None:
    claimed = changes.claimed(waited_for=True)
    reconciled = transitions.submitted(claimed, attempt_number=1, task_id="t", now=changes.LATER, note="reconciled")
    assert claimed.attempt.waited_for
    assert not reconciled.attempt.waited_for


def test_run_name_shows_what_was_archived_or_else_what_failed() -> None:
    archived, failed = Collected(key="a", what="archived"), Collected(key="f", what="failed")
    pending = Collected(key="p", what="pending")
    assert run_name([failed, archived, Collected(key="b", what="archived")]) == "archived a and 1 more"
    assert run_name([pending, failed]) == "failed: f"
    assert run_name([pending]) == "collect: 1 open"
    assert run_name([]) == "collect: nothing open"
