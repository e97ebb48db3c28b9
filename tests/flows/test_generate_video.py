"""The whole flow, in this process, against a real Prefect API, a real MinIO and the sandbox."""

import hashlib
import io
import json
import uuid
from contextlib import aclosing
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from prefect.blocks.system import Secret
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, TaskRun, TaskRunResult
from prefect.flow_engine import run_flow_async
from prefect.states import AwaitingRetry
from pydantic import SecretStr

from apixo import ApixoError, VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.sandbox import Fault, SandboxServer
from flows.generate_video import generate_video
from flows.media.media_errors import DamagedVideoError, MediaError
from flows.record.generation import Generation, State
from flows.record.pipeline_errors import PipelineError
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import KITE
from tests.support.waiting import until

KEY_WITH_LINE_ENDING = "sk-pasted-with-a-line-end\n"
STEPS = ["validate_image", "submit", "wait", "fetch", "archive"]


async def objects(stored: StoredBlocks, prefix: str) -> list[str]:
    async with aclosing(stored.archive.store()) as store:
        return await store.names(prefix)


async def read(stored: StoredBlocks, name: str) -> bytes:
    async with aclosing(stored.archive.store()) as store:
        found = await store.get(name)
    assert found is not None
    return found.data


def frames_of(video: bytes) -> tuple[int, int, int]:
    with av.open(io.BytesIO(video), mode="r") as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].width, frames[0].height


@pytest.mark.parametrize("aspect_ratio", ["landscape", "portrait"])
async def test_video_from_text_is_archived_complete(
    aspect_ratio: Any, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    made = await stored.generate(VideoRequest(prompt="Dunes at dusk", aspect_ratio=aspect_ratio), key=key)
    assert made.state is State.ARCHIVED
    folder = f"videos/{made.attempt.claimed_at:%Y/%m/%d}/{key}/"
    assert await objects(stored, folder) == [
        f"{folder}generation.json",
        f"{folder}poster.jpg",
        f"{folder}video.mp4",
    ]
    video = await read(stored, f"{folder}video.mp4")
    assert made.video is not None
    assert hashlib.sha256(video).hexdigest() == made.video.sha256
    count, width, height = frames_of(video)
    assert count == 96
    assert (width > height) == (aspect_ratio == "landscape")
    assert len(sandbox.record.submits()) == 1


async def test_sidecar_describes_the_video_and_poster_shows_it(stored: StoredBlocks, key: str) -> None:
    made = await stored.generate(VideoRequest(prompt="Dunes at dusk", duration=8), key=key)
    assert made.video is not None
    folder = made.video.name.removesuffix("video.mp4")
    reported = json.loads(await read(stored, f"{folder}generation.json"))
    assert reported["key"] == key
    assert reported["task_id"] == made.task_id
    assert reported["request"]["prompt"] == "Dunes at dusk"
    assert reported["request"]["duration"] == 8
    assert str(uuid.UUID(reported["flow_run_id"])) == made.attempt.claimed_by.flow_run_id
    assert reported["version"]
    assert reported["claimed_at"] <= reported["submitted_at"] <= reported["succeeded_at"]
    assert "?" not in reported["result_urls"][0]
    video = next(item for item in reported["objects"] if item["kind"] == "video")
    assert video["sha256"] == made.video.sha256
    assert video["size_bytes"] == made.video.size_bytes
    assert video["codec"] == "h264"
    assert video["duration_seconds"] == pytest.approx(8, abs=0.1)
    assert (video["width"], video["height"]) == (made.video.width, made.video.height)
    poster = Image.open(io.BytesIO(await read(stored, f"{folder}poster.jpg")))
    assert (poster.format, poster.size) == ("JPEG", (made.video.width, made.video.height))


async def test_start_image_is_checked_before_paying(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    request = VideoRequest(prompt="The harbor wakes", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    made = await stored.generate(request, key=key)
    assert made.state is State.ARCHIVED
    ours = next(item for item in sandbox.record.images() if "sandbox" not in item.headers.get("user-agent", ""))
    (paid,) = sandbox.record.submits()
    assert ours.time < paid.time


async def test_run_and_task_names_contain_the_key_and_a_rerun_shows_all_steps(stored: StoredBlocks, key: str) -> None:
    await stored.generate(KITE, key=key)
    await stored.generate(KITE, key=key)
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[f"generate {key}"]))
        )
        assert len(runs) == 2
        for run in runs:
            steps = await task_runs(client, run.id)
            assert {task.name for task in steps} == {f"{step} {key}" for step in STEPS}


async def task_runs(client: PrefectClient, run_id: uuid.UUID) -> list[TaskRun]:
    """Waits for the task runs of all steps. The server records them in the background."""
    wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))

    async def five() -> list[TaskRun] | None:
        found = await client.read_task_runs(task_run_filter=wanted)
        return found if len(found) == 5 else None

    return await until(five, what="the task runs of all steps")


async def test_run_graph_shows_which_results_each_step_was_given(stored: StoredBlocks, key: str) -> None:
    made = await stored.generate(KITE, key=key)
    run_id = uuid.UUID(made.attempt.claimed_by.flow_run_id or "")
    async with get_client() as client:
        tasks = await task_runs(client, run_id)
    steps = {task.id: task.name.removesuffix(f" {key}") for task in tasks}
    given = {
        steps[task.id]: {
            name: steps[found.id]
            for name, inputs in task.task_inputs.items()
            for found in inputs
            if isinstance(found, TaskRunResult)
        }
        for task in tasks
    }
    assert given == {
        "validate_image": {},
        "submit": {},
        "wait": {"known": "submit"},
        "fetch": {"known": "wait", "status": "wait"},
        "archive": {"known": "wait", "videos": "fetch"},
    }


async def test_rerun_of_an_archived_key_returns_the_same_record_and_pays_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    first = await stored.generate(KITE, key=key)
    sandbox.record.clear()
    assert await stored.generate(KITE, key=key) == first
    assert sandbox.record.all() == []


async def test_run_without_a_key_derives_a_unique_key_from_its_prompt(
    stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    first, second = await stored.generate(KITE), await stored.generate(KITE)
    assert first.key == "a-red-kite-over-dunes-slow-dolly-in-golden-hour"
    assert second.key.startswith(f"{first.key}-")
    assert len(sandbox.record.submits()) == 2
    run = await run_of(second)
    assert run.name == f"generate {second.key}"


@pytest.mark.parametrize("typed", [True, False])
async def test_rerun_of_a_run_without_a_key_does_not_pay_again(
    typed: bool, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    flow = generate_video.with_options(flow_run_name=f"Spring Sale {key}") if typed else generate_video
    made = await flow(KITE, api=stored.name, archive=stored.name)
    assert made.key == (f"spring-sale-{key}" if typed else "a-red-kite-over-dunes-slow-dolly-in-golden-hour")
    run = await run_of(made)
    async with get_client() as client:
        await client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
        run = await client.read_flow_run(run.id)
    again = await run_flow_async(flow, run, parameters={"request": KITE, "api": stored.name, "archive": stored.name})
    assert again == made
    assert len(sandbox.record.submits()) == 1


async def test_a_run_of_an_earlier_version_keeps_its_id_as_its_key(
    stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    async with get_client() as client:
        run = await client.create_flow_run(generate_video)
    made = await stored.generate(KITE, key=str(run.id))
    parameters = {"request": KITE, "api": stored.name, "archive": stored.name}
    again = await run_flow_async(generate_video, run, parameters=parameters)
    assert again == made
    assert len(sandbox.record.submits()) == 1


async def run_of(made: Generation) -> FlowRun:
    async with get_client() as client:
        return await client.read_flow_run(uuid.UUID(made.attempt.claimed_by.flow_run_id or ""))


async def test_open_marker_is_removed_when_the_video_is_archived(stored: StoredBlocks, key: str) -> None:
    submitted = await stored.generate(KITE, key=key, wait=False)
    assert submitted.state is State.SUBMITTED
    assert await objects(stored, "open/") == [f"open/{key}"]
    archived = await stored.generate(KITE, key=key)
    assert archived.state is State.ARCHIVED
    assert await objects(stored, "open/") == []


@pytest.mark.parametrize("kind", ["cut", "http_500"])
async def test_broken_download_is_retried(kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": 2}))
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


async def test_cut_download_resumes_where_it_was_cut(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault(call="result", kind="cut"))
    await stored.generate(KITE, key=key)
    first, second = sandbox.record.results()
    assert "range" not in first.headers
    assert second.headers["range"].startswith("bytes=")
    assert second.headers["range"] != "bytes=0-"


@pytest.mark.parametrize("kind", ["html_200", "empty", "truncated_mp4"])
async def test_damaged_result_is_not_archived_and_a_rerun_fetches_it_again(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": -1}))
    with pytest.raises((DamagedVideoError, MediaError)) as caught:
        await stored.generate(KITE, key=key)
    assert key in str(caught.value)
    open_generation = await stored.existing(key)
    assert open_generation.state is State.SUCCEEDED
    assert await objects(stored, "videos/") == []
    assert await objects(stored, "open/") == [f"open/{key}"]
    sandbox.faults.clear()
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("kind", ["other_duration", "other_orientation"])
async def test_video_that_differs_from_its_request_is_archived_with_a_warning(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": -1}))
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    assert len(made.warnings) == 1
    sidecar = next(item for item in made.objects if item.kind == "sidecar")
    assert json.loads(await read(stored, sidecar.name))["warnings"] == list(made.warnings)


async def test_two_results_are_both_archived(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault(call="status", kind="result_json_two", times=-1))
    made = await stored.generate(KITE, key=key)
    names = [Path(item.name).name for item in made.objects if item.kind == "video"]
    assert names == ["video.mp4", "video-2.mp4"]


async def test_provider_failure_is_reported_and_not_paid_again(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    for _ in range(3):
        with pytest.raises(PipelineError, match="CONTENT_VIOLATION"):
            await stored.generate(VideoRequest(prompt="something forbidden"), key=key)
    assert len(sandbox.record.submits()) == 1
    assert await objects(stored, "open/") == []


async def test_api_key_is_sent_only_to_the_api(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    request = VideoRequest(prompt="The harbor", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    await stored.generate(request, key=key)
    assert sandbox.record.images()
    assert sandbox.record.results()
    assert not [item for item in sandbox.record.all() if item.carried_api_key and item.call not in ("submit", "status")]


async def test_transient_errors_of_status_calls_are_retried(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    for kind in ["task_unknown", "http_500", "reset_before", "junk", "http_429", "unknown_state", "other_task"]:
        sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


async def test_missed_deadline_leaves_the_generation_open_and_a_rerun_continues(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    stored.api.deadline_seconds = 0.3
    await stored.api.save(stored.name, overwrite=True)
    with pytest.raises(ApixoError, match="queued_v2"):
        await stored.generate(KITE, key=key)
    sandbox.faults.clear()
    stored.api.deadline_seconds = 20
    await stored.api.save(stored.name, overwrite=True)
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


async def test_request_in_the_format_of_automations_is_accepted(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    """They send null or an empty string for a missing value, numbers as strings, and a list as one string."""
    image = f"{sandbox.base_url}/samples/harbor.jpg"
    request: Any = {
        "prompt": "A fox", "duration": "8", "aspect_ratio": "9:16", "image_urls": f"{image},{image}?v=2", "mode": None,
        "remove_watermark": "",
    }  # fmt: skip
    made = await stored.generate(request, key=key)
    assert made.request == VideoRequest(
        prompt="A fox", duration=8, aspect_ratio="portrait", image_urls=[image, f"{image}?v=2"]
    )
    (sent,) = sandbox.record.submits()
    assert json.loads(sent.body)["input"]["image_urls"] == [image, f"{image}?v=2"]


async def test_api_key_with_a_line_ending_raises_error_with_the_block_names(
    api: ApixoApi, archive: VideoArchive, sandbox: SandboxServer, key: str, prefect_server: object
) -> None:
    stored = await store_blocks(
        api.model_copy(update={"api_key": Secret(value=SecretStr(KEY_WITH_LINE_ENDING))}), archive
    )
    with pytest.raises(PipelineError, match=f"blocks '{stored.name}' and '{stored.name}' cannot be used: ") as raised:
        await stored.generate(KITE, key=key)
    assert KEY_WITH_LINE_ENDING.strip() not in str(raised.value)
    assert sandbox.record.submits() == []
