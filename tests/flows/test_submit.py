"""The paid call. Every test asserts on what the provider received."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from apixo import ApixoClient, VideoRequest
from apixo.constants import MAX_TRIES
from blocks import ApixoApi, VideoArchive
from blocks.object_store import StoredObject
from deployments.sandbox import Fault, SandboxServer
from flows.paid_call import Outcome, PaidCall
from flows.record.generation import Generation, State
from flows.record.ledger import Entry, Ledger, record_name
from flows.record.pipeline_errors import KeyConflictError, LedgerError, SubmissionRejectedError, UnconfirmedError
from flows.resources import PayingResources
from tests.flows.conftest import StoredBlocks
from tests.flows.generations import charged, recorded, submit
from tests.support import KITE, make_api


async def test_new_key_is_paid_once_and_its_task_is_recorded(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    first = await submit(key, resources)
    again = await submit(key, resources)
    assert first.state is State.SUBMITTED
    assert again == first == await recorded(key, resources)
    (paid,) = sandbox.record.submits()
    assert paid.charged
    assert paid.task_id == first.task_id
    assert await resources.ledger.open_keys() == [key]


async def test_racing_runs_pay_once_and_all_get_the_same_task(
    key: str, api: ApixoApi, archive: VideoArchive, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.5))

    async def submit_as_another_run() -> Generation:
        async with PayingResources(api, archive) as own:
            return await submit(key, own)

    results = await asyncio.gather(*(submit_as_another_run() for _ in range(24)))
    assert len(sandbox.record.submits()) == 1
    assert len({result.task_id for result in results}) == 1
    assert all(result == results[0] for result in results)


UNCLEAR = ["reset_after", "hang_after", "http_500", "http_404_html", "junk"]
MORE_UNCLEAR = [
    "reset_before", "hang", "http_500_after", "http_502_html", "http_503", "http_403_html", "redirect",
    "code_500_body", "half_json", "wrong_types", "missing_fields", "null_data", "no_data", "huge_body",
]  # fmt: skip
"""tests/apixo/test_submitting.py shows that the client is unclear about these as well."""


@pytest.mark.parametrize("kind", [*UNCLEAR, *(pytest.param(kind, marks=pytest.mark.attack) for kind in MORE_UNCLEAR)])
async def test_request_with_an_unclear_answer_is_never_sent_again(
    kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "seconds": 5}))
    for _ in range(3):
        with pytest.raises(UnconfirmedError) as caught:
            await submit(key, resources)
        assert key in str(caught.value)
        assert f"sora resolve {key} --task-id" in str(caught.value)
        assert f"sora resolve {key} --resubmit" in str(caught.value)
    assert len(sandbox.record.submits()) == 1
    found = await recorded(key, resources)
    assert found.state is State.UNCONFIRMED
    assert await resources.ledger.open_keys() == [key]


@pytest.mark.parametrize(("kind", "code"), [("http_401", "401"), ("http_400_credits", "400")])
async def test_rejected_request_is_not_retried_but_a_later_run_may_submit_it(
    kind: str, code: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    with pytest.raises(SubmissionRejectedError, match="Nothing was paid"):
        await submit(key, resources)
    rejected = await recorded(key, resources)
    assert rejected.state is State.REJECTED
    assert rejected.attempt.problem is not None
    assert rejected.attempt.problem.code == code
    assert len(sandbox.record.submits()) == 1
    assert await resources.ledger.open_keys() == []

    assert (await submit(key, resources)).state is State.SUBMITTED
    assert len(sandbox.record.charged()) == 1
    assert [attempt.state for attempt in (await recorded(key, resources)).attempts] == [
        State.REJECTED,
        State.SUBMITTED,
    ]


async def test_rate_limit_is_waited_out_for_the_retry_after_time(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_429", times=2, retry_after="7"))
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    resources.clock.sleep = sleep
    assert (await submit(key, resources)).state is State.SUBMITTED
    assert len(sandbox.record.charged()) == 1
    assert [pause >= 7 for pause in slept] == [True, True]


async def test_persistent_rate_limit_ends_rejected_after_max_tries(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_429", times=-1))
    with pytest.raises(SubmissionRejectedError, match=f"after {MAX_TRIES} tries"):
        await submit(key, resources)
    assert len(sandbox.record.submits()) == MAX_TRIES
    assert (await recorded(key, resources)).state is State.REJECTED


async def test_racing_runs_share_their_tries_at_a_rate_limit(
    key: str, api: ApixoApi, archive: VideoArchive, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_429", times=-1))

    async def submit_as_another_run() -> None:
        async with PayingResources(api, archive) as own:
            with pytest.raises(SubmissionRejectedError):
                await submit(key, own)

    await asyncio.gather(*(submit_as_another_run() for _ in range(6)))
    assert len(sandbox.record.submits()) <= 2 * MAX_TRIES
    assert sandbox.record.charged() == []


async def test_request_to_an_unreachable_provider_is_provably_unpaid(
    key: str, archive: VideoArchive, resources: PayingResources, sandbox: SandboxServer
) -> None:
    unreachable = make_api(sandbox, base_url="http://127.0.0.1:9")
    async with PayingResources(unreachable, archive) as own:
        with pytest.raises(SubmissionRejectedError, match="Nothing was sent"):
            await submit(key, own)
    assert (await recorded(key, resources)).state is State.REJECTED
    await submit(key, resources)
    assert len(sandbox.record.submits()) == 1


async def test_record_hidden_by_a_cache_ends_the_run_and_pays_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in front of the store keeps answering that there is no record."""
    await submit(key, resources)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    async def cached(name: str) -> StoredObject | None:
        return None if name == record_name(key) else await get(name)

    get = resources.store.get
    monkeypatch.setattr(resources.store, "get", cached)
    resources.clock.sleep, resources.clock.monotonic = sleep, lambda: 1 + sum(waited)
    async with asyncio.timeout(60):
        with pytest.raises(LedgerError, match="cache"):
            await submit(key, resources)
    assert 60 <= sum(waited) <= 62
    assert len(waited) < 200
    assert len(sandbox.record.submits()) == 1


async def test_another_request_under_a_known_key_is_an_error(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    with pytest.raises(KeyConflictError, match=key):
        await submit(key, resources, VideoRequest(prompt="Something else"))
    assert len(sandbox.record.submits()) == 1


# The monotonic clock may stop while the machine sleeps, and the wall clock may be changed.


async def test_cancellation_during_the_paid_call_still_records_its_answer(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.6))
    paying = asyncio.create_task(submit(key, resources))
    await charged(sandbox)
    paying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paying
    assert (await recorded(key, resources)).state is State.SUBMITTED


async def test_paid_call_survives_the_end_of_the_run(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """For example at SIGTERM, when `asyncio.run` cancels all tasks of the loop."""
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.6))
    paying = asyncio.create_task(submit(key, resources))
    await charged(sandbox)
    ours = asyncio.current_task()
    for _ in range(3):
        for task in asyncio.all_tasks() - {ours}:
            if "submit" in repr(task.get_coro()):
                task.cancel()
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await paying
    assert (await recorded(key, resources)).state is State.SUBMITTED


async def test_run_cancelled_while_it_waits_for_its_turn_sends_nothing(
    key: str, archive: VideoArchive, resources: PayingResources, sandbox: SandboxServer
) -> None:
    slow = make_api(sandbox, requests_per_minute=30)
    async with PayingResources(slow, archive) as own:
        await submit(f"{key}-first", own)  # uses the only turn of these two seconds
        waiting = asyncio.create_task(submit(key, own))
        await asyncio.sleep(0.5)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert len(sandbox.record.submits()) == 1
    assert await resources.ledger.read(key) is None, "the turn comes before the claim"


async def test_run_cancelled_before_its_claim_claims_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payment thread may be busy, so the run can be cancelled before its call's turn."""
    make, started = PaidCall.make, threading.Event()

    async def make_after_cancel(
        call: PaidCall, client: ApixoClient, ledger: Ledger, stopping: threading.Event
    ) -> Outcome:
        started.set()
        while not stopping.is_set():
            await asyncio.sleep(0.01)
        return await make(call, client, ledger, stopping)

    monkeypatch.setattr(PaidCall, "make", make_after_cancel)
    paying = asyncio.create_task(submit(key, resources))
    await asyncio.to_thread(started.wait, 20)
    paying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await paying
    assert sandbox.record.submits() == []
    assert await resources.ledger.read(key) is None


async def test_run_cancelled_between_its_claim_and_the_paid_call_sends_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed, cancelled = Ledger.claim, threading.Event(), threading.Event()

    async def claim_and_wait(ledger: Ledger, made: Generation, *, over: Entry | None) -> Entry | None:
        written = await claim(ledger, made, over=over)
        claimed.set()
        await asyncio.to_thread(cancelled.wait, 20)
        return written

    monkeypatch.setattr(Ledger, "claim", claim_and_wait)
    paying = asyncio.create_task(submit(key, resources))
    await asyncio.to_thread(claimed.wait, 20)
    paying.cancel()
    await asyncio.sleep(0.05)  # the run is cancelled, and notifies the payment thread
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await paying
    assert sandbox.record.submits() == []
    assert (await recorded(key, resources)).state is State.REJECTED


PRINT_RETRIES = """
from flows.generate_video import generate_video
from flows.steps import submit, wait
print(generate_video.retries, submit.retries, wait.retries)
"""


def test_default_retries_of_a_profile_do_not_apply_to_the_paid_step() -> None:
    seen = subprocess.run(
        [sys.executable, "-c", PRINT_RETRIES],
        env={**os.environ, "PREFECT_TASKS_DEFAULT_RETRIES": "3", "PREFECT_FLOWS_DEFAULT_RETRIES": "3"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout.split() == ["0", "0", "0"]


async def test_only_the_paid_call_sends_an_idempotency_key_with_its_attempt(
    key: str, stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_429"))
    await stored.generate(KITE, key=key)
    named = [(request.method, request.headers.get("idempotency-key")) for request in sandbox.record.all()]
    assert [name for method, name in named if method == "POST"] == [f"{key}/1", f"{key}/2"]
    assert {name for method, name in named if method != "POST"} == {None}
    assert sandbox.record.results()
