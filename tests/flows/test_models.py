"""Videos of other models than sora-2, and what happens when a model is gone. Every test asserts on what APIXO saw."""

import asyncio
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from apixo import VideoRequest
from blocks import ApixoApi
from blocks.prices import Price
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from flows.batch.summary import BatchFailedError
from flows.callbacks import Outcome, answer_call
from flows.collect_videos import collect
from flows.generate_batch import generate_batch
from flows.generate_video import generate_video
from flows.record.errors import KeyConflictError, SubmissionRejectedError, UnconfirmedError, VideoFailedError
from flows.record.generation import SCHEMA, Generation, State
from flows.record.ledger import record_name
from flows.resolution import look, resolve_as_task
from flows.resources import Resources, open_resources
from flows.submission import Submission, Terms
from tests.flows.conftest import StoredBlocks
from tests.support import KITE, made_outside, make_api

KLING = VideoRequest(prompt="Dunes at dusk", model="kling-2-6", options={"sound": True}, tags=["spring", "dunes"])
SAFE = VideoRequest(prompt="Dunes at dusk", fallback_models=["kling-3-0-turbo", "future-1"])
GONE = ["http_404", "http_400_model"]


@pytest.fixture
def sandbox(films: Path) -> Iterator[SandboxServer]:
    """A sandbox that offers one model more than the catalogue has."""
    settings = SandboxSettings(speed=600, video_height=90, data_dir=films, other_models=("future-1",))
    with SandboxServer(settings) as server:
        yield server


def asked(sandbox: SandboxServer) -> list[tuple[str | None, bool]]:
    """Which model each paid call asked for, and whether it was charged."""
    return [(request.model, request.charged) for request in sandbox.record.submits()]


def gone(sandbox: SandboxServer, *models: str, kind: str = "http_404", times: int = -1) -> None:
    sandbox.faults.add(*(Fault(call="submit", kind=kind, model=model, times=times) for model in models))


async def submit(key: str, resources: Resources, request: VideoRequest, terms: Terms | None = None) -> Generation:
    return (await Submission(key, request, resources, terms or Terms()).run()).generation


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "x"},
        {"prompt": "x", "model": "future-1", "duration": 7, "aspect_ratio": "3:1", "mode": "z", "options": {"a": 1}},
        VideoRequest(prompt="x", model="veo-3-1").model_dump(mode="json"),
        VideoRequest(prompt="x").model_dump(mode="json"),
        SAFE.model_dump(mode="json"),
    ],
)
def test_prefects_form_takes_what_a_request_takes(request_: dict[str, Any]) -> None:
    for parameters, made in (({"request": request_}, generate_video), ({"requests": [request_]}, generate_batch)):
        schema = parameter_schema(made).model_dump_for_openapi()
        validate(parameters, schema, raise_on_error=True)
        if made is generate_video:
            field = schema["definitions"]["VideoRequest"]["properties"]["model"]
            assert (field["anyOf"][0]["enum"][0], field["default"]) == ("sora-2", "sora-2")


async def test_another_model_is_generated_polled_and_archived_under_its_name(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    made = await stored.generate(KLING, key=key)
    assert made.state is State.ARCHIVED
    assert asked(sandbox) == [("kling-2-6", True)]
    assert {request.model for request in sandbox.record.statuses()} == {"kling-2-6"}
    assert json.loads(sandbox.record.submits()[0].body)["input"] == KLING.input()
    video = made.video
    assert video is not None
    assert video.duration_seconds == pytest.approx(5, abs=0.1)
    assert made.warnings == ()
    store = stored.archive.store()
    try:
        found = await store.get(video.name.replace("video.mp4", "generation.json"))
    finally:
        await store.aclose()
    assert found is not None
    sidecar = json.loads(found.data)
    assert (sidecar["model"], sidecar["request"]["model"]) == ("kling-2-6", "kling-2-6")
    assert (sidecar["request"]["options"], sidecar["request"]["tags"]) == ({"sound": True}, ["spring", "dunes"])
    again = await stored.generate(KLING, key=key)
    assert again == made
    assert len(sandbox.record.submits()) == 1


async def test_another_shape_than_asked_of_the_model_is_a_warning(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="other_orientation"))
    square = KLING.model_copy(update={"aspect_ratio": "1:1"})
    made = await stored.generate(square, key=key)
    assert [warning for warning in made.warnings if "square was asked for" in warning] != []


async def test_a_model_that_nobody_knows_is_sent_as_it_is_with_a_warning(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = VideoRequest(prompt="Dunes at dusk", model="future-1", options={"style": {"grain": 2}})
    made = await stored.generate(request, key=key)
    assert made.state is State.ARCHIVED
    sent = json.loads(sandbox.record.submits()[0].body)
    assert sent["input"] == {"mode": "text-to-video", "prompt": "Dunes at dusk", "style": {"grain": 2}}
    assert "the catalogue does not have future-1: the request is sent as it is" in caplog.text


async def test_tags_are_on_the_run_and_make_no_other_video(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    state = await stored_run(stored, KLING, key=key)
    async with get_client() as client:
        run = await client.read_flow_run(state)
    assert {"spring", "dunes"} <= set(run.tags)
    await stored.generate(KLING.model_copy(update={"tags": ["autumn"]}), key=key)
    assert len(sandbox.record.submits()) == 1
    with pytest.raises(KeyConflictError):
        await stored.generate(KLING.model_copy(update={"options": {"sound": False}}), key=key)
    assert len(sandbox.record.submits()) == 1


async def stored_run(stored: StoredBlocks, request: VideoRequest, *, key: str) -> Any:
    state = await generate_video(request, key=key, api=stored.name, archive=stored.name, return_state=True)
    assert state.is_completed()
    return state.state_details.flow_run_id


@pytest.mark.parametrize("kind", GONE)
async def test_a_model_that_is_gone_gives_way_to_the_fallback_under_the_same_key(
    kind: str, key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    gone(sandbox, "sora-2", kind=kind)
    found = await submit(key, resources, SAFE)
    assert asked(sandbox) == [("sora-2", False), ("kling-3-0-turbo", True)]
    assert [(attempt.model, attempt.state) for attempt in found.attempts] == [
        ("sora-2", State.REJECTED), ("kling-3-0-turbo", State.SUBMITTED),
    ]  # fmt: skip
    assert (found.request, found.task.model) == (SAFE, "kling-3-0-turbo")
    assert json.loads(sandbox.record.submits()[1].body)["input"]["aspect_ratio"] == "16:9"
    assert await submit(key, resources, SAFE) == found
    assert len(sandbox.record.submits()) == 2
    assert [item.what for item in await collect([key], resources)] in (["pending"], ["archived"])
    assert {request.model for request in sandbox.record.statuses()} == {"kling-3-0-turbo"}


async def test_no_fallback_is_off_by_default(key: str, resources: Resources, sandbox: SandboxServer) -> None:
    gone(sandbox, "sora-2")
    with pytest.raises(SubmissionRejectedError, match=r"no such model.*The model was sora-2"):
        await submit(key, resources, KITE)
    assert asked(sandbox) == [("sora-2", False)]


async def test_when_all_models_are_gone_nothing_is_paid_and_a_later_run_begins_anew(
    key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    gone(sandbox, "sora-2", "kling-3-0-turbo", "future-1", times=1)
    with pytest.raises(SubmissionRejectedError, match=r"after 3 tries.*The model was future-1"):
        await submit(key, resources, SAFE)
    found = await submit(key, resources, SAFE)
    assert asked(sandbox) == [
        ("sora-2", False), ("kling-3-0-turbo", False), ("future-1", False), ("sora-2", True),
    ]  # fmt: skip
    assert found.task.model == "sora-2"


@pytest.mark.parametrize(
    "kind",
    [
        "http_404_html", "http_503", "http_500_after", "code_400_after", "reset_after", "reset_before", "hang_after",
        "junk", "no_data",
    ],
)  # fmt: skip
async def test_after_an_unclear_answer_no_other_model_is_ever_asked(
    kind: str, key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "times": -1, "seconds": 5}))
    for _ in range(2):
        with pytest.raises(UnconfirmedError):
            await submit(key, resources, SAFE)
    assert [model for model, _ in asked(sandbox)] == ["sora-2"]


@pytest.mark.parametrize("kind", ["http_400", "http_401", "http_402", "http_403", "http_400_credits"])
async def test_after_any_other_refusal_no_other_model_is_asked(
    kind: str, key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    with pytest.raises(SubmissionRejectedError):
        await submit(key, resources, SAFE)
    assert asked(sandbox) == [("sora-2", False)]


async def test_an_unclear_answer_of_the_fallback_is_not_sent_again(
    key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    gone(sandbox, "sora-2")
    gone(sandbox, "kling-3-0-turbo", kind="reset_after")
    for _ in range(2):
        with pytest.raises(UnconfirmedError):
            await submit(key, resources, SAFE)
    assert asked(sandbox) == [("sora-2", False), ("kling-3-0-turbo", True)]
    task_id = sandbox.record.submits()[1].task_id
    assert task_id is not None
    resolved = await resolve_as_task(await look(key, resources), task_id, resources)
    assert (resolved.task.task_id, resolved.task.model) == (task_id, "kling-3-0-turbo")


async def test_a_busy_fallback_is_tried_again_and_not_the_model_that_is_gone(
    key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    gone(sandbox, "sora-2")
    gone(sandbox, "kling-3-0-turbo", kind="http_429", times=2)
    found = await submit(key, resources, SAFE)
    assert asked(sandbox) == [("sora-2", False), *[("kling-3-0-turbo", False)] * 2, ("kling-3-0-turbo", True)]
    assert found.task.model == "kling-3-0-turbo"


async def test_a_task_that_failed_was_taken_so_no_other_model_is_asked(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_fail_code", times=-1))
    with pytest.raises(VideoFailedError):
        await stored.generate(SAFE, key=key)
    assert asked(sandbox) == [("sora-2", True)]


async def test_racing_runs_with_a_fallback_pay_once(
    key: str, api: ApixoApi, resources: Resources, sandbox: SandboxServer
) -> None:
    gone(sandbox, "sora-2")
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.3, model="kling-3-0-turbo"))

    async def one() -> Generation:
        async with open_resources(api, resources.archive, pays=True) as own:
            return await submit(key, own, SAFE)

    results = await asyncio.gather(*(one() for _ in range(8)))
    assert [model for model, charged in asked(sandbox) if charged] == ["kling-3-0-turbo"]
    assert {result.task_id for result in results} == {results[0].task_id}


async def test_a_task_is_polled_under_the_model_of_its_own_submission(
    key: str, api: ApixoApi, resources: Resources, sandbox: SandboxServer
) -> None:
    """A person names a task of another model than the attempt's: APIXO does not know it there."""
    sandbox.faults.add(Fault(call="submit", kind="reset_before"))
    with pytest.raises(UnconfirmedError):
        await submit(key, resources, KLING)
    other = await made_outside(api)
    with pytest.raises(Exception, match=r"could not be asked|does not know"):
        await resolve_as_task(await look(key, resources), other, resources)
    right = await made_outside(api, KLING)
    assert (await resolve_as_task(await look(key, resources), right, resources)).task.model == "kling-2-6"


@pytest.mark.parametrize("version", [1, 2])
async def test_a_record_of_before_is_one_of_sora_2(
    version: int, key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    await submit(key, resources, KITE)
    name = record_name(key)
    there = await resources.store.get(name)
    assert there is not None
    record = json.loads(there.data)
    assert record["schema_version"] == SCHEMA == 3
    record["schema_version"] = version
    for field in ("model", "options", "tags", "fallback_models"):
        del record["request"][field]
    for field in ("model", "price", "currency"):
        del record["attempts"][0][field]
    await resources.store.put(name, json.dumps(record).encode())
    found = await submit(key, resources, KITE)
    assert (found.task.model, found.attempt.price, found.request) == ("sora-2", None, KITE)
    assert len(sandbox.record.submits()) == 1


async def test_a_record_stays_readable_when_the_catalogue_changes(
    key: str, resources: Resources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await submit(key, resources, KLING)
    (tmp_path / "models.json").write_text(
        '{"kling-2-6": {"source": "a test", "modes": {"other": {"images": [0, 0]}}, "durations": [20]}}'
    )
    monkeypatch.setenv("SORA_MODELS", str(tmp_path / "models.json"))
    entry = await resources.ledger.read(key)
    assert entry is not None
    assert entry.generation == before
    assert [item.what for item in await collect([key], resources)] in (["pending"], ["archived"])


PRICES: dict[str, Any] = {
    "price_per_second": Decimal("0.1"),
    "prices": {"kling-3-0-turbo": Price(per_second=Decimal("0.5")), "veo-3-1": Price(per_video=Decimal(3))},
    "currency": "USD",
}


async def test_the_price_of_the_model_that_took_it_is_written_down(
    key: str, sandbox: SandboxServer, resources: Resources
) -> None:
    resources.api = make_api(sandbox, **PRICES)
    gone(sandbox, "sora-2")
    found = await submit(key, resources, SAFE)
    assert [(item.price, item.currency) for item in found.attempts] == [
        (Decimal("0.4"), "USD"), (Decimal("2.0"), "USD"),
    ]  # fmt: skip


@pytest.fixture
def priced(sandbox: SandboxServer) -> ApixoApi:
    return make_api(sandbox, submit_timeout_seconds=20, **PRICES)


async def batch(stored: StoredBlocks, key: str, requests: list[dict[str, Any]], **options: Any) -> Any:
    given: dict[str, Any] = {"max_in_flight": 1, "submissions_per_second": 100, "api": stored.name} | options
    return await generate_batch(requests=requests, key=key, archive=stored.name, **given)


async def test_a_batch_counts_each_model_with_its_own_price(
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
    assert asked(sandbox) == [("sora-2", True), ("kling-3-0-turbo", True)]
    with pytest.raises(Exception, match="max_spend needs a price of grok-video"):
        await batch(stored, f"{key}-2", [{"prompt": "Dunes", "model": "grok-video"}], max_spend=6)
    assert len(sandbox.record.submits()) == 2


async def test_a_fallback_that_is_too_dear_is_not_paid(
    priced: ApixoApi, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    stored.api.prices = priced.prices
    stored.api.price_per_second = priced.price_per_second
    await stored.api.save(stored.name, overwrite=True)
    gone(sandbox, "sora-2")
    row = {"id": "a", "prompt": "Dunes", "fallback_models": ["kling-3-0-turbo"]}
    with pytest.raises(BatchFailedError, match=r"the batch would come to 2\.0") as caught:
        await batch(stored, key, [row], max_spend=1)
    assert caught.value.summary.blocked is None  # it was not asked, so nobody knows that it is gone
    assert asked(sandbox) == [("sora-2", False)]
    made = await batch(stored, key, [row], max_spend=2)
    assert made.counts == {"archived": 1}
    assert asked(sandbox) == [("sora-2", False), ("sora-2", False), ("kling-3-0-turbo", True)]


async def test_a_model_that_is_gone_stops_its_rows_at_the_first_and_no_others(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    gone(sandbox, "sora-2")
    rows: list[dict[str, Any]] = [{"id": str(number), "prompt": f"Dunes {number}"} for number in range(4)]
    rows[2] |= {"model": "kling-2-6", "options": {"sound": False}}
    with pytest.raises(BatchFailedError, match=r"APIXO does not offer sora-2, so the other rows") as caught:
        await batch(stored, key, rows)
    assert caught.value.summary.counts == {"archived": 1, "not submitted": 2, "rejected": 1}
    assert asked(sandbox) == [("sora-2", False), ("kling-2-6", True)]


async def test_of_a_batch_the_model_that_is_gone_is_asked_once_and_then_the_fallback(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    gone(sandbox, "sora-2")
    row = {"prompt": "Dunes", "fallback_models": ["kling-3-0-turbo"]}
    rows = [{**row, "id": str(number)} for number in range(12)]
    made = await batch(stored, key, rows, submissions_per_second=5)
    assert made.counts == {"archived": 12}
    refused = [model for model, accepted in asked(sandbox) if not accepted]
    assert set(refused) == {"sora-2"}
    assert len(refused) <= 3  # it, and what was in flight when its answer came
    assert asked(sandbox).count(("kling-3-0-turbo", True)) == 12


async def test_fresh_addresses_are_asked_for_under_the_model(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="http_403", model="kling-2-6"))
    assert (await stored.generate(KLING, key=key)).state is State.ARCHIVED
    assert sandbox.faults.pending() == []
    assert {request.model for request in sandbox.record.statuses()} == {"kling-2-6"}


async def test_a_callback_is_checked_under_the_model_of_its_attempt(
    key: str, resources: Resources, sandbox: SandboxServer
) -> None:
    gone(sandbox, "sora-2")
    gone(sandbox, "kling-3-0-turbo", kind="reset_after")
    with pytest.raises(UnconfirmedError):
        await submit(key, resources, SAFE)
    task_id = sandbox.record.submits()[1].task_id
    notified: list[str] = []
    while (outcome := await answer_call(key, 2, task_id, resources, notify=lambda *who: notified.append(who[1]))) in (
        Outcome.PENDING,
        Outcome.UNIDENTIFIED,
    ):
        assert outcome is Outcome.PENDING
        await asyncio.sleep(0.05)
    assert (outcome, notified) == (Outcome.FINISHED, [task_id])
    assert {request.model for request in sandbox.record.statuses()} == {"kling-3-0-turbo"}
    entry = await resources.ledger.read(key)
    assert entry is not None
    assert (entry.generation.task.model, entry.generation.task_id) == ("kling-3-0-turbo", task_id)


async def test_a_video_of_a_task_that_was_replaced_is_collected_under_its_model(
    key: str, api: ApixoApi, resources: Resources, sandbox: SandboxServer
) -> None:
    first = await submit(key, resources, KLING)
    second = await made_outside(api, KLING)
    await resolve_as_task(await look(key, resources), second, resources)
    for _ in range(100):
        await collect([key], resources)
        entry = await resources.ledger.read(key)
        assert entry is not None
        (replaced,) = entry.generation.attempt.superseded
        if entry.generation.state is State.ARCHIVED and replaced.objects:
            break
        await asyncio.sleep(0.05)
    assert (replaced.task_id, len(replaced.objects) > 0) == (first.task_id, True)
    assert {request.model for request in sandbox.record.statuses()} == {"kling-2-6"}
