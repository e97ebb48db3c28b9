"""Runs batches with stored blocks, and reads the states of their rows."""

import json
from decimal import Decimal
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from blocks import ApixoApi
from deployments.sandbox import SandboxServer
from flows.batch.summary import BatchFailedError, BatchSummary
from flows.generate_batch import generate_batch
from flows.signals.artifacts import artifact_key
from tests.flows.conftest import StoredBlocks
from tests.support import make_api

PRICE = Decimal("0.5")


def patient_api(sandbox: SandboxServer) -> ApixoApi:
    """Has a long submit timeout: on a busy machine, some of many concurrent claims would otherwise expire."""
    return make_api(sandbox, price_per_second=PRICE, submit_timeout_seconds=20)


async def run(stored: StoredBlocks, key: str, **parameters: Any) -> BatchSummary:
    if "calendar" not in parameters:
        parameters.setdefault("requests", rows(3))
    made = await generate_batch(
        key=key, api=stored.name, archive=stored.name, **({"submissions_per_second": 50} | parameters)
    )
    assert isinstance(made, BatchSummary)
    return made


async def failing(stored: StoredBlocks, key: str, **parameters: Any) -> BatchSummary:
    with pytest.raises(BatchFailedError) as caught:
        await run(stored, key, **parameters)
    return caught.value.summary


def rows(count: int, **fields: object) -> list[dict[str, Any]]:
    """Rows of the same video, so that the sandbox renders it only once."""
    return [{"id": f"{number:02}", "prompt": "Dunes at dawn"} | fields for number in range(count)]


def states(summary: BatchSummary) -> dict[str, str]:
    return {row.key.rpartition("-")[2]: row.state for row in summary.rows}


async def table(key: str) -> list[dict[str, Any]]:
    async with get_client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(key, kind="batch")]))
        found = await client.read_artifacts(artifact_filter=wanted)
    newest = max(found, key=lambda item: item.created or 0)
    return list(json.loads(newest.data)) if isinstance(newest.data, str) else list(newest.data)  # type: ignore[arg-type]
