"""A preview, an answer, and a final video, with a real Prefect API, a real MinIO and the sandbox."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.flow_runs import resume_flow_run
from prefect.input.run_input import keyset_from_paused_state

from apixo import VideoRequest
from blocks import ApixoApi
from deployments.sandbox import SandboxServer
from flows.preview_then_final import (
    ANOTHER,
    AS_REQUESTED,
    FINAL_8,
    FINAL_12,
    STOP,
    Answer,
    AnswerError,
    meaning,
    preview_key,
    preview_of,
    preview_then_final,
    shortest_seconds,
)
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import KITE, make_api
from tests.support.waiting import until


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    return make_api(sandbox, prices={"wan-2-5-video": {"per_second": "0.5"}})


def test_preview_has_the_shortest_duration_of_its_model() -> None:
    assert preview_of(VideoRequest(prompt="Dunes", duration=12)) == VideoRequest(prompt="Dunes", duration=4)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"model": "hailuo-2-3", "mode": "pro-text-to-video", "duration": 5}, 5),  # 6 s is only in its other mode
        ({"model": "veo-3-1"}, None),
        ({"model": "kling-3-0-turbo", "duration": 8, "fallback_models": ["sora-2"]}, 4),  # sora-2 has no 3 s
        ({"model": "kling-3-0-turbo", "duration": 8, "fallback_models": ["veo-3-1", "unknown"]}, 3),
        ({"model": "unknown", "duration": 9}, 4),
    ],
)
def test_preview_duration_fits_its_mode_and_fallback_models(fields: dict[str, Any], seconds: int | None) -> None:
    assert shortest_seconds(VideoRequest(prompt="Dunes", **fields)) == seconds


def test_another_preview_may_use_a_model_without_the_first_ones_duration() -> None:
    another = meaning(Answer(decision=ANOTHER, model="wan-2-5-video"), preview_of(KITE), 10).request
    assert another is not None
    assert (another.model, another.duration) == ("wan-2-5-video", 5)


def test_empty_answer_fields_keep_the_request_and_given_ones_change_it() -> None:
    assert meaning(Answer(decision=FINAL_8), KITE, 4) == (KITE.model_copy(update={"duration": 8}), True)
    changed = meaning(Answer(decision=FINAL_12, prompt=" Dunes at dusk "), KITE, 4).request
    assert changed is not None
    assert (changed.prompt, changed.duration) == ("Dunes at dusk", 12)
    assert meaning(Answer(decision=STOP, prompt="Dunes"), KITE, 4).request is None


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Answer(decision=ANOTHER), "would be the same"),
        (Answer(decision=ANOTHER, model="veo-3-1"), "makes neither 8 nor 12 s .* generate-video"),
        (Answer(decision=AS_REQUESTED), "as short as its preview"),
        (Answer(decision=FINAL_8, model="wan-2-5-video"), "must be 5 or 10"),
        (Answer(decision=FINAL_8, model="no model/"), "model"),
        (Answer(decision=FINAL_8, prompt="x" * 10_001), "prompt"),
    ],
)
def test_invalid_answer_raises_error_with_the_reason(answer: Answer, why: str) -> None:
    with pytest.raises(AnswerError, match=why):
        meaning(answer, KITE, 4)


async def runs_named(name: str) -> list[FlowRun]:
    async with get_client() as client:
        return await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))


async def paused(name: str, question: str) -> FlowRun:
    """The run with this name, once it waits for an answer under a key with this ending, and shows the form."""

    async def waiting_run() -> FlowRun | None:
        for run in await runs_named(name):
            if run.state and run.state.is_paused() and str(run.state.state_details.pause_key).endswith(question):
                form = keyset_from_paused_state(run.state)["schema"]  # the form is saved after the state
                async with get_client() as client:
                    if await client.filter_flow_run_input(run.id, form, limit=1, exclude_keys=set()):
                        return run
        return None

    return await until(waiting_run, what=f"{name} to ask {question}", pause=0.1)


@asynccontextmanager
async def running(
    stored: StoredBlocks, key: str, request: VideoRequest = KITE, **more: Any
) -> AsyncIterator[asyncio.Future[Any]]:
    task: asyncio.Future[Any] = asyncio.ensure_future(
        preview_then_final(request, key=key, api=stored.name, archive=stored.name, return_state=True, **more)
    )
    try:
        yield task
    finally:
        task.cancel()


async def answer(run: FlowRun, **given: str) -> None:
    await asyncio.to_thread(resume_flow_run, run.id, run_input=given)


async def artifacts(run_id: UUID) -> dict[str, str]:
    async with get_client() as client:
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
    return {str(item.key): str(item.data) for item in sorted(found, key=lambda item: str(item.created))}


def lengths(sandbox: SandboxServer) -> list[int]:
    return [json.loads(request.body)["input"]["duration"] for request in sandbox.record.submits()]


async def test_final_video_follows_the_decision_and_a_rerun_pays_for_neither_again(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key) as task:
        run = await paused(f"preview {key}", "preview-1-0")
        assert lengths(sandbox) == [4]
        question = (await artifacts(run.id))[f"question-{key}-preview"]
        assert "data:image/jpeg" in question
        assert "Resume" in question
        await answer(run, decision=FINAL_8)
        state: State[Any] = await task
    made = await state.aresult()
    assert (made.key, made.request.duration) == (f"{key}-final", 8)
    assert lengths(sandbox) == [4, 8]
    async with running(stored, key) as again:  # no form: the final video is already archived
        assert (await (await again).aresult()).key == made.key
    assert lengths(sandbox) == [4, 8]


async def test_model_without_8_or_12_s_makes_the_final_video_as_long_as_requested(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    requested = VideoRequest(prompt="Dunes", model="wan-2-5-video", duration=10)
    async with running(stored, key, requested) as task:
        run = await paused(f"preview {key}", "preview-1-0")
        question = (await artifacts(run.id))[f"question-{key}-preview"]
        assert "The final video costs 5.0 as long as requested, at" in question
        await answer(run, decision=FINAL_8)
        run = await paused(f"preview {key}", "preview-1-1")
        await answer(run, decision=AS_REQUESTED)
        state: State[Any] = await task
    assert (await state.aresult()).request == requested
    assert lengths(sandbox) == [5, 10]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model": "veo-3-1"}, "use generate-video"),
        ({"model": "wan-2-5-video", "duration": 5}, "no longer duration"),
        ({"model": "wan-2-5-video", "fallback_models": ["sora-2"]}, "fallback_models"),
    ],
)
async def test_preview_without_a_possible_final_video_is_not_paid_for(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, fields: dict[str, Any], why: str
) -> None:
    async with running(stored, key, VideoRequest(prompt="Dunes", **fields), answer_within_hours=1 / 3600) as task:
        state = await task
    assert state.is_failed()
    with pytest.raises(AnswerError, match=why) as raised:
        await state.aresult()
    assert sandbox.record.submits() == []
    assert str(raised.value)[:40] in (await artifacts(state.state_details.flow_run_id))[f"video-{key}"].replace(
        "\\", ""
    )


async def test_run_that_cannot_open_its_archive_reports_it_in_an_artifact(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    elsewhere = stored.archive.model_copy(update={"bucket": "no-such-bucket"})
    broken = await store_blocks(stored.api, elsewhere)
    async with running(broken, key) as task:
        state = await task
    assert state.is_failed()
    assert "# Not submitted" in (await artifacts(state.state_details.flow_run_id))[f"video-{key}"]
    assert sandbox.record.submits() == []


async def test_invalid_answer_shows_the_form_again_and_a_preview_can_be_changed(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key) as task:
        await answer(await paused(f"preview {key}", "preview-1-0"), decision=ANOTHER)
        run = await paused(f"preview {key}", "preview-1-1")
        assert "would be the same" in (await artifacts(run.id))[f"question-{key}-preview"]
        await answer(run, decision=ANOTHER, prompt="Dunes at dusk")
        await answer(await paused(f"preview {key}", "preview-2-0"), decision=STOP)
        state = await task
    assert state.is_completed()
    assert "no final video" in (state.message or "")
    assert preview_key(key, 2) in (state.message or "")
    assert lengths(sandbox) == [4, 4]
    assert await stored.recorded(f"{key}-final") is None


async def test_run_without_an_answer_in_time_fails_and_pays_nothing_more(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    async with running(stored, key, answer_within_hours=3 / 3600) as task:
        state = await task
    (run,) = await runs_named(f"preview {key}")
    # Either Prefect's server ends it, with a message that cannot be changed, so the question says what to do; or the
    # run itself does, if it is faster.
    assert state.is_failed()
    assert any(said in (state.message or "") for said in ("never resumed", "Nobody answered within"))
    assert "**Retry** that run" in (await artifacts(run.id))[f"question-{key}-preview"]
    assert lengths(sandbox) == [4]
