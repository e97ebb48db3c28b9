"""Every accepted task was paid for: a superseded task also has its video archived, or the record says why there is
none."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from apixo import ApixoError, BadRequestError, Failed, InProgress, Status, Succeeded
from deployments.sandbox import SandboxServer
from flows import steps
from flows.collect_videos import Collected, collect
from flows.record import transitions
from flows.record.generation import Generation, PaidTask, State
from flows.record.ledger import Entry
from flows.record.payments import paid_attempts
from flows.resources import PayingResources
from flows.submission import Submission
from tests.flows.calls import call
from tests.flows.generations import SUBMARINE, allow, lost, recorded
from tests.flows.test_money_path import fetched, finished, two_tasks
from tests.support import KITE, made_outside
from tests.support.events import Sent

IN_PROGRESS = InProgress(task_id="t", state="processing")


@pytest.fixture(autouse=True)
def _no_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls the collector's last steps as plain functions, without Prefect."""

    async def retrieve(paid: PaidTask, known: Entry, status: Succeeded | None, own: PayingResources) -> Generation:
        videos = await steps.fetch.fn(paid, known, status, own.work_root / paid.task_id, own)
        made: Generation = await steps.archive.fn(paid, known, videos, own)
        return made

    monkeypatch.setattr("flows.collect_videos.retrieve", retrieve)


@pytest.fixture
def status_overrides(resources: PayingResources) -> Iterator[dict[str, Status | ApixoError]]:
    """What APIXO returns as the status of a task, by its id, instead of the real one."""
    overrides: dict[str, Status | ApixoError] = {}
    poll = resources.client.status_once

    async def status_once(task_id: str, **options: Any) -> Status:
        answer = overrides.get(task_id)
        if isinstance(answer, ApixoError):
            raise answer
        return answer or await poll(task_id, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources.client, "status_once", status_once)
        yield overrides


async def superseded_by_a_faster_task(
    key: str, resources: PayingResources, status_overrides: dict[str, Any], first_status: Any
) -> str:
    """Archives a key with a second task, while APIXO returns this status of the first. Returns the first task's id."""
    first, second = await two_tasks(key, resources)
    status_overrides[first.task_id] = first_status
    await finished(second.task_id, resources)
    (collected,) = await collect([key], resources)
    assert (collected.what, collected.task_id) == ("archived", second.task_id)
    return first.task_id


async def test_superseded_task_slower_than_its_replacement_is_archived_later(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, status_overrides: dict[str, Any]
) -> None:
    first = await superseded_by_a_faster_task(key, resources, status_overrides, IN_PROGRESS)
    (again,) = await collect(None, resources)
    assert (again.what, again.note) == ("archived", f"Paid for as well, and not archived yet: {first}.")
    status_overrides.clear()
    await finished(first, resources)
    (last,) = await collect(None, resources)
    assert (last.what, last.note) == ("archived", "")
    (superseded_task,) = (await recorded(key, resources)).attempt.superseded
    assert (superseded_task.task_id, {item.kind for item in superseded_task.objects}) == (
        first,
        {"video", "poster", "sidecar"},
    )
    assert await collect(None, resources) == []
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1


@pytest.mark.parametrize(
    ("first_status", "days", "why"),
    [
        (Failed(task_id="t", state="failed", fail_code="OUT_OF_LUCK", fail_message="no"), 0, "OUT_OF_LUCK: no"),
        (
            Failed(task_id="t", state="failed", fail_code="", fail_message="no https://h.e/v?X-Amz-Signature=5e " * 99),
            0,
            "APIXO says failed: no https://h.e/v?",
        ),
        (IN_PROGRESS, 17, "still calls it 'processing'"),
        (BadRequestError("APIXO knows no such task."), 17, "knows no such task"),
    ],
    ids=["failed", "failed with a long message", "never ends", "unknown"],
)
async def test_superseded_task_without_video_is_recorded_and_not_polled_forever(
    first_status: Any, days: int, why: str, key: str, resources: PayingResources, status_overrides: dict[str, Any]
) -> None:
    await superseded_by_a_faster_task(key, resources, status_overrides, first_status)
    if days:
        assert await resources.ledger.open_keys() == [key]
        (expiring,) = await _collect_after(days - 3, resources)
        assert expiring.expiring
        assert "Paid for as well, and not archived yet" in expiring.note
        assert "ago and not archived" not in expiring.note  # the current task is archived
        await _collect_after(days, resources)
    (superseded_task,) = (await recorded(key, resources)).attempt.superseded
    assert why in (superseded_task.ended or "")
    assert "5e" not in (superseded_task.ended or "")
    assert len(superseded_task.ended or "") < 1_500
    assert await resources.ledger.open_keys() == []


async def _collect_after(days: int, resources: PayingResources) -> list[Collected]:
    now = resources.clock.now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources.clock, "now", lambda: now + timedelta(days=days))
        return await collect(None, resources)


async def test_late_answer_while_the_generation_is_closed_keeps_the_open_marker(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """The process that closes the generation read the record before the answer, and removes the marker after it."""
    first = await lost(key, resources, sandbox)
    await allow(key, resources)
    await Submission(key, KITE, resources).run()
    second = (await recorded(key, resources)).task
    await steps.archive.fn(second, *await fetched(second, resources, resources.work_root), resources)
    seen = await recorded(key, resources)
    late_answer = partial(
        transitions.submitted, attempt_number=1, task_id=first, now=seen.updated_at, named_by="callback", note="late"
    )
    await resources.ledger.change(key, late_answer)
    assert await resources.ledger.is_published(key)
    await resources.ledger.close(seen)
    assert await resources.ledger.is_published(key)
    await finished(first, resources)
    await collect(None, resources)
    assert await resources.ledger.open_keys() == []
    (superseded_task,) = (await recorded(key, resources)).attempts[0].superseded
    assert superseded_task.objects


@pytest.mark.parametrize("first_to_arrive", ["the reply", "the callback"])
async def test_paid_call_sent_twice_by_a_proxy_gets_both_videos_archived(
    first_to_arrive: str, key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    """Both tasks have the same callback URL. The reply names only one of them."""
    if first_to_arrive == "the reply":
        replied = (await Submission(key, KITE, resources).run()).generation.task_id or ""
        other = await made_outside(resources.api, KITE)
        await call(key, resources, other)
    else:
        replied = await lost(key, resources, sandbox)
        other = await made_outside(resources.api, KITE)
        await call(key, resources, other)
        late_answer = partial(
            transitions.submitted, attempt_number=1, task_id=replied, now=resources.clock.now(), named_by="reply"
        )
        await resources.ledger.tasks.bind(replied, key, 1, named_by="reply", naming=2)
        await resources.ledger.change(key, late_answer)
    assert [task.task_id for task in (await recorded(key, resources)).unarchived_superseded] == [other]
    for task_id in (replied, other):
        await finished(task_id, resources)
    await call(key, resources, other)  # a duplicate: it changes nothing
    await collect(None, resources)
    found = await recorded(key, resources)
    (superseded_task,) = found.attempt.superseded
    assert (found.state, found.task_id, superseded_task.task_id) == (State.ARCHIVED, replied, other)
    assert found.video is not None
    assert {item.name for item in superseded_task.objects}.isdisjoint(item.name for item in found.objects)
    assert {item.kind for item in superseded_task.objects} == {"video", "poster", "sidecar"}
    sidecar = await resources.store.get(next(item.name for item in superseded_task.objects if item.kind == "sidecar"))
    assert sidecar is not None
    assert replied.encode() not in sidecar.data
    assert await resources.ledger.open_keys() == []
    assert paid_attempts(found) == 2
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1


async def test_callback_with_an_unknown_or_foreign_task_adds_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await Submission(key, KITE, resources).run()
    theirs = (await Submission(f"{key}-other", SUBMARINE, resources).run()).generation.task_id
    for claimed in ("task_ffffffffffff", theirs):
        await call(key, resources, claimed)
        assert (await recorded(key, resources)).attempt.superseded == ()
    owner = await resources.ledger.tasks.owner(theirs or "")
    assert owner is not None
    assert owner.key == f"{key}-other"
