"""A content calendar in one run: every row ends as it should, nothing is paid twice, and money has a limit."""

import importlib
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterName
from prefect.runtime import flow_run

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from blocks.errors import StoreUnavailableError
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from flows.balance import BalanceError
from flows.batch.budget import BudgetError
from flows.batch.calendar_rows import BatchItem
from flows.batch.calendars import CalendarError
from flows.batch.limited_flow import TooManyRequestsError
from flows.batch.summary import BadRowsError, BatchFailedError, BatchSummary
from flows.collect_videos import collect_videos
from flows.generate_batch import generate_batch
from flows.generate_video import generate as generate_one
from flows.record.errors import PipelineError
from flows.record.generation import Generation
from flows.record.ledger import Entry, Ledger
from flows.record.run_keys import slug
from flows.resources import Resources
from flows.signals.artifacts import artifact_key
from flows.submission import Terms
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, make_archive
from tests.support.events import Sent

PRICE = Decimal("0.5")
MODULE = importlib.import_module("flows.batch_run")


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    """Patient: on a busy machine a claim of fifty at once grows old before it is sent, and then it is not."""
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
    """Rows of the same film: it is drawn once."""
    return [{"id": f"{number:02}", "prompt": "Dunes at dawn"} | fields for number in range(count)]


def states(summary: BatchSummary) -> dict[str, str]:
    return {row.key.rpartition("-")[2]: row.state for row in summary.rows}


async def table(key: str) -> list[dict[str, Any]]:
    async with get_client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(key, kind="batch")]))
        found = await client.read_artifacts(artifact_filter=wanted)
    newest = max(found, key=lambda item: item.created or 0)
    return list(json.loads(newest.data)) if isinstance(newest.data, str) else list(newest.data)  # type: ignore[arg-type]


async def test_every_row_is_a_video_and_the_table_shows_it(
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


async def test_with_a_public_url_the_table_links_to_the_videos(
    api: ApixoApi, minio: Any, prefect_server: PrefectServer, key: str
) -> None:
    stored = await store_blocks(api, make_archive(minio, public_url="https://videos.example.com"))
    summary = await run(stored, key, requests=rows(1))
    assert summary.rows[0].object_name is not None
    assert (await table(key))[0]["video"] == (
        f"[open](https://videos.example.com/{stored.archive.bucket}/{summary.rows[0].object_name})"
    )


@pytest.mark.parametrize("where", ["local", "bucket"])
async def test_a_calendar_is_read_from_disk_or_bucket(
    where: str, stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    text = "id;prompt;duration;aspect_ratio\nopening;Dunes at dawn;4;portrait\nlater;Dunes at dusk;;\n"
    if where == "local":
        (tmp_path / "may.csv").write_text(text)
        calendar = str(tmp_path / "may.csv")
    else:
        calendar = f"s3://{stored.archive.bucket}/calendars/may.csv"
        store = stored.archive.store()
        await store.put("calendars/may.csv", text.encode())
        await store.aclose()
    summary = await run(stored, key, calendar=calendar)
    assert {row.key: row.line for row in summary.rows} == {f"{key}-opening": 2, f"{key}-later": 3}
    bodies = [json.loads(item.body)["input"] for item in sandbox.record.submits()]
    assert sorted(body["aspect_ratio"] for body in bodies) == ["landscape", "portrait"]


BAD = 'id,prompt,duration\na,Dunes,4\nb,Dunes,5\n"c","Two\nlines",8\nd,,\na,Dunes again,4\n'


async def test_bad_rows_refuse_the_whole_file_and_each_is_named(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    calendar = tmp_path / "bad.csv"
    calendar.write_text(BAD)
    with pytest.raises(BadRowsError) as caught:
        await run(stored, key, calendar=str(calendar))
    told = str(caught.value)
    assert "3 row(s)" in told
    assert "line 3: duration: must be 4, 8 or 12" in told
    assert "line 6: prompt" in told
    assert "line 7: id: has the same id as line 2" in told
    assert "on_bad_rows" in told
    assert sandbox.record.submits() == []
    assert [(row["line"], row["state"]) for row in await table(key)] == [  # what needs a person comes first
        (3, "bad row"), (6, "bad row"), (7, "bad row"), (2, "not submitted"), (4, "not submitted"),
    ]  # fmt: skip


async def test_on_request_the_good_rows_go_on_and_the_run_still_fails(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    calendar = tmp_path / "bad.csv"
    calendar.write_text(BAD)
    summary = await failing(stored, key, calendar=str(calendar), on_bad_rows="skip")
    assert summary.counts == {"archived": 2, "bad row": 3}
    assert len(sandbox.record.submits()) == 2


async def test_bad_items_of_a_list_are_told_alike(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    items = [*rows(2), {"prompt": "Dunes", "duration": 5}, {"prompt": "Dunes", "seconds": 4}, "Dunes"]
    with pytest.raises(BadRowsError) as caught:
        await run(stored, key, requests=items)
    for told in ("line 3: duration", "line 4", "seconds", "line 5"):
        assert told in str(caught.value)
    assert sandbox.record.submits() == []
    summary = await failing(stored, key, requests=items, on_bad_rows="skip")
    assert summary.counts == {"archived": 2, "bad row": 3}


async def test_fifty_rows_of_which_five_fail_each_in_its_own_way_and_a_rerun_pays_only_what_it_may(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    bad: dict[str, dict[str, object]] = {
        "00": {"prompt": "a forbidden thing"},
        "10": {"prompt": "refused"},
        "20": {"prompt": "lost"},
        "30": {"prompt": "no image", "image_urls": [f"{sandbox.base_url}/samples/nothing.gif"]},
        "40": {"prompt": "Dunes", "duration": 7},
    }
    calendar = tmp_path / "fifty.jsonl"
    calendar.write_text("".join(json.dumps(row | bad.get(row["id"], {})) + "\n" for row in rows(50)))
    sandbox.faults.add(Fault(call="submit", kind="http_400", prompt_contains="refused"))
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    summary = await failing(stored, key, calendar=str(calendar), on_bad_rows="skip")
    assert summary.counts == {
        "archived": 45, "bad row": 1, "failed": 1, "not submitted": 1, "rejected": 1, "unconfirmed": 1,
    }  # fmt: skip
    assert len(sandbox.record.submits()) == 48
    explained = {row["line"]: row["what to do"] for row in await table(key) if row["state"] != "archived"}
    assert "CONTENT_VIOLATION" in explained[1]
    assert "Invalid parameters" in explained[11]
    assert f"sora resolve {key}-20 --task-id" in explained[21]
    assert "nothing.gif" in explained[31]
    assert "duration" in explained[41]
    # Paid: 45 videos, the one that failed and the one that may be; not the one refused.
    assert summary.price == 47 * 4 * PRICE

    again = await failing(stored, key, calendar=str(calendar), on_bad_rows="skip")
    assert again.counts == {"archived": 46, "bad row": 1, "failed": 1, "not submitted": 1, "unconfirmed": 1}
    assert [json.loads(item.body)["input"]["prompt"] for item in sandbox.record.submits()[48:]] == ["refused"]


async def test_a_dry_run_looks_at_everything_prices_it_and_spends_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    await run(stored, key, requests=[{"id": "done", "prompt": "Dunes"}, {"id": "other", "prompt": "Dunes"}])
    before = len(sandbox.record.submits())
    asked = [
        {"id": "done", "prompt": "Dunes"},
        {"id": "other", "prompt": "Something else"},
        {"id": "fresh", "prompt": "Dunes", "duration": 8},
        {"id": "image", "prompt": "Dunes", "image_urls": [f"{sandbox.base_url}/samples/harbor.jpg"]},
        {"id": "no-image", "prompt": "Dunes", "image_urls": [f"{sandbox.base_url}/samples/harbor.gif"]},
        {"id": "later", "prompt": "Dunes", "not_before": "2999-01-01"},
        {"id": "bad", "prompt": ""},
    ]
    summary = await failing(stored, key, requests=asked, dry_run=True)
    assert {row.line: row.state for row in summary.rows} == {
        1: "archived", 2: "not submitted", 3: "ready", 4: "ready", 5: "not submitted", 6: "not due", 7: "bad row",
    }  # fmt: skip
    assert "another request" in summary.rows[1].problem
    assert summary.dry_run
    assert summary.price == (8 + 4) * PRICE
    assert len(sandbox.record.submits()) == before
    assert len(sandbox.record.images()) >= 2
    good = await run(stored, key, requests=[asked[0], asked[2]], dry_run=True)
    assert good.price == 8 * PRICE
    assert len(sandbox.record.submits()) == before


async def test_a_dry_run_says_which_rows_a_run_would_not_pay_for_and_what_a_person_can_do(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    asked = [{"id": "lost", "prompt": "lost"}, {"id": "failed", "prompt": "a forbidden thing"}]
    await failing(stored, key, requests=asked)
    summary = await failing(stored, key, requests=[*asked, *rows(1)], dry_run=True)
    assert states(summary) == {"lost": "unconfirmed", "failed": "failed", "00": "ready"}
    assert f"sora resolve {key}-lost --task-id" in summary.rows[0].problem
    assert "CONTENT_VIOLATION" in summary.rows[1].problem
    assert summary.price == 4 * PRICE
    assert len(sandbox.record.submits()) == 2


async def test_a_row_that_meets_a_bug_does_not_take_the_others_with_it(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generate(
        request: VideoRequest, row_key: str, resources: Resources, terms: Terms, **options: Any
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


async def test_what_may_be_paid_counts_as_paid_while_the_ledger_cannot_be_read(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, away = Ledger.read, set[str]()

    async def read_or_not(ledger: Ledger, row_key: str) -> Entry | None:
        if row_key in away:
            raise StoreUnavailableError("the store is away")
        return await read(ledger, row_key)

    async def generate(
        request: VideoRequest, row_key: str, resources: Resources, terms: Terms, **options: Any
    ) -> Generation:
        made = await generate_one(request, row_key, resources, terms, **options)
        if row_key == f"{key}-01":
            away.add(row_key)
            raise StoreUnavailableError("the store is away")
        return made

    monkeypatch.setattr(Ledger, "read", read_or_not)
    monkeypatch.setattr(MODULE, "generate", generate)
    summary = await failing(stored, key)
    assert "cannot be read, so look again" in summary.failed[0].problem
    assert summary.price == 12 * PRICE
    monkeypatch.undo()
    assert (await run(stored, key)).counts == {"archived": 3}
    assert len(sandbox.record.submits()) == 3


async def test_a_dry_run_meets_a_wrong_key_before_anything_else_does(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="status", kind="http_401", times=-1))
    stored = await store_blocks(make_api(sandbox), archive)
    with pytest.raises(Exception, match="API key"):
        await run(stored, key, dry_run=True)
    assert sandbox.record.submits() == []


async def test_max_spend_stops_before_the_call_that_would_exceed_it(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    summary = await failing(stored, key, requests=rows(5), max_spend=7, max_in_flight=1)
    assert summary.counts == {"archived": 3, "not submitted": 2}
    assert summary.price == 12 * PRICE
    assert all("max_spend is 7" in row.problem for row in summary.failed)
    assert len(sandbox.record.submits()) == 3
    # What earlier runs paid counts.
    assert (await failing(stored, key, requests=rows(5), max_spend=7)).counts == summary.counts
    assert len(sandbox.record.submits()) == 3
    assert (await run(stored, key, requests=rows(5), max_spend=10)).counts == {"archived": 5}
    assert len(sandbox.record.submits()) == 5


async def test_a_refused_row_gives_its_money_back(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    summary = await failing(stored, key, requests=rows(3), max_spend=4, max_in_flight=1)
    assert summary.counts == {"archived": 2, "rejected": 1}
    assert summary.price == 8 * PRICE


async def test_at_a_ceiling_the_rest_of_a_batch_is_not_submitted_and_says_from_when_on_it_may_be(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    limited = make_api(sandbox, price_per_second=PRICE, max_spend_per_month=Decimal(7), submit_timeout_seconds=20)
    stored = await store_blocks(limited, archive)
    summary = await failing(stored, key, requests=rows(5))
    assert summary.counts == {"archived": 3, "not submitted": 2}
    assert len(sandbox.record.submits()) == 3
    assert summary.blocked is not None
    assert re.match(r"max_spend_per_month is 7.* Run it again from \d{4}-\d\d-01 00:00 UTC on", summary.blocked)
    store = archive.store()
    try:
        (entry,) = [
            entry
            for entry in await Ledger(store).read_all([row.key for row in summary.rows if row.task_id][:1])
            if entry
        ]
        month = await Ledger(store).spend.read(f"{entry.generation.attempt.claimed_at:%Y-%m}")
    finally:
        await store.aclose()
    assert (entry.generation.attempt.batch, entry.generation.attempt.price) == (key, 4 * PRICE)
    assert month is not None
    assert (month.spent_in(), month.reservations) == (12 * PRICE, {})  # what the others had reserved is given back


async def test_a_ceiling_without_a_price_is_refused_before_the_first_row(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    stored = await store_blocks(make_api(sandbox, max_spend_per_day=Decimal(1)), archive)
    with pytest.raises(BudgetError, match=r"max_spend_per_day and max_spend_per_month need the price of sora-2"):
        await run(stored, key)
    assert sandbox.record.submits() == []


async def test_a_balance_that_is_too_low_is_a_warning_or_an_error_where_it_is_required(
    archive: VideoArchive, prefect_server: PrefectServer, key: str, films: Path, sent: Sent
) -> None:
    with SandboxServer(SandboxSettings(speed=600, video_height=90, data_dir=films, balance=3)) as sandbox:
        fields = {"price_per_second": PRICE, "submit_timeout_seconds": 20, "balance_warning_below": 5}
        stored = await store_blocks(make_api(sandbox, **fields), archive)
        strict = await store_blocks(make_api(sandbox, **fields, require_balance=True), archive)
        with pytest.raises(BalanceError, match=r"has 3.00 USD left, and the videos of this batch cost 6\.0\."):
            await run(strict, key, requests=rows(3))
        assert sandbox.record.submits() == []
        summary = await run(stored, key, requests=rows(3))
        assert summary.counts == {"archived": 3}
        assert summary.notes == ["The APIXO account has 3.00 USD left, and the videos of this batch cost 6.0."]
        low = [event for event in sent.all() if event.event == "sora.balance.low"]
        assert [event.payload["balance"] for event in low] == ["3.0", "3.0"]


async def test_max_spend_without_a_price_is_refused(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    stored = await store_blocks(make_api(sandbox), archive)
    with pytest.raises(BudgetError, match="price_per_second"):
        await run(stored, key, max_spend=1)
    assert sandbox.record.submits() == []


async def test_a_wrong_api_key_is_tried_once_not_for_every_row(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_401", times=-1))
    summary = await failing(stored, key, requests=rows(6), max_in_flight=1)
    assert summary.counts == {"not submitted": 5, "rejected": 1}
    assert summary.price == 0
    assert len(sandbox.record.submits()) == 1


STOPPED = {
    False: "^The rest of the batch was not submitted: APIXO refused",
    True: "^The rest of the batch was not submitted: APIXO does not offer sora-2,",
}


@pytest.mark.parametrize("kind", ["http_400_credits", "http_400_model", "http_402", "http_403", "http_404"])
async def test_an_account_that_empties_stops_the_batch_and_says_so_first(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str, sent: Sent
) -> None:
    """What is under way comes home; nothing is unconfirmed; the next run asks anew."""
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "skip": 2, "times": -1}))
    with pytest.raises(BatchFailedError, match=STOPPED[kind in ("http_404", "http_400_model")]) as caught:
        await run(stored, key, requests=rows(6), max_in_flight=1)
    summary = caught.value.summary
    assert summary.counts == {"archived": 2, "not submitted": 3, "rejected": 1}
    assert len(sandbox.record.submits()) == 3
    (blocked,) = [event for event in sent.all() if event.event == "sora.provider.blocked"]
    assert (blocked.payload["batch"], blocked.payload["code"]) == (key, kind.split("_")[1])
    sandbox.faults.clear()
    again = await run(stored, key, requests=rows(6))
    assert again.counts == {"archived": 6}
    assert len(sandbox.record.charged()) == 6


async def test_what_is_not_due_is_left_and_is_no_failure(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    asked = [*rows(1, not_before="2020-01-01"), {"prompt": "Dunes", "not_before": "2999-12-31"}]
    summary = await run(stored, key, requests=asked)
    assert summary.counts == {"archived": 1, "not due": 1}
    assert len(sandbox.record.submits()) == 1


async def test_rows_may_be_added_and_moved_without_paying_for_the_others_again(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    asked = [{"prompt": f"Dunes {number}"} for number in range(3)]
    await run(stored, key, requests=asked)
    await run(stored, key, requests=[{"prompt": "Dunes, new"}, *reversed(asked)])
    assert len(sandbox.record.submits()) == 4


async def test_at_most_so_many_are_under_way_at_once(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    await run(stored, key, requests=rows(8), max_in_flight=3)
    tasks = sandbox.tasks.all()
    most = max(
        sum(other.created_at <= task.created_at < (other.completed_at or 0) for other in tasks) for task in tasks
    )
    assert 1 < most <= 3


async def test_submissions_are_ramped(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    await run(stored, key, requests=rows(6), submissions_per_second=4, wait=False)
    times = [item.time for item in sandbox.record.submits()]
    assert times[-1] - times[0] >= 0.9


async def test_a_detached_batch_ends_after_the_last_submission_and_the_collector_brings_all_home(
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


@pytest.mark.parametrize("parameters", [{"requests": None}, {"requests": rows(1), "calendar": "a.csv"}])
async def test_either_a_list_or_a_calendar(parameters: dict[str, Any], stored: StoredBlocks, key: str) -> None:
    with pytest.raises(PipelineError, match="either requests or a calendar"):
        await run(stored, key, **parameters)


async def test_a_calendar_that_is_not_there_says_so(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    with pytest.raises(CalendarError, match="no-such"):
        await run(stored, key, calendar="/no-such/calendar.csv")
    assert sandbox.record.submits() == []


async def test_a_key_that_would_be_too_long_is_a_bad_row(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(BadRowsError, match="line 1: id"):
        await run(stored, "k" * 120, requests=[{"id": "longer-than-that", "prompt": "Dunes"}])
    assert sandbox.record.submits() == []


async def test_a_calendar_without_a_key_is_the_same_batch_in_every_run(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    for folder in ("worker-1", "worker-2"):
        (tmp_path / folder).mkdir()
        calendar = tmp_path / folder / f"{key.title()}.csv"
        calendar.write_text("id,prompt\na,Dunes at dawn\n")
        await generate_batch(calendar=str(calendar), api=stored.name, archive=stored.name)
    assert len(sandbox.record.submits()) == 1
    assert await stored.recorded(f"{key}-a") is not None
    async with get_client() as client:
        named = await client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=key)))
    assert {run.name for run in named if run.name.startswith("generate batch")} == {f"generate batch {key}"}


async def test_requests_without_a_key_are_paid_once_when_an_outer_flow_is_retried(
    stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    runs: list[str] = []

    @flow
    async def between() -> None:
        items = [BatchItem.model_validate(row) for row in rows(2)]
        await generate_batch(requests=items, api=stored.name, archive=stored.name, submissions_per_second=50)

    @flow(retries=1)
    async def outer() -> None:
        runs.append(str(flow_run.id))
        await between()
        if len(runs) == 1:
            raise RuntimeError("lost after the batch was paid")

    await outer()
    assert len(runs) == 2
    assert len(sandbox.record.submits()) == 2
    for row in rows(2):
        assert await stored.recorded(f"{slug(rows(1)[0]['prompt'], most=27)}-{row['id']}") is not None


async def test_more_requests_than_prefect_takes_are_named_with_what_to_do(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    many = [{"id": f"{number}", "prompt": "Dünen " * 1_000} for number in range(80)]
    with pytest.raises(TooManyRequestsError, match=r"Prefect takes 524,288\. Nothing was submitted.*s3://") as refused:
        await run(stored, key, requests=many)
    assert len(str(refused.value)) < 600

    @flow
    async def outer() -> None:
        await run(stored, key, requests=many)

    with pytest.raises(TooManyRequestsError):
        await outer()
    assert sandbox.record.submits() == []
    assert (await run(stored, key, requests=[*rows(1), *many[:40]], dry_run=True)).counts == {"ready": 41}


async def test_a_sheet_of_a_workbook_and_what_was_left_out_of_it(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workbook = Workbook()
    plan = workbook.create_sheet("May")
    for row in (["Prompt", "Duration", "Owner", "#note"], ["Dunes at dawn", 4, "Ann", "?"]):
        plan.append(row)
    calendar = tmp_path / "plan.xlsx"
    workbook.save(calendar)
    with pytest.raises(CalendarError, match=r"has 2 sheets: 'Sheet', 'May'"):
        await run(stored, key, calendar=str(calendar))
    with pytest.raises(CalendarError, match=r"'Owner' is not a column"):
        await run(stored, key, calendar=str(calendar), sheet="May")
    assert sandbox.record.submits() == []
    summary = await run(stored, key, calendar=str(calendar), sheet="May", ignore_columns=True)
    assert summary.counts == {"archived": 1}
    assert summary.notes == ["Read the sheet 'May', not 'Sheet'.", "Ignored columns: 'Owner', '#note'."]
    for note in summary.notes:
        assert note in caplog.text


@pytest.mark.parametrize("row_id", [None, "two-shots"])
async def test_a_row_that_was_submitted_with_crlf_is_known_however_its_file_is_saved_now(
    row_id: str | None, stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    """Line ends inside cells were kept as they were once, and went into the key."""
    earlier = BatchItem(prompt="Shot 1: dunes\nShot 2: kite", id=row_id).with_crlf()
    await stored.generate(earlier.request(), key=earlier.key(key))
    text = f'id,prompt\n{row_id or ""},"Shot 1: dunes\nShot 2: kite"\n'
    for line_end in ("\r\n", "\n"):
        calendar = tmp_path / "plan.csv"
        calendar.write_bytes(text.replace("\n", line_end).encode())
        summary = await run(stored, key, calendar=str(calendar))
        assert [(row.key, row.state) for row in summary.rows] == [(earlier.key(key), "archived")]
    assert len(sandbox.record.submits()) == 1


async def test_one_file_with_crlf_and_with_lf_is_paid_once(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    text = 'prompt,duration\n"Shot 1: dunes\nShot 2: kite",4\n'
    for number, line_end in enumerate(("\r\n", "\n", "\r")):
        calendar = tmp_path / f"{number}.csv"
        calendar.write_bytes(text.replace("\n", line_end).encode())
        assert (await run(stored, key, calendar=str(calendar))).counts == {"archived": 1}
    (sent,) = sandbox.record.submits()
    assert json.loads(sent.body)["input"]["prompt"] == "Shot 1: dunes\nShot 2: kite"
