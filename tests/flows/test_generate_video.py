"""The whole flow, in this process, against a real Prefect API, a real MinIO and the sandbox."""

import asyncio
import hashlib
import io
import json
import uuid
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterName,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, TaskRunResult
from prefect.exceptions import ParameterTypeError
from prefect.flow_engine import run_flow_async
from prefect.states import AwaitingRetry

from apixo import ApixoError, VideoRequest
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from flows.generate_video import generate_video
from flows.media.errors import DamagedVideoError, MediaError
from flows.record.errors import InvalidKeyError, PipelineError, UnconfirmedError
from flows.record.generation import Generation, State
from flows.signals.artifacts import artifact_key
from tests.flows.conftest import StoredBlocks
from tests.support import KITE, unique

STEPS = ["validate_image", "submit", "wait", "fetch", "archive"]


async def objects(stored: StoredBlocks, prefix: str) -> list[str]:
    store = stored.archive.store()
    try:
        return await store.names(prefix)
    finally:
        await store.aclose()


async def read(stored: StoredBlocks, name: str) -> bytes:
    store = stored.archive.store()
    try:
        found = await store.get(name)
    finally:
        await store.aclose()
    assert found is not None
    return found.data


def frames_of(video: bytes) -> tuple[int, int, int]:
    with av.open(io.BytesIO(video), mode="r") as container:
        frames = list(container.decode(video=0))
    return len(frames), frames[0].width, frames[0].height


@pytest.mark.parametrize("aspect_ratio", ["landscape", "portrait"])
async def test_a_video_from_text_ends_whole_in_the_archive(
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


async def test_the_sidecar_describes_the_video(stored: StoredBlocks, key: str) -> None:
    made = await stored.generate(VideoRequest(prompt="Dunes at dusk", duration=8), key=key)
    assert made.video is not None
    folder = made.video.name.removesuffix("video.mp4")
    told = json.loads(await read(stored, f"{folder}generation.json"))
    assert told["key"] == key
    assert told["task_id"] == made.task_id
    assert told["request"]["prompt"] == "Dunes at dusk"
    assert told["request"]["duration"] == 8
    assert str(uuid.UUID(told["flow_run_id"])) == made.attempt.claimed_by.flow_run_id
    assert told["version"]
    assert told["claimed_at"] <= told["submitted_at"] <= told["succeeded_at"]
    assert "?" not in told["result_urls"][0]
    video = next(item for item in told["objects"] if item["kind"] == "video")
    assert video["sha256"] == made.video.sha256
    assert video["size_bytes"] == made.video.size_bytes
    assert video["codec"] == "h264"
    assert video["duration_seconds"] == pytest.approx(8, abs=0.1)
    assert (video["width"], video["height"]) == (made.video.width, made.video.height)


async def test_the_poster_is_a_jpeg_of_the_video(stored: StoredBlocks, key: str) -> None:
    made = await stored.generate(KITE, key=key)
    poster = next(item for item in made.objects if item.kind == "poster")
    image = Image.open(io.BytesIO(await read(stored, poster.name)))
    assert image.format == "JPEG"
    assert made.video is not None
    assert image.size == (made.video.width, made.video.height)


async def test_a_video_from_an_image_checks_the_image_before_paying(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    request = VideoRequest(prompt="The harbor wakes", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    made = await stored.generate(request, key=key)
    assert made.state is State.ARCHIVED
    ours = next(item for item in sandbox.record.images() if "sandbox" not in item.headers.get("user-agent", ""))
    (paid,) = sandbox.record.submits()
    assert ours.time < paid.time


async def test_run_and_task_names_carry_the_key_and_all_steps_show_also_on_a_rerun(
    stored: StoredBlocks, key: str
) -> None:
    await stored.generate(KITE, key=key)
    await stored.generate(KITE, key=key)
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[f"generate {key}"]))
        )
        assert len(runs) == 2
        for run in runs:
            names: set[str] = set()
            for _ in range(100):  # task runs are written by the server in the background
                tasks = await client.read_task_runs(
                    task_run_filter=TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run.id]))
                )
                names = {task.name for task in tasks}
                if len(names) == 5:
                    break
            assert names == {f"{step} {key}" for step in STEPS}


async def test_the_graph_of_a_run_shows_which_step_s_result_a_step_was_given(stored: StoredBlocks, key: str) -> None:
    made = await stored.generate(KITE, key=key)
    run_id = uuid.UUID(made.attempt.claimed_by.flow_run_id or "")
    wanted = TaskRunFilter(flow_run_id=TaskRunFilterFlowRunId(any_=[run_id]))
    async with get_client() as client:
        for _ in range(100):  # task runs are written by the server in the background
            tasks = await client.read_task_runs(task_run_filter=wanted)
            if len(tasks) == 5:
                break
            await asyncio.sleep(0.1)
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


async def test_a_second_run_of_an_archived_key_returns_the_same_and_pays_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    first = await stored.generate(KITE, key=key)
    sandbox.record.clear()
    assert await stored.generate(KITE, key=key) == first
    assert sandbox.record.all() == []


async def test_without_a_key_a_video_is_called_by_its_prompt_and_no_two_runs_share_the_name(
    stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    first, second = await stored.generate(KITE), await stored.generate(KITE)
    assert first.key == "a-red-kite-over-dunes-slow-dolly-in-golden-hour"
    assert second.key.startswith(f"{first.key}-")
    assert len(sandbox.record.submits()) == 2
    run = await run_of(second)
    assert run.name == f"generate {second.key}"


@pytest.mark.parametrize("typed", [True, False])
async def test_a_rerun_of_a_run_without_a_key_pays_nothing_again(
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


async def test_the_open_marker_goes_when_the_video_is_archived(stored: StoredBlocks, key: str) -> None:
    submitted = await stored.generate(KITE, key=key, wait=False)
    assert submitted.state is State.SUBMITTED
    assert await objects(stored, "open/") == [f"open/{key}"]
    archived = await stored.generate(KITE, key=key)
    assert archived.state is State.ARCHIVED
    assert await objects(stored, "open/") == []


async def test_the_artifact_shows_the_video_without_a_signed_address(stored: StoredBlocks, key: str) -> None:
    made = await stored.generate(KITE, key=key)
    async with get_client() as client:
        run_id = uuid.UUID(made.attempt.claimed_by.flow_run_id or "")
        (artifact,) = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    text = str(artifact.data)
    assert made.video is not None
    assert made.video.sha256 in text
    assert "data:image/jpeg;base64," in text
    assert "X-Amz" not in text


@pytest.mark.parametrize("kind", ["cut", "http_500"])
async def test_a_download_that_breaks_is_repeated(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": 2}))
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


async def test_a_cut_download_goes_on_where_it_was_cut(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault(call="result", kind="cut"))
    await stored.generate(KITE, key=key)
    first, second = sandbox.record.results()
    assert "range" not in first.headers
    assert second.headers["range"].startswith("bytes=")
    assert second.headers["range"] != "bytes=0-"


@pytest.mark.parametrize("kind", ["html_200", "empty", "truncated_mp4"])
async def test_a_damaged_result_is_never_archived_and_a_rerun_fetches_it_again(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": -1}))
    with pytest.raises((DamagedVideoError, MediaError)) as caught:
        await stored.generate(KITE, key=key)
    assert key in str(caught.value)
    left = await stored.recorded(key)
    assert left is not None
    assert left.state is State.SUCCEEDED
    assert await objects(stored, "videos/") == []
    assert await objects(stored, "open/") == [f"open/{key}"]
    sandbox.faults.clear()
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("kind", ["other_duration", "other_orientation"])
async def test_a_playable_video_that_differs_is_archived_with_a_warning(
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


@pytest.mark.parametrize(("prompt", "code"), [("something forbidden", "CONTENT_VIOLATION")])
async def test_a_failure_of_the_provider_is_told_and_not_paid_again(
    prompt: str, code: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    for _ in range(3):
        with pytest.raises(PipelineError, match=code):
            await stored.generate(VideoRequest(prompt=prompt), key=key)
    assert len(sandbox.record.submits()) == 1
    assert await objects(stored, "open/") == []


REFUSED_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "x" * 10_001}, "prompt.*10000"),
    ({"prompt": "x", "duration": 5}, "duration.*4, 8 or 12"),
    ({"prompt": "x", "mode": "image-to-video"}, "image-to-video.*image_urls"),
    (
        {"prompt": "x", "mode": "text-to-video", "image_urls": ["https://example.com/a.jpg"]},
        "text-to-video.*no image_urls",
    ),
    ({"prompt": "x", "seed": 7}, "seed.*[Ee]xtra"),
    ({"prompt": "x", "image_urls": ["file:///etc/passwd"]}, "image_urls.*http"),
    ({"prompt": "x", "aspect_ratio": "square"}, "aspect_ratio.*landscape.*portrait"),
]


@pytest.mark.parametrize(("request_fields", "message"), REFUSED_REQUESTS)
async def test_a_bad_request_is_refused_before_anything_is_paid(
    request_fields: dict[str, Any], message: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(ParameterTypeError, match=f"(?s){message}"):
        await stored.generate(request_fields, key=key)  # type: ignore[arg-type] # as the UI's form would send it
    assert sandbox.record.all() == []
    assert await stored.recorded(key) is None


@pytest.mark.parametrize("bad", ["../escape", "Upper", "sp ace", "a" * 129, "ü", "a/b", "-a", "a\n"])
async def test_a_bad_key_is_refused_before_anything_is_paid(
    bad: str, stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    with pytest.raises((ParameterTypeError, InvalidKeyError)):
        await stored.generate(KITE, key=bad)
    assert sandbox.record.all() == []


IMAGE_FAULTS = [
    ("gif_named_jpg", "GIF"),
    ("too_big", "10,000,000|10 MB|too"),
    ("endless", "10,000,000|10 MB|too|time"),
    ("redirect_private", "169.254|link-local|not allowed|refused|may not"),
    ("http_404", "404"),
    ("truncated", "truncated|decode|broken|whole"),
    ("html", "JPG, PNG or WebP|JPG, PNG, WebP|not a"),
]


@pytest.mark.parametrize(("kind", "message"), IMAGE_FAULTS)
async def test_a_bad_image_is_refused_before_anything_is_paid(
    kind: str, message: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "image", "kind": kind, "times": -1}))
    request = VideoRequest(prompt="x", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    with pytest.raises(MediaError, match=f"(?is){message}"):
        await stored.generate(request, key=key)
    assert sandbox.record.submits() == []
    assert await stored.recorded(key) is None


@pytest.mark.parametrize("host", ["169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]"])
async def test_a_link_local_image_host_is_refused_even_where_private_hosts_are_allowed(
    host: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(MediaError):
        await stored.generate(VideoRequest(prompt="x", image_urls=[f"http://{host}/a.jpg"]), key=key)
    assert sandbox.record.submits() == []


async def test_a_private_image_host_is_refused_by_default(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    stored.api.allow_private_hosts = False
    await stored.api.save(stored.name, overwrite=True)
    request = VideoRequest(prompt="x", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    with pytest.raises(MediaError, match=r"127\.0\.0\.1"):
        await stored.generate(request, key=key)
    assert sandbox.record.all() == []


async def test_the_api_key_reaches_the_api_and_no_other_host(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    request = VideoRequest(prompt="The harbor", image_urls=[f"{sandbox.base_url}/samples/harbor.jpg"])
    await stored.generate(request, key=key)
    assert sandbox.record.images()
    assert sandbox.record.results()
    assert not [item for item in sandbox.record.all() if item.carried_api_key and item.call not in ("submit", "status")]


async def test_missing_blocks_are_named(prefect_server: object, key: str) -> None:
    nobody = unique("nobody")
    with pytest.raises(PipelineError, match=rf"no apixo-api block named '{nobody}'.*sora setup"):
        await generate_video(KITE, key=key, api=nobody, archive=nobody)


async def test_transient_answers_to_status_calls_are_waited_out(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    for kind in ["task_unknown", "http_500", "reset_before", "junk", "http_429", "unknown_state", "other_task"]:
        sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


async def test_a_deadline_leaves_the_generation_open_and_a_rerun_goes_on(
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


async def test_a_request_as_automations_send_it_is_understood(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    """With null and empty texts for what has no value, numbers as texts, and a list as one text."""
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


async def test_a_request_that_can_be_meant_in_two_ways_fails_and_says_so(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    request: Any = {"prompt": "A fox", "image_urls": "https://example.com/a.jpg,b.jpg"}
    with pytest.raises(ParameterTypeError, match=r"image_urls holds a comma, semicolon or plus.*%2C"):
        await stored.generate(request, key=key)
    assert sandbox.record.submits() == []


async def artifact_of(key: str) -> Any:
    """The newest artifact of the newest run of this key."""
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=key)))
        newest = max(runs, key=lambda run: run.expected_start_time or 0)
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[newest.id]))
        )
    (ours,) = [item for item in found if item.key is not None]  # Prefect keeps errors as artifacts without a key
    return ours


async def test_an_unconfirmed_run_has_an_artifact_and_one_line_with_its_reason(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError) as caught:
        await stored.generate(KITE, key=key)
    artifact = await artifact_of(key)
    assert artifact.key == artifact_key(key)
    assert artifact.description == f"Unconfirmed: {key}"
    text = str(artifact.data)
    assert "**Was it paid?** Nobody can know yet" in text
    options = f"--api {stored.name} --archive {stored.name}"
    assert f"`sora resolve {key} --task-id TASK_ID {options}`" in text
    assert "`resolve-video`" in text
    assert "| state | unconfirmed |" in text
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == [str(caught.value)]
    assert "Traceback" not in caplog.text


async def test_a_refused_and_a_failed_run_say_whether_they_were_paid(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    with pytest.raises(PipelineError):
        await stored.generate(KITE, key=key)
    refused = await artifact_of(key)
    assert refused.description == f"Refused: {key}"
    assert "**Was it paid?** No. APIXO did not take it." in str(refused.data)
    failed_key = f"{key}-failed"
    with pytest.raises(PipelineError):
        await stored.generate(VideoRequest(prompt="a forbidden thing"), key=failed_key)
    failed = str((await artifact_of(failed_key)).data)
    assert failed.startswith(f"# Failed: {failed_key}".replace("-", "\\-"))
    assert "change it, and give it a new key" in failed
    with pytest.raises(PipelineError):
        await stored.generate(VideoRequest(prompt="Something else"), key=key)
    assert "**Was it paid?** No. Nothing was sent." in str((await artifact_of(key)).data)


async def test_a_run_without_its_blocks_says_so_in_an_artifact(prefect_server: PrefectServer, key: str) -> None:
    with pytest.raises(PipelineError, match="sora setup"):
        await generate_video(KITE, key=key, api=f"no-{key}", archive=f"no-{key}")
    text = str((await artifact_of(key)).data)
    assert "**Was it paid?** No. Nothing was sent." in text
    assert "sora setup" in text


async def test_parameters_that_prefect_refuses_have_an_artifact_too(stored: StoredBlocks, key: str) -> None:
    with pytest.raises(ParameterTypeError):
        await stored.generate({"prompt": "x", "duration": 5}, key=key)  # type: ignore[arg-type] # a malformed event
    async with get_client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(like_="refused-"))
        texts = [str(item.data) for item in await client.read_artifacts(artifact_filter=wanted)]
    (text,) = [text for text in texts if key.replace("-", "\\-") in text]
    assert "duration" in text
    assert "**Was it paid?** No. Nothing was sent." in text


async def test_a_detached_run_has_an_artifact_that_its_video_is_on_its_way(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    made = await stored.generate(KITE, key=key, wait=False)
    artifact = await artifact_of(key)
    assert artifact.key == artifact_key(key)
    assert artifact.description == f"On its way: {key}"
    assert f"`{made.task_id}`" in str(artifact.data)
    await stored.generate(KITE, key=key)
    assert "| state | archived |" in str((await artifact_of(key)).data)
    assert len(sandbox.record.submits()) == 1
