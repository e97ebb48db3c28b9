"""What a run's artifacts show: the video, or what became of it and whether it was paid."""

import uuid
from decimal import Decimal
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterName,
)
from prefect.exceptions import ParameterTypeError

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from blocks.prices import Price
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from flows.generate_video import generate_video
from flows.record.pipeline_errors import PipelineError, UnconfirmedError
from flows.signals.artifacts import artifact_key
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import KITE


async def test_artifact_shows_the_video_without_a_signed_url(stored: StoredBlocks, key: str) -> None:
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


async def test_artifact_shows_the_cost_if_the_block_has_only_a_price_per_video(
    api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    prices = {"sora-2": Price(per_video=Decimal("0.75"))}
    priced = await store_blocks(api.model_copy(update={"prices": prices, "currency": "EUR"}), archive)
    await priced.generate(KITE, key=key)
    assert "| cost | 0.75 EUR, at the API block's prices |" in str((await artifact_of(key)).data)


async def artifact_of(key: str) -> Any:
    """The newest artifact of the newest run of this key."""
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=key)))
        newest = max(runs, key=lambda run: run.expected_start_time or 0)
        found = await client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[newest.id]))
        )
    (keyed,) = [item for item in found if item.key is not None]  # Prefect keeps errors as artifacts without a key
    return keyed


async def test_unconfirmed_run_has_an_artifact_and_logs_one_line_with_its_reason(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError) as caught:
        await stored.generate(KITE, key=key)
    artifact = await artifact_of(key)
    assert artifact.key == artifact_key(key)
    assert artifact.description == f"Unconfirmed: {key}"
    text = str(artifact.data)
    assert "**Was it paid?** It is unknown" in text
    options = f"--api {stored.name} --archive {stored.name}"
    assert f"`sora resolve {key} --task-id TASK_ID {options}`" in text
    assert "`resolve-video`" in text
    assert "| state | unconfirmed |" in text
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage() for record in errors] == [str(caught.value)]
    assert "Traceback" not in caplog.text


async def test_artifacts_of_rejected_and_failed_runs_state_whether_they_were_paid(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    with pytest.raises(PipelineError):
        await stored.generate(KITE, key=key)
    rejected = await artifact_of(key)
    assert rejected.description == f"Rejected: {key}"
    assert "**Was it paid?** No. APIXO rejected it." in str(rejected.data)
    failed_key = f"{key}-failed"
    with pytest.raises(PipelineError):
        await stored.generate(VideoRequest(prompt="a forbidden thing"), key=failed_key)
    failed = str((await artifact_of(failed_key)).data)
    assert failed.startswith(f"# Failed: {failed_key}".replace("-", "\\-"))
    assert "change it, and give it a new key" in failed
    with pytest.raises(PipelineError):
        await stored.generate(VideoRequest(prompt="Something else"), key=key)
    assert "**Was it paid?** No. Nothing was sent." in str((await artifact_of(key)).data)


async def test_run_without_its_blocks_reports_it_in_an_artifact(prefect_server: PrefectServer, key: str) -> None:
    with pytest.raises(PipelineError, match="sora setup"):
        await generate_video(KITE, key=key, api=f"no-{key}", archive=f"no-{key}")
    text = str((await artifact_of(key)).data)
    assert "**Was it paid?** No. Nothing was sent." in text
    assert "sora setup" in text


async def test_parameters_that_prefect_rejects_have_an_artifact_too(stored: StoredBlocks, key: str) -> None:
    with pytest.raises(ParameterTypeError):
        await stored.generate({"prompt": "x", "duration": 5}, key=key)  # type: ignore[arg-type] # a malformed event
    async with get_client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(like_="refused-"))
        texts = [str(item.data) for item in await client.read_artifacts(artifact_filter=wanted)]
    (text,) = [text for text in texts if key.replace("-", "\\-") in text]
    assert "duration" in text
    assert "**Was it paid?** No. Nothing was sent." in text


async def test_detached_run_has_an_artifact_until_its_video_is_archived(
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
