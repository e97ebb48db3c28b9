"""Every task that the provider took was paid for: also one that does not count any more has its video archived, or a
reason noted why there is none."""

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from apixo import ApixoError, BadRequestError, Failed, Processing, Status, Succeeded
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

UNDER_WAY = Processing(task_id="t", state="processing")


@pytest.fixture(autouse=True)
def _no_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector's last steps, called as plain functions."""

    async def retrieve(paid: PaidTask, known: Entry, status: Succeeded | None, own: PayingResources) -> Generation:
        videos = await steps.fetch.fn(paid, known, status, own.work_root / paid.task_id, own)
        made: Generation = await steps.archive.fn(paid, known, videos, own)
        return made

    monkeypatch.setattr("flows.collect_videos.retrieve", retrieve)


@pytest.fixture
def says(resources: PayingResources) -> Iterator[dict[str, Status | ApixoError]]:
    """What APIXO says of a task instead of the truth."""
    said: dict[str, Status | ApixoError] = {}
    ask = resources.client.status_once

    async def status_once(task_id: str, **how: Any) -> Status:
        answer = said.get(task_id)
        if isinstance(answer, ApixoError):
            raise answer
        return answer or await ask(task_id, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources.client, "status_once", status_once)
        yield said


async def replaced_by_a_faster_one(key: str, resources: PayingResources, says: dict[str, Any], first_says: Any) -> str:
    """A key that is archived under another task, while APIXO says this of its first one. Returns the first one's id."""
    first, second = await two_tasks(key, resources)
    says[first.task_id] = first_says
    await finished(second.task_id, resources)
    (collected,) = await collect([key], resources)
    assert (collected.what, collected.task_id) == ("archived", second.task_id)
    return first.task_id


async def test_superseded_task_slower_than_its_replacement_is_archived_later(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, says: dict[str, Any]
) -> None:
    first = await replaced_by_a_faster_one(key, resources, says, UNDER_WAY)
    (again,) = await collect(None, resources)
    assert (again.what, again.note) == ("archived", f"Paid for as well, and not archived yet: {first}.")
    says.clear()
    await finished(first, resources)
    (last,) = await collect(None, resources)
    assert (last.what, last.note) == ("archived", "")
    (beside,) = (await recorded(key, resources)).attempt.superseded
    assert (beside.task_id, {item.kind for item in beside.objects}) == (first, {"video", "poster", "sidecar"})
    assert await collect(None, resources) == []
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1


@pytest.mark.parametrize(
    ("first_says", "days", "why"),
    [
        (Failed(task_id="t", state="failed", fail_code="OUT_OF_LUCK", fail_message="no"), 0, "OUT_OF_LUCK: no"),
        (
            Failed(task_id="t", state="failed", fail_code="", fail_message="no https://h.e/v?X-Amz-Signature=5e " * 99),
            0,
            "APIXO says failed: no https://h.e/v?",
        ),
        (UNDER_WAY, 17, "still calls it 'processing'"),
        (BadRequestError("APIXO knows no such task."), 17, "knows no such task"),
    ],
    ids=["failed", "failed with much to say", "never ends", "unknown"],
)
async def test_superseded_task_without_video_is_recorded_and_not_polled_forever(
    first_says: Any, days: int, why: str, key: str, resources: PayingResources, says: dict[str, Any]
) -> None:
    await replaced_by_a_faster_one(key, resources, says, first_says)
    if days:
        assert await resources.ledger.open_keys() == [key]
        (expiring,) = await _collected_after(days - 3, resources)
        assert expiring.expiring
        assert "Paid for as well, and not archived yet" in expiring.note
        assert "ago and not archived" not in expiring.note  # the one that counts is
        await _collected_after(days, resources)
    (beside,) = (await recorded(key, resources)).attempt.superseded
    assert why in (beside.ended or "")
    assert "5e" not in (beside.ended or "")
    assert len(beside.ended or "") < 1_500
    assert await resources.ledger.open_keys() == []


async def _collected_after(days: int, resources: PayingResources) -> list[Collected]:
    now = resources.clock.now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resources.clock, "now", lambda: now + timedelta(days=days))
        return await collect(None, resources)


async def test_late_answer_while_the_generation_is_closed_keeps_the_open_marker(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """Whoever closes saw the record without the answer's task, and removes the marker after the answer wrote it."""
    first = await lost(key, resources, sandbox)
    await allow(key, resources)
    await Submission(key, KITE, resources).run()
    second = (await recorded(key, resources)).task
    await steps.archive.fn(second, *await fetched(second, resources, resources.work_root), resources)
    seen = await recorded(key, resources)
    answered = partial(
        transitions.submitted, attempt_number=1, task_id=first, now=seen.updated_at, named_by="callback", note="late"
    )
    await resources.ledger.change(key, answered)
    assert await resources.ledger.is_published(key)
    await resources.ledger.close(seen)
    assert await resources.ledger.is_published(key)
    await finished(first, resources)
    await collect(None, resources)
    assert await resources.ledger.open_keys() == []
    (beside,) = (await recorded(key, resources)).attempts[0].superseded
    assert beside.objects


@pytest.mark.parametrize("first_to_arrive", ["the reply", "the other's callback"])
async def test_paid_call_sent_twice_by_a_proxy_gets_both_videos_archived(
    first_to_arrive: str, key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    """Each task calls the one address that both have been given. No reply ever tells of the other one."""
    if first_to_arrive == "the reply":
        replied = (await Submission(key, KITE, resources).run()).generation.task_id or ""
        other = await made_outside(resources.api, KITE)
        await call(key, resources, other)
    else:
        replied = await lost(key, resources, sandbox)
        other = await made_outside(resources.api, KITE)
        await call(key, resources, other)
        answered = partial(
            transitions.submitted, attempt_number=1, task_id=replied, now=resources.clock.now(), named_by="reply"
        )
        await resources.ledger.tasks.bind(replied, key, 1, named_by="reply", naming=2)
        await resources.ledger.change(key, answered)
    assert [task.task_id for task in (await recorded(key, resources)).unarchived_superseded] == [other]
    for task_id in (replied, other):
        await finished(task_id, resources)
    await call(key, resources, other)  # once more: it changes nothing
    await collect(None, resources)
    found = await recorded(key, resources)
    (beside,) = found.attempt.superseded
    assert (found.state, found.task_id, beside.task_id) == (State.ARCHIVED, replied, other)
    assert found.video is not None
    assert {item.name for item in beside.objects}.isdisjoint(item.name for item in found.objects)
    assert {item.kind for item in beside.objects} == {"video", "poster", "sidecar"}
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
