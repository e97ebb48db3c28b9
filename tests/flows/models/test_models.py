"""Videos of models other than sora-2, and what APIXO receives for them."""

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from prefect import get_client
from prefect.utilities.callables import parameter_schema

from apixo import VideoRequest
from blocks import ApixoApi
from deployments.sandbox import Fault, SandboxServer
from flows.callbacks import CallbackOutcome, answer_call
from flows.collect_videos import collect
from flows.generate_batch import generate_batch
from flows.generate_video import generate_video
from flows.media.media_errors import ImageRefusedError
from flows.record.generation import SCHEMA, State, SupersededTask
from flows.record.ledger import record_name
from flows.record.pipeline_errors import KeyConflictError, UnconfirmedError
from flows.resolution import load_generation, resolve_as_task
from flows.resources import PayingResources
from tests.flows.conftest import StoredBlocks
from tests.flows.generations import recorded, submit
from tests.support import KITE, made_outside
from tests.support.waiting import until

from .requests import KLING, SAFE, fail_submits, requested


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
def test_prefect_form_accepts_every_valid_request(request_: dict[str, Any]) -> None:
    from prefect.utilities.schema_tools import validate  # noqa: PLC0415 - slow to import, in each worker

    for parameters, made in (({"request": request_}, generate_video), ({"requests": [request_]}, generate_batch)):
        schema = parameter_schema(made).model_dump_for_openapi()
        validate(parameters, schema, raise_on_error=True)
        if made is generate_video:
            field = schema["definitions"]["VideoRequest"]["properties"]["model"]
            assert (field["anyOf"][0]["enum"][0], field["default"]) == ("sora-2", "sora-2")


@pytest.mark.parametrize("ending", ["jpg", "webp"])
async def test_image_format_unsupported_by_the_model_is_rejected_before_payment(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, ending: str
) -> None:
    image = [f"{sandbox.base_url}/samples/harbor.{ending}"]
    request = VideoRequest(prompt="A harbor", model="hailuo-2-3", image_urls=image)
    if ending == "jpg":
        assert (await stored.generate(request, key=key)).state is State.ARCHIVED
    else:
        with pytest.raises(ImageRefusedError, match=r"harbor\.webp is a WEBP, but the model accepts JPEG or PNG"):
            await stored.generate(request, key=key)
    assert len(sandbox.record.submits()) == (ending == "jpg")


async def test_another_model_is_requested_polled_and_archived_under_its_name(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    made = await stored.generate(KLING, key=key)
    assert made.state is State.ARCHIVED
    assert requested(sandbox) == [("kling-2-6", True)]
    assert {request.model for request in sandbox.record.statuses()} == {"kling-2-6"}
    assert json.loads(sandbox.record.submits()[0].body)["input"] == KLING.input()
    video = made.video
    assert video is not None
    assert video.duration_seconds == pytest.approx(5, abs=0.1)
    assert made.warnings == ()
    async with aclosing(stored.archive.store()) as store:
        found = await store.get(video.name.replace("video.mp4", "generation.json"))
    assert found is not None
    sidecar = json.loads(found.data)
    assert (sidecar["model"], sidecar["request"]["model"]) == ("kling-2-6", "kling-2-6")
    assert (sidecar["request"]["options"], sidecar["request"]["tags"]) == ({"sound": True}, ["spring", "dunes"])
    again = await stored.generate(KLING, key=key)
    assert again == made
    assert len(sandbox.record.submits()) == 1


async def test_unexpected_aspect_ratio_is_a_warning(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault(call="result", kind="other_orientation"))
    square = KLING.model_copy(update={"aspect_ratio": "1:1"})
    made = await stored.generate(square, key=key)
    assert [warning for warning in made.warnings if "square was requested" in warning] != []


async def test_model_missing_from_the_catalog_is_sent_as_is_with_a_warning(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    request = VideoRequest(prompt="Dunes at dusk", model="future-1", options={"style": {"grain": 2}})
    made = await stored.generate(request, key=key)
    assert made.state is State.ARCHIVED
    sent = json.loads(sandbox.record.submits()[0].body)
    assert sent["input"] == {"mode": "text-to-video", "prompt": "Dunes at dusk", "style": {"grain": 2}}
    assert "the catalog does not have future-1: the request is sent as it is" in caplog.text


async def test_tags_are_on_the_run_and_do_not_change_the_video(
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


async def test_named_task_is_polled_under_the_model_of_its_attempt(
    key: str, api: ApixoApi, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """A user names a task of a different model than the attempt's. APIXO does not know it under the attempt's model."""
    sandbox.faults.add(Fault(call="submit", kind="reset_before"))
    with pytest.raises(UnconfirmedError):
        await submit(key, resources, KLING)
    other = await made_outside(api)
    with pytest.raises(Exception, match=r"could not be polled|does not know"):
        await resolve_as_task(await load_generation(key, resources.ledger), other, resources)
    right = await made_outside(api, KLING)
    assert (
        await resolve_as_task(await load_generation(key, resources.ledger), right, resources)
    ).task.model == "kling-2-6"


@pytest.mark.parametrize("version", [1, 2])
async def test_record_without_a_model_is_for_sora_2(
    version: int, key: str, resources: PayingResources, sandbox: SandboxServer
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


async def test_record_stays_readable_when_the_catalog_changes(
    key: str, resources: PayingResources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await submit(key, resources, KLING)
    (tmp_path / "models.json").write_text(
        '{"kling-2-6": {"source": "a test", "modes": {"other": {"images": [0, 0]}}, "durations": [20]}}'
    )
    monkeypatch.setenv("SORA_MODELS", str(tmp_path / "models.json"))
    assert await recorded(key, resources) == before
    assert [item.what for item in await collect([key], resources)] in (["pending"], ["archived"])


async def test_fresh_result_urls_are_requested_under_the_model(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="http_403", model="kling-2-6"))
    assert (await stored.generate(KLING, key=key)).state is State.ARCHIVED
    assert sandbox.faults.pending() == []
    assert {request.model for request in sandbox.record.statuses()} == {"kling-2-6"}


async def test_callback_is_checked_under_the_model_of_its_attempt(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    fail_submits(sandbox, "sora-2")
    fail_submits(sandbox, "kling-3-0-turbo", kind="reset_after")
    with pytest.raises(UnconfirmedError):
        await submit(key, resources, SAFE)
    task_id = sandbox.record.submits()[1].task_id
    notified: list[str] = []
    while (outcome := await answer_call(key, 2, task_id, resources, notify=lambda *who: notified.append(who[1]))) in (
        CallbackOutcome.PENDING,
        CallbackOutcome.UNIDENTIFIED,
    ):
        assert outcome is CallbackOutcome.PENDING
        await asyncio.sleep(0.05)
    assert (outcome, notified) == (CallbackOutcome.FINISHED, [task_id])
    assert {request.model for request in sandbox.record.statuses()} == {"kling-3-0-turbo"}
    found = await recorded(key, resources)
    assert (found.task.model, found.task_id) == ("kling-3-0-turbo", task_id)


async def test_superseded_video_is_collected_under_its_own_model(
    key: str, api: ApixoApi, resources: PayingResources, sandbox: SandboxServer
) -> None:
    first = await submit(key, resources, KLING)
    second = await made_outside(api, KLING)
    await resolve_as_task(await load_generation(key, resources.ledger), second, resources)

    async def collected() -> SupersededTask | None:
        await collect([key], resources)
        found = await recorded(key, resources)
        (replaced,) = found.attempt.superseded
        return replaced if found.state is State.ARCHIVED and replaced.objects else None

    replaced = await until(collected, what="the videos of both tasks", pause=0.05)
    assert replaced.task_id == first.task_id
    assert {request.model for request in sandbox.record.statuses()} == {"kling-2-6"}
