"""A batch's calendar: where it is read from, which rows are rejected, and what identifies a row."""

import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

from blocks import ApixoApi
from deployments.sandbox import SandboxServer
from flows.batch.calendar_rows import BatchItem
from flows.batch.summary import BadRowsError
from flows.batch.tables import CalendarError
from flows.generate_batch import generate_batch
from flows.record.pipeline_errors import PipelineError
from tests.flows.batches import failing, patient_api, rows, run, table
from tests.flows.conftest import StoredBlocks


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    return patient_api(sandbox)


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
        async with aclosing(stored.archive.store()) as store:
            await store.put("calendars/may.csv", text.encode())
    summary = await run(stored, key, calendar=calendar)
    assert {row.key: row.line for row in summary.rows} == {f"{key}-opening": 2, f"{key}-later": 3}
    bodies = [json.loads(item.body)["input"] for item in sandbox.record.submits()]
    assert sorted(body["aspect_ratio"] for body in bodies) == ["landscape", "portrait"]


CALENDAR_WITH_BAD_ROWS = 'id,prompt,duration\na,Dunes,4\nb,Dunes,5\n"c","Two\nlines",8\nd,,\na,Dunes again,4\n'


async def test_bad_rows_reject_the_whole_calendar_and_are_each_reported(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    calendar = tmp_path / "bad.csv"
    calendar.write_text(CALENDAR_WITH_BAD_ROWS)
    with pytest.raises(BadRowsError) as caught:
        await run(stored, key, calendar=str(calendar))
    reported = str(caught.value)
    assert "3 rows" in reported
    assert "line 3: duration: must be 4, 8 or 12" in reported
    assert "line 6: prompt" in reported
    assert "line 7: id: has the same id as line 2" in reported
    assert "on_bad_rows" in reported
    assert sandbox.record.submits() == []
    assert [(row["line"], row["state"]) for row in await table(key)] == [  # rows that need attention come first
        (3, "bad row"), (6, "bad row"), (7, "bad row"), (2, "not submitted"), (4, "not submitted"),
    ]  # fmt: skip


async def test_skipping_bad_rows_generates_the_good_ones_and_still_fails_the_run(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    calendar = tmp_path / "bad.csv"
    calendar.write_text(CALENDAR_WITH_BAD_ROWS)
    summary = await failing(stored, key, calendar=str(calendar), on_bad_rows="skip")
    assert summary.counts == {"archived": 2, "bad row": 3}
    assert len(sandbox.record.submits()) == 2


async def test_bad_items_of_a_request_list_are_reported_like_bad_rows(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    items = [*rows(2), {"prompt": "Dunes", "duration": 5}, {"prompt": "Dunes", "seconds": 4}, "Dunes"]
    with pytest.raises(BadRowsError) as caught:
        await run(stored, key, requests=items)
    for reported in ("line 3: duration", "line 4", "seconds", "line 5"):
        assert reported in str(caught.value)
    assert sandbox.record.submits() == []
    summary = await failing(stored, key, requests=items, on_bad_rows="skip")
    assert summary.counts == {"archived": 2, "bad row": 3}


@pytest.mark.parametrize("parameters", [{"requests": None}, {"requests": rows(1), "calendar": "a.csv"}])
async def test_batch_takes_either_requests_or_a_calendar(
    parameters: dict[str, Any], stored: StoredBlocks, key: str
) -> None:
    with pytest.raises(PipelineError, match="either requests or a calendar"):
        await run(stored, key, **parameters)


async def test_missing_calendar_raises_error_with_its_path(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(CalendarError, match="no-such"):
        await run(stored, key, calendar="/no-such/calendar.csv")
    assert sandbox.record.submits() == []


async def test_row_whose_key_would_be_too_long_is_a_bad_row(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(BadRowsError, match="line 1: id"):
        await run(stored, "k" * 120, requests=[{"id": "longer-than-that", "prompt": "Dunes"}])
    assert sandbox.record.submits() == []


async def test_calendar_without_a_key_uses_its_file_name_as_key(
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


async def test_workbook_sheet_is_selected_and_ignored_parts_are_reported(
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
async def test_row_submitted_with_crlf_is_recognized_with_any_line_ending(
    row_id: str | None, stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    """An earlier version kept the line endings inside cells, and they became part of the key."""
    earlier = BatchItem(prompt="Shot 1: dunes\nShot 2: kite", id=row_id).with_crlf()
    await stored.generate(earlier.request(), key=earlier.key(key))
    text = f'id,prompt\n{row_id or ""},"Shot 1: dunes\nShot 2: kite"\n'
    for line_end in ("\r\n", "\n"):
        calendar = tmp_path / "plan.csv"
        calendar.write_bytes(text.replace("\n", line_end).encode())
        summary = await run(stored, key, calendar=str(calendar))
        assert [(row.key, row.state) for row in summary.rows] == [(earlier.key(key), "archived")]
    assert len(sandbox.record.submits()) == 1


async def test_same_file_with_different_line_endings_is_paid_once(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, tmp_path: Path
) -> None:
    text = 'prompt,duration\n"Shot 1: dunes\nShot 2: kite",4\n'
    for number, line_end in enumerate(("\r\n", "\n", "\r")):
        calendar = tmp_path / f"{number}.csv"
        calendar.write_bytes(text.replace("\n", line_end).encode())
        assert (await run(stored, key, calendar=str(calendar))).counts == {"archived": 1}
    (sent,) = sandbox.record.submits()
    assert json.loads(sent.body)["input"]["prompt"] == "Shot 1: dunes\nShot 2: kite"
