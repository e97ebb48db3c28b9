"""`sora batch` as a user runs it: a dry run, fixing errors in the calendar, paying, and running it again."""

import json

from openpyxl import Workbook

from deployments.sandbox import Fault, SandboxServer
from flows.record.keys import calendar_key
from tests.deployments.cli.sora import Sora
from tests.support import unique

VALID_CALENDAR = "id,prompt\nopening,Dunes at dawn\nending,Dunes at dawn\n"


def write_calendar(sora: Sora, text: str) -> str:
    """Writes a calendar to the folder in which the command runs, and returns its unique file name."""
    path = sora.folder / f"{unique('Spring Sale ')}.csv"
    path.write_text(text)
    return path.name


def test_calendar_is_dry_run_then_archived_and_rerun_pays_nothing(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    name = write_calendar(sora, VALID_CALENDAR)
    key = calendar_key(name)
    dry = sora("batch", name, "--dry-run", *blocks)
    assert dry.code == 0, dry.err
    assert "nothing was paid" in dry.err
    assert dry.out.count("ready") == 2
    assert sandbox.record.submits() == []
    archived = sora("batch", name, *blocks)
    assert archived.code == 0, archived.err
    for row in ("opening", "ending"):
        assert f"{key}-{row}/video.mp4" in archived.out
    assert "2 archived" in archived.err
    again = sora("batch", name, *blocks)
    assert again.code == 0, again.err
    assert len(sandbox.record.submits()) == 2


def test_bad_rows_are_reported_with_line_numbers_and_nothing_is_paid(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    name = write_calendar(sora, VALID_CALENDAR + "third,Dunes at dusk\n,\n")
    (sora.folder / name).write_text((sora.folder / name).read_text().replace("id,prompt", "id,prompts"))
    invalid_header = sora("batch", name, *blocks)
    assert invalid_header.code == 1
    assert "did you mean prompt?" in invalid_header.err
    (sora.folder / name).write_text("id,prompt,duration\na,Dunes,4\nb,Dunes,6\n")
    rejected = sora("batch", name, *blocks)
    assert rejected.code == 1
    assert "Traceback" not in rejected.all
    assert "line 3: duration: must be 4, 8 or 12" in rejected.err
    assert sandbox.record.submits() == []
    skipped = sora("batch", name, "--skip-bad-rows", "--no-wait", *blocks)
    assert skipped.code == 1
    assert "bad row" in skipped.out
    assert "submitted" in skipped.out
    assert len(sandbox.record.submits()) == 1


def test_failed_row_is_explained_and_other_rows_are_archived(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_400", prompt_contains="refused"))
    (sora.folder / "two.jsonl").write_text(
        json.dumps({"id": "a", "prompt": "refused"}) + "\n" + json.dumps({"id": "b", "prompt": "Dunes"}) + "\n"
    )
    result = sora("batch", "two.jsonl", "--key", key, *blocks)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert f"line 1 {key}-a (rejected)" in result.err
    assert "Invalid parameters" in result.err
    assert f"{key}-b/video.mp4" in result.out


def test_workbook_with_unknown_column_needs_sheet_and_ignore_columns_options(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    workbook = Workbook()
    workbook.create_sheet("May").append(["Prompt", "Owner"])
    workbook["May"].append(["Dunes at dawn", "Ann"])
    name = f"{unique('plan-')}.xlsx"
    workbook.save(sora.folder / name)
    for options, reported in ([], "--sheet"), (["--sheet", "May"], "--ignore-columns"):
        rejected = sora("batch", name, *options, *blocks)
        assert rejected.code == 1
        assert "Traceback" not in rejected.all
        assert reported in rejected.err.replace("\n", " ")
    dry = sora("batch", name, "--sheet", "May", "--ignore-columns", "--dry-run", *blocks)
    assert dry.code == 0, dry.err
    assert "Ignored columns: 'Owner'." in dry.err
    assert sandbox.record.submits() == []


def test_file_name_that_yields_no_key_requires_key_option(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    (sora.folder / "\u65e5\u7a0b.csv").write_text(VALID_CALENDAR)
    result = sora("batch", "\u65e5\u7a0b.csv", *blocks)
    assert result.code == 1
    assert "Traceback" not in result.all
    assert "--key" in result.err
    assert sandbox.record.submits() == []
