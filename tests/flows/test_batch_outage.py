"""A batch during an outage of the provider: which rows need a manual decision, and which recover by themselves."""

import asyncio
from collections import Counter
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

import flows.batch.brake
from apixo import Failed, VideoRequest
from blocks import ApixoApi
from deployments.sandbox import Fault, SandboxServer
from flows.batch.brake import free_call
from flows.batch.summary import BatchFailedError, BatchSummary
from flows.generate_batch import generate_batch
from flows.record.generation import Owner
from flows.record.transitions import claim, failed, submitted
from tests.flows.conftest import StoredBlocks
from tests.support import make_api
from tests.support.events import Sent

ATTACK = pytest.mark.attack
"""Each of these cases runs one or two batches. `tests/flows/batch/test_brake.py` tests what the brake does."""
SIZES = [(18, 50.0), pytest.param(200, 5.0, marks=ATTACK)]
"""The number of rows, and the submissions per second."""
BEFORE = 8
"""The number of rows that are submitted before the outage."""


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    return make_api(sandbox, submit_timeout_seconds=3, submit_outage_seconds=60, deadline_seconds=300,
                    poll_interval_seconds=0.5)  # fmt: skip


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.batch.brake, "FREE_CALL_PAUSE_SECONDS", 0.1)


async def run(
    stored: StoredBlocks, key: str, count: int, per_second: float, prompts: dict[int, str] | None = None, **more: Any
) -> BatchSummary:
    rows = [{"id": f"{number:03}", "prompt": (prompts or {}).get(number, "Dunes at dawn")} for number in range(count)]
    parameters: dict[str, Any] = {"requests": rows, "key": key, "api": stored.name, "archive": stored.name}
    try:
        made: BatchSummary = await generate_batch(**parameters, submissions_per_second=per_second, **more)
    except BatchFailedError as error:
        return error.summary
    return made


def states(summary: BatchSummary) -> Counter[str]:
    return Counter(row.state for row in summary.rows)


@pytest.mark.parametrize(("count", "per_second"), SIZES)
@pytest.mark.parametrize(
    "kind", ["reset_after", pytest.param("http_502_html", marks=ATTACK), pytest.param("hang", marks=ATTACK)]
)
async def test_outage_leaves_few_rows_unconfirmed_and_the_batch_continues_after_it(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, kind: str, count: int, per_second: float
) -> None:
    for call in ("submit", "status"):
        skip = BEFORE if call == "submit" else 0
        outage = kind if call == "submit" or kind != "reset_after" else "reset_before"
        sandbox.faults.add(Fault(call=call, kind=outage, skip=skip, times=-1))
    batch = asyncio.create_task(run(stored, key, count, per_second))
    posts = quiet = 0
    for _ in range(80):  # until the provider has received no request for a while
        await asyncio.sleep(0.25)
        posts, before = len(sandbox.record.submits()), posts
        quiet = quiet + 1 if posts == before > BEFORE else 0
        if quiet == 4:
            break
    assert BEFORE < posts <= BEFORE + flows.batch.brake.AT_ONCE
    sandbox.faults.clear()
    found = states(await batch)
    assert found == {"archived": count - (posts - BEFORE), "unconfirmed": posts - BEFORE}
    assert len(sandbox.record.submits()) == count


@pytest.mark.parametrize(("count", "per_second"), SIZES)
@pytest.mark.parametrize(
    "kind", ["http_502_html", pytest.param("reset_after", marks=ATTACK), pytest.param("hang", marks=ATTACK)]
)
async def test_batch_stops_if_only_free_calls_are_answered(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, kind: str, count: int, per_second: float, sent: Sent
) -> None:
    sandbox.faults.add(Fault(call="submit", kind=kind, skip=BEFORE, times=-1))
    summary = await run(stored, key, count, per_second)
    posts = len(sandbox.record.submits())
    assert BEFORE + 2 < posts <= BEFORE + flows.batch.brake.AT_ONCE + 2
    assert states(summary) == {"archived": BEFORE, "unconfirmed": posts - BEFORE, "not submitted": count - posts}
    assert summary.blocked is not None
    assert "3 times in a row" in summary.blocked
    (event,) = [event for event in sent.all() if event.event == "sora.provider.blocked"]
    assert event.payload["kind"] == "ProviderOutage"
    sandbox.faults.clear()
    again = await run(stored, key, count, per_second)  # the next run submits the rest, and pays for nothing twice
    assert states(again) == {"archived": count - (posts - BEFORE), "unconfirmed": posts - BEFORE}
    assert len(sandbox.record.submits()) == count


@pytest.mark.parametrize(("count", "per_second"), [(12, 50.0), pytest.param(100, 5.0, marks=ATTACK)])
async def test_batch_stops_paying_if_its_videos_cannot_be_archived(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, count: int, per_second: float, sent: Sent
) -> None:
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    summary = await run(stored, key, count, per_second, max_in_flight=2)
    posts = len(sandbox.record.submits())
    assert 3 <= posts <= 4  # another one may have been in flight
    assert states(summary) == {"succeeded": posts, "not submitted": count - posts}
    assert (summary.blocked or "").startswith("3 finished videos in a row could not be archived")
    assert "404" in (summary.blocked or "")
    assert "so the rest was not submitted (the reason: " in summary.rows[-1].problem
    assert not [event for event in sent.all() if event.event == "sora.provider.blocked"]  # the provider works
    sandbox.faults.clear()
    again = await run(stored, key, count, per_second, max_in_flight=2)
    assert states(again) == {"archived": count}
    assert len(sandbox.record.submits()) == count


async def test_outage_of_the_result_host_does_not_stop_the_batch(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    """APIXO keeps the results for days, and the collector archives them."""
    sandbox.faults.add(Fault(call="result", kind="http_500", times=-1))
    summary = await run(stored, key, 5, 50.0, max_in_flight=1)
    assert states(summary) == {"succeeded": 5}
    assert summary.blocked is None
    assert len(sandbox.record.submits()) == 5


async def test_finished_videos_of_earlier_runs_do_not_stop_a_batch(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    """Their results may be lost for good, which no user can fix."""
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    assert states(await run(stored, key, 4, 50.0, max_in_flight=4))["succeeded"] >= 3
    sandbox.faults.clear()
    for number in range(4):
        sandbox.faults.add(Fault(call="result", kind="http_404", times=-1, prompt_contains=f"No. {number}"))
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1, prompt_contains="Dunes"))
    new = {number: f"New {number}" for number in range(4, 7)}
    summary = await run(stored, key, 7, 50.0, new, max_in_flight=1)
    assert [row.state for row in summary.rows[4:]] == ["archived"] * 3


async def test_rows_that_were_archived_before_do_not_hide_that_new_ones_cannot_be(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    prompts = {number: f"New {number}" for number in (1, 3, 5, 7)}
    sandbox.faults.add(Fault(call="submit", kind="http_400", prompt_contains="New", times=-1))
    assert states(await run(stored, key, 8, 50.0, prompts, max_in_flight=1))["archived"] == 4
    sandbox.faults.clear()
    sandbox.faults.add(Fault(call="result", kind="http_404", prompt_contains="New", times=-1))
    summary = await run(stored, key, 8, 50.0, prompts, max_in_flight=1)
    assert [row.state for row in summary.rows][1::2][:3] == ["succeeded"] * 3
    assert (summary.blocked or "").startswith("3 finished videos in a row could not be archived")
    assert len(sandbox.record.charged()) == 4 + 3


async def test_isolated_archive_failures_do_not_stop_the_batch(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    for number in (1, 2, 4, 6, 7):
        fault = Fault(call="result", kind="http_404", times=-1, prompt_contains=f"No. {number}")
        sandbox.faults.add(fault)
    prompts = {number: f"No. {number}" for number in range(8)}
    summary = await run(stored, key, 8, 50.0, prompts, max_in_flight=1)
    assert states(summary) == {"archived": 3, "succeeded": 5}
    assert len(sandbox.record.submits()) == 8


async def test_reply_from_a_gateway_does_not_count_as_an_answered_free_call(
    sandbox: SandboxServer, api: ApixoApi
) -> None:
    async with api.status_client() as client:
        is_answered = free_call(client)
        for kind in ("http_404_html", "http_400_html", "http_403_html", "http_502_html", "junk", "redirect"):
            sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
            with pytest.MonkeyPatch.context() as patched:  # and the balance is unavailable, too
                patched.setattr("apixo.constants.BALANCE_PATH", "/nowhere")
                assert not await is_answered(None), kind
        for kind in ("http_404", "http_403", "http_429", "task_unknown", "null_data"):
            sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
            assert await is_answered(None), kind
        sandbox.faults.add(Fault(call="status", kind="http_404_html"))
        assert await is_answered(None)  # the balance is answered
    assert sandbox.faults.pending() == []


@pytest.mark.parametrize(("count", "empties_at"), [(16, 8), pytest.param(100, 40, marks=ATTACK)])
@pytest.mark.parametrize(
    "kind", ["http_402", pytest.param("http_400_credits", marks=ATTACK), pytest.param("http_401", marks=ATTACK)]
)
async def test_emptied_account_stops_the_batch_and_leaves_nothing_unconfirmed(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, kind: str, count: int, empties_at: int, sent: Sent
) -> None:
    sandbox.faults.add(Fault(call="submit", kind=kind, skip=empties_at, times=-1))
    summary = await run(stored, key, count, 50)
    posts = len(sandbox.record.submits())
    assert empties_at < posts <= empties_at + flows.batch.brake.AT_ONCE  # the rejected one, and those in flight
    assert states(summary) == {
        "archived": empties_at, "rejected": posts - empties_at, "not submitted": count - posts,
    }  # fmt: skip
    assert summary.blocked is not None
    assert len([event for event in sent.all() if event.event == "sora.provider.blocked"]) == 1
    assert {row.problem for row in summary.rows if row.state == "not submitted"} != {""}
    sandbox.faults.clear()  # topped up
    again = await run(stored, key, count, 50)
    assert states(again) == {"archived": count}
    assert len(sandbox.record.charged()) == count


async def test_row_that_fails_for_credits_stops_the_rows_not_yet_submitted(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, sent: Sent
) -> None:
    """The failCode of an accepted task shows that the account is empty."""
    empty = Fault(call="status", kind="failed", fail_code="insufficientCredits", prompt_contains="at noon", times=-1)
    sandbox.faults.add(empty)
    summary = await run(stored, key, 12, 50, {4: "Dunes at noon"}, max_in_flight=2)
    posts = len(sandbox.record.submits())
    assert 5 <= posts < 12  # the other row in flight may have been followed by later ones
    assert states(summary) == {"archived": posts - 1, "failed": 1, "not submitted": 12 - posts}
    assert summary.blocked is not None
    assert all("the rest of the batch would be rejected" in row.problem for row in summary.rows[posts:])
    (event,) = [event for event in sent.all() if event.event == "sora.provider.blocked"]
    assert event.payload["kind"] == "InsufficientCreditsError"
    sandbox.faults.clear()  # topped up
    again = await run(stored, key, 12, 50, {4: "Dunes at noon"})
    assert states(again) == {"archived": 11, "failed": 1}  # that row was paid, so it needs a manual decision
    assert len(sandbox.record.submits()) == 12


async def test_row_that_failed_for_credits_in_an_earlier_run_does_not_stop_a_later_run(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    """The account has been topped up since. Only that row needs a manual decision."""
    now = datetime.now(UTC)
    request = VideoRequest(prompt="Dunes at dawn")
    owner = Owner(host="a", pid=1)
    claimed = claim(None, key=f"{key}-000", request=request, owner=owner, lease_seconds=1, now=now)
    taken = submitted(claimed, attempt_number=1, task_id="task_of_an_earlier_run", now=now)
    empty = Failed(
        task_id="task_of_an_earlier_run", state="failed", fail_code="INSUFFICIENT_CREDITS", fail_message="empty"
    )
    async with aclosing(stored.archive.store()) as store:
        await store.put(f"ledger/{key}-000.json", failed(taken, empty, now=now).model_dump_json().encode())
    summary = await run(stored, key, 5, 50)
    assert states(summary) == {"failed": 1, "archived": 4}
    assert summary.blocked is None
    assert len(sandbox.record.submits()) == 4
