"""What happens when a model is unavailable: its fallback is used, and nothing is paid twice."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest

from apixo import VideoRequest
from blocks import ApixoApi
from blocks.prices import Price
from deployments.sandbox import Fault, SandboxServer
from flows.batch.summary import BatchFailedError
from flows.collect_videos import collect
from flows.generate_batch import generate_batch
from flows.paid_call import Outcome
from flows.record.generation import Generation, State
from flows.record.pipeline_errors import SubmissionRejectedError, UnconfirmedError, VideoFailedError
from flows.resolution import load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.submission import Submission, Terms
from tests.flows.conftest import StoredBlocks
from tests.flows.generations import submit
from tests.support import KITE, make_api

from .requests import SAFE, UNAVAILABLE, fail_submits, requested


@pytest.mark.parametrize("kind", UNAVAILABLE)
async def test_fallback_replaces_an_unavailable_model_under_the_same_key(
    kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    fail_submits(sandbox, "sora-2", kind=kind)
    found = await submit(key, resources, SAFE)
    assert requested(sandbox) == [("sora-2", False), ("kling-3-0-turbo", True)]
    assert [(attempt.model, attempt.state) for attempt in found.attempts] == [
        ("sora-2", State.REJECTED), ("kling-3-0-turbo", State.SUBMITTED),
    ]  # fmt: skip
    assert (found.request, found.task.model) == (SAFE, "kling-3-0-turbo")
    assert json.loads(sandbox.record.submits()[1].body)["input"]["aspect_ratio"] == "16:9"
    assert await submit(key, resources, SAFE) == found
    assert len(sandbox.record.submits()) == 2
    assert [item.what for item in await collect([key], resources)] in (["pending"], ["archived"])
    assert {request.model for request in sandbox.record.statuses()} == {"kling-3-0-turbo"}


async def test_fallback_is_off_by_default(key: str, resources: PayingResources, sandbox: SandboxServer) -> None:
    fail_submits(sandbox, "sora-2")
    with pytest.raises(SubmissionRejectedError, match=r"no such model.*The model was sora-2"):
        await submit(key, resources, KITE)
    assert requested(sandbox) == [("sora-2", False)]


async def test_nothing_is_paid_if_all_models_are_unavailable_and_a_rerun_starts_over(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    fail_submits(sandbox, "sora-2", "kling-3-0-turbo", "future-1", times=1)
    with pytest.raises(SubmissionRejectedError, match=r"after 3 tries.*The model was future-1"):
        await submit(key, resources, SAFE)
    found = await submit(key, resources, SAFE)
    assert requested(sandbox) == [
        ("sora-2", False), ("kling-3-0-turbo", False), ("future-1", False), ("sora-2", True),
    ]  # fmt: skip
    assert found.task.model == "sora-2"


@pytest.mark.parametrize("kind", ["http_503", "reset_after"])  # which answers are unclear: see test_submit.py
async def test_fallback_is_never_used_after_an_unclear_answer(
    kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "times": -1}))
    for _ in range(2):
        with pytest.raises(UnconfirmedError):
            await submit(key, resources, SAFE)
    assert [model for model, _ in requested(sandbox)] == ["sora-2"]


@pytest.mark.parametrize("kind", ["http_400", "http_400_credits"])
async def test_fallback_is_not_used_after_any_other_rejection(
    kind: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    with pytest.raises(SubmissionRejectedError):
        await submit(key, resources, SAFE)
    assert requested(sandbox) == [("sora-2", False)]


async def test_fallback_is_not_resent_after_an_unclear_answer(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    fail_submits(sandbox, "sora-2")
    fail_submits(sandbox, "kling-3-0-turbo", kind="reset_after")
    for _ in range(2):
        with pytest.raises(UnconfirmedError):
            await submit(key, resources, SAFE)
    assert requested(sandbox) == [("sora-2", False), ("kling-3-0-turbo", True)]
    task_id = sandbox.record.submits()[1].task_id
    assert task_id is not None
    resolved = await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)
    assert (resolved.task.task_id, resolved.task.model) == (task_id, "kling-3-0-turbo")


async def test_busy_fallback_is_retried_but_the_unavailable_model_is_not(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    fail_submits(sandbox, "sora-2")
    fail_submits(sandbox, "kling-3-0-turbo", kind="http_429", times=2)
    found = await submit(key, resources, SAFE)
    assert requested(sandbox) == [("sora-2", False), *[("kling-3-0-turbo", False)] * 2, ("kling-3-0-turbo", True)]
    assert found.task.model == "kling-3-0-turbo"


async def test_fallback_is_not_used_after_a_failed_task(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault(call="status", kind="failed", times=-1))
    with pytest.raises(VideoFailedError):
        await stored.generate(SAFE, key=key)
    assert requested(sandbox) == [("sora-2", True)]


async def test_racing_runs_with_a_fallback_pay_once(
    key: str, api: ApixoApi, resources: PayingResources, sandbox: SandboxServer
) -> None:
    fail_submits(sandbox, "sora-2")
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.3, model="kling-3-0-turbo"))

    async def one() -> Generation:
        async with PayingResources(api, resources.archive) as own:
            return await submit(key, own, SAFE)

    results = await asyncio.gather(*(one() for _ in range(8)))
    assert [model for model, charged in requested(sandbox) if charged] == ["kling-3-0-turbo"]
    assert {result.task_id for result in results} == {results[0].task_id}


PRICES: dict[str, Any] = {
    "price_per_second": Decimal("0.1"),
    "prices": {"kling-3-0-turbo": Price(per_second=Decimal("0.5")), "veo-3-1": Price(per_video=Decimal(3))},
    "currency": "USD",
}


async def test_each_attempt_records_the_price_of_its_model(
    key: str, sandbox: SandboxServer, resources: PayingResources
) -> None:
    resources.api = make_api(sandbox, **PRICES)
    fail_submits(sandbox, "sora-2")
    found = await submit(key, resources, SAFE)
    assert [(item.price, item.currency) for item in found.attempts] == [
        (Decimal("0.4"), "USD"), (Decimal("2.0"), "USD"),
    ]  # fmt: skip


async def test_price_is_that_of_the_duration_that_the_fallback_has(
    key: str, sandbox: SandboxServer, resources: PayingResources
) -> None:
    """Neither request gives a duration: sora-2-pro takes 4 s, and wan-2-5-video 5 s."""
    prices = {"sora-2-pro": Price(per_second=Decimal("0.1")), "wan-2-5-video": Price(per_second=Decimal("0.5"))}
    resources.api = make_api(sandbox, prices=prices)
    fail_submits(sandbox, "sora-2-pro")
    request = VideoRequest(prompt="Dunes", model="sora-2-pro", fallback_models=["wan-2-5-video"])
    found = await submit(key, resources, request)
    assert [item.price for item in found.attempts] == [Decimal("0.4"), Decimal("2.5")]
    assert [json.loads(item.body)["input"]["duration"] for item in sandbox.record.submits()] == [4, 5]


@pytest.fixture
def priced(sandbox: SandboxServer) -> ApixoApi:
    return make_api(sandbox, submit_timeout_seconds=20, **PRICES)


async def batch(stored: StoredBlocks, key: str, requests: list[dict[str, Any]], **options: Any) -> Any:
    given: dict[str, Any] = {"max_in_flight": 1, "submissions_per_second": 100, "api": stored.name} | options
    return await generate_batch(requests=requests, key=key, archive=stored.name, **given)


async def test_batch_counts_each_model_at_its_own_price(
    priced: ApixoApi, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    stored.api.prices = priced.prices
    stored.api.price_per_second = priced.price_per_second
    await stored.api.save(stored.name, overwrite=True)
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "Dunes", "duration": 4},
        {"id": "b", "prompt": "Dunes", "model": "kling-3-0-turbo", "duration": 10},
        {"id": "c", "prompt": "Dunes", "model": "veo-3-1"},
    ]
    dry = await batch(stored, key, rows, dry_run=True)
    assert [row.price for row in dry.rows] == [Decimal("0.4"), Decimal("5.0"), Decimal(3)]
    assert (dry.price, sandbox.record.submits()) == (Decimal("8.4"), [])
    with pytest.raises(BatchFailedError, match=r"max_spend is 6"):
        await batch(stored, key, rows, max_spend=6)
    assert requested(sandbox) == [("sora-2", True), ("kling-3-0-turbo", True)]
    with pytest.raises(Exception, match="max_spend needs a price of grok-video"):
        await batch(stored, f"{key}-2", [{"prompt": "Dunes", "model": "grok-video"}], max_spend=6)
    assert len(sandbox.record.submits()) == 2


async def test_fallback_that_exceeds_max_spend_is_not_paid(
    priced: ApixoApi, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    stored.api.prices = priced.prices
    stored.api.price_per_second = priced.price_per_second
    await stored.api.save(stored.name, overwrite=True)
    fail_submits(sandbox, "sora-2")
    row = {"id": "a", "prompt": "Dunes", "fallback_models": ["kling-3-0-turbo"]}
    with pytest.raises(BatchFailedError, match=r"the batch would come to 2\.0") as caught:
        await batch(stored, key, [row], max_spend=1)
    assert caught.value.summary.blocked is None  # the fallback was not requested, so it is not known to be unavailable
    assert requested(sandbox) == [("sora-2", False)]
    made = await batch(stored, key, [row], max_spend=2)
    assert made.counts == {"archived": 1}
    assert (made.rows[0].price, made.price) == (Decimal("2.0"), Decimal("2.0"))
    assert (await batch(stored, key, [row])).rows[0].price == Decimal("2.0")
    assert requested(sandbox) == [("sora-2", False), ("sora-2", False), ("kling-3-0-turbo", True)]


async def test_unavailable_model_stops_its_own_rows_only(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    fail_submits(sandbox, "sora-2")
    rows: list[dict[str, Any]] = [{"id": str(number), "prompt": f"Dunes {number}"} for number in range(4)]
    rows[2] |= {"model": "kling-2-6", "options": {"sound": False}}
    with pytest.raises(BatchFailedError, match=r"APIXO does not offer sora-2, so its other rows") as caught:
        await batch(stored, key, rows)
    assert caught.value.summary.counts == {"archived": 1, "not submitted": 2, "rejected": 1}
    assert requested(sandbox) == [("sora-2", False), ("kling-2-6", True)]


async def test_batch_uses_the_fallback_once_a_model_is_known_to_be_unavailable(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    fail_submits(sandbox, "sora-2")
    row = {"prompt": "Dunes", "fallback_models": ["kling-3-0-turbo"]}
    rows = [{**row, "id": str(number)} for number in range(12)]
    made = await batch(stored, key, rows, submissions_per_second=5)
    assert made.counts == {"archived": 12}
    rejected = [model for model, accepted in requested(sandbox) if not accepted]
    assert set(rejected) == {"sora-2"}
    assert len(rejected) <= 3  # the first one, and those in flight when its answer came
    assert requested(sandbox).count(("kling-3-0-turbo", True)) == 12


async def test_row_that_waited_while_its_model_was_found_unavailable_uses_the_fallback(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    gone = set[str]()

    @asynccontextmanager
    async def learn_while_waiting(_: str) -> AsyncIterator[Callable[[Outcome], None]]:
        gone.add("sora-2")
        yield lambda _: None

    request = VideoRequest(prompt="Dunes", fallback_models=["kling-3-0-turbo"])
    await Submission(key, request, resources, Terms(paying=learn_while_waiting, gone=gone)).run()
    assert requested(sandbox) == [("kling-3-0-turbo", True)]
