"""A content calendar in one run: every row reaches its proper end, nothing is paid twice, and spending is limited."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.runtime import flow_run

from apixo import VideoRequest
from blocks import ApixoApi
from blocks.store_errors import StoreUnavailableError
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from flows import shard_runs
from flows.batch.calendar_rows import BatchItem
from flows.batch.limited_flow import TooManyRequestsError
from flows.collect_videos import collect_videos
from flows.generate_batch import generate_batch
from flows.generate_video import generate as generate_one
from flows.record.generation import Generation
from flows.record.ledger import Entry, Ledger
from flows.record.pipeline_errors import PipelineError
from flows.record.run_keys import slug
from flows.resources import PayingResources
from flows.signals.artifacts import artifact_key
from flows.submission import Terms
from tests.flows.batches import PRICE, failing, patient_api, rows, run, states, table
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_archive

MODULE = importlib.import_module("flows.batch_run")


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    return patient_api(sandbox)


async def test_every_row_is_archived_and_listed_in_the_table(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    summary = await run(stored, key)
    assert states(summary) == {"00": "archived", "01": "archived", "02": "archived"}
    assert summary.counts == {"archived": 3}
    assert summary.seconds_of_video == 12
    assert summary.price == 12 * PRICE
    assert summary.spent_before == 0
    shown = await table(key)
    assert [(row["line"], row["key"], row["state"]) for row in shown] == [
        (number, f"{key}-{number - 1:02}", "archived") for number in (1, 2, 3)
    ]
    for row in shown:
        assert str(row["video"]).endswith(f"/artifacts/key/{artifact_key(row['key'])})"), row
    again = await run(stored, key)
    assert again.price == 0
    assert again.spent_before == 12 * PRICE
    assert len(sandbox.record.submits()) == 3


async def test_table_links_to_the_videos_with_a_public_url(
    api: ApixoApi, minio: Any, prefect_server: PrefectServer, key: str
) -> None:
    stored = await store_blocks(api, make_archive(minio, public_url="https://videos.example.com"))
    summary = await run(stored, key, requests=rows(1))
    assert summary.rows[0].object_name is not None
    assert (await table(key))[0]["video"] == (
        f"[open](https://videos.example.com/{stored.archive.bucket}/{summary.rows[0].object_name})"
    )


async def test_rows_fail_in_different_ways_and_a_rerun_submits_only_the_rejected_one(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    bad: dict[str, dict[str, object]] = {
        "00": {"prompt": "a forbidden thing"},
        "02": {"prompt": "refused"},
        "04": {"prompt": "lost"},
        "06": {"prompt": "no image", "image_urls": [f"{sandbox.base_url}/samples/nothing.gif"]},
        "08": {"prompt": "Dunes", "duration": 7},
    }
    calendar = tmp_path / "ten.jsonl"
    calendar.write_text("".join(json.dumps(row | bad.get(row["id"], {})) + "\n" for row in rows(10)))
    sandbox.faults.add(Fault(call="submit", kind="http_400", prompt_contains="refused"))
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    summary = await failing(stored, key, calendar=str(calendar), on_bad_rows="skip")
    assert summary.counts == {
        "archived": 5, "bad row": 1, "failed": 1, "not submitted": 1, "rejected": 1, "unconfirmed": 1,
    }  # fmt: skip
    assert len(sandbox.record.submits()) == 8
    explained = {row["line"]: row["what to do"] for row in await table(key) if row["state"] != "archived"}
    assert "CONTENT_VIOLATION" in explained[1]
    assert "Invalid parameters" in explained[3]
    assert f"sora resolve {key}-04 --task-id" in explained[5]
    assert "nothing.gif" in explained[7]
    assert "duration" in explained[9]
    # Paid: the 5 videos, the failed one, and the unconfirmed one, which may be paid; not the rejected one.
    assert summary.price == 7 * 4 * PRICE

    again = await failing(stored, key, calendar=str(calendar), on_bad_rows="skip")
    assert again.counts == {"archived": 6, "bad row": 1, "failed": 1, "not submitted": 1, "unconfirmed": 1}
    assert [json.loads(item.body)["input"]["prompt"] for item in sandbox.record.submits()[8:]] == ["refused"]


async def test_unexpected_error_in_one_row_does_not_stop_the_others(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(
        request: VideoRequest, row_key: str, resources: PayingResources, terms: Terms, **options: Any
    ) -> Generation:
        if row_key == f"{key}-01":
            raise ZeroDivisionError("nobody foresaw this")
        return await generate_one(request, row_key, resources, terms, **options)

    monkeypatch.setattr(MODULE, "generate", generate)
    summary = await failing(stored, key)
    assert states(summary) == {"00": "archived", "01": "not submitted", "02": "archived"}
    assert "nobody foresaw this" in summary.failed[0].problem
    assert len(sandbox.record.submits()) == 2
    monkeypatch.undo()
    assert (await run(stored, key)).counts == {"archived": 3}
    assert len(sandbox.record.submits()) == 3


async def test_row_with_an_unreadable_record_counts_as_paid(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, unreadable = Ledger.read, set[str]()

    async def read_or_not(ledger: Ledger, row_key: str) -> Entry | None:
        if row_key in unreadable:
            raise StoreUnavailableError("the store is unavailable")
        return await read(ledger, row_key)

    async def generate(
        request: VideoRequest, row_key: str, resources: PayingResources, terms: Terms, **options: Any
    ) -> Generation:
        made = await generate_one(request, row_key, resources, terms, **options)
        if row_key == f"{key}-01":
            unreadable.add(row_key)
            raise StoreUnavailableError("the store is unavailable")
        return made

    monkeypatch.setattr(Ledger, "read", read_or_not)
    monkeypatch.setattr(MODULE, "generate", generate)
    summary = await failing(stored, key)
    assert "cannot be read, so check again" in summary.failed[0].problem
    assert summary.price == 12 * PRICE
    monkeypatch.undo()
    assert (await run(stored, key)).counts == {"archived": 3}
    assert len(sandbox.record.submits()) == 3


async def test_rows_not_yet_due_are_skipped_without_failing_the_run(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    requested = [*rows(1, not_before="2020-01-01"), {"prompt": "Dunes", "not_before": "2999-12-31"}]
    summary = await run(stored, key, requests=requested)
    assert summary.counts == {"archived": 1, "not due": 1}
    assert len(sandbox.record.submits()) == 1


async def test_rows_may_be_added_and_moved_without_paying_for_the_others_again(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    requested = [{"prompt": f"Dunes {number}"} for number in range(3)]
    await run(stored, key, requests=requested)
    await run(stored, key, requests=[{"prompt": "Dunes, new"}, *reversed(requested)])
    assert len(sandbox.record.submits()) == 4


async def test_max_in_flight_limits_concurrent_tasks(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    await run(stored, key, requests=rows(8), max_in_flight=3)
    tasks = sandbox.tasks.all()
    most = max(
        sum(other.created_at <= task.created_at < (other.completed_at or 0) for other in tasks) for task in tasks
    )
    assert 1 < most <= 3


async def test_submissions_per_second_are_limited(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    await run(stored, key, requests=rows(6), submissions_per_second=4, wait=False)
    times = [item.time for item in sandbox.record.submits()]
    assert times[-1] - times[0] >= 0.9


async def test_detached_batch_ends_after_submitting_and_the_collector_archives_all(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="status", kind="unknown_state", times=5))
    summary = await run(stored, key, requests=rows(5), wait=False)
    assert summary.counts == {"submitted": 5}
    assert sandbox.record.statuses() == []
    left = {row.key for row in summary.rows}
    while left:
        found = await collect_videos(api=stored.name, archive=stored.name)
        left -= {item.key for item in found if item.what == "archived"}
    assert len(sandbox.record.submits()) == 5


async def test_requests_without_a_key_are_paid_once_when_an_outer_flow_is_retried(
    stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    runs: list[str] = []

    @flow
    async def inner() -> None:
        items = [BatchItem.model_validate(row) for row in rows(2)]
        await generate_batch(requests=items, api=stored.name, archive=stored.name, submissions_per_second=50)

    @flow(retries=1)
    async def outer() -> None:
        runs.append(str(flow_run.id))
        await inner()
        if len(runs) == 1:
            raise RuntimeError("lost after the batch was paid")

    await outer()
    assert len(runs) == 2
    assert len(sandbox.record.submits()) == 2
    for row in rows(2):
        assert await stored.recorded(f"{slug(rows(1)[0]['prompt'], most=27)}-{row['id']}") is not None


async def test_nothing_is_submitted_without_the_shard_deployment(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests in this process may have deployed the usual one.
    monkeypatch.setattr(shard_runs, "DEPLOYMENT", f"generate-shard/{key}")
    with pytest.raises(PipelineError, match=f"Shards need the deployment generate-shard/{key}.*sora deploy"):
        await run(stored, key, requests=rows(2), shards=2)
    assert sandbox.record.submits() == []


async def test_more_requests_than_prefect_accepts_raise_error_with_the_fix(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    too_many = [{"id": f"{number}", "prompt": "Dünen " * 1_000} for number in range(80)]
    with pytest.raises(TooManyRequestsError, match=r"Prefect accepts 524,288\. Nothing was sub.*s3://") as refused:
        await run(stored, key, requests=too_many)
    assert len(str(refused.value)) < 600

    @flow
    async def outer() -> None:
        await run(stored, key, requests=too_many)

    with pytest.raises(TooManyRequestsError):
        await outer()
    assert sandbox.record.submits() == []
    assert (await run(stored, key, requests=[*rows(1), *too_many[:40]], dry_run=True)).counts == {"ready": 41}
