"""`sora batch` as a person runs it: a dry run, see what is wrong, pay, run it again."""

import json

from openpyxl import Workbook

from deployments.sandbox import Fault, SandboxServer
from flows.record.keys import calendar_key
from tests.deployments.cli.sora import Sora
from tests.support import unique

GOOD = "id,prompt\nopening,Dunes at dawn\nending,Dunes at dawn\n"


def calendar(sora: Sora, text: str) -> str:
    """A calendar in the folder where the command runs; its name, which nobody else uses."""
    path = sora.folder / f"{unique('Spring Sale ')}.csv"
    path.write_text(text)
    return path.name


def test_a_calendar_from_the_dry_run_to_the_videos_and_once_more(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    name = calendar(sora, GOOD)
    key = calendar_key(name)
    dry = sora("batch", name, "--dry-run", *blocks)
    assert dry.code == 0, dry.err
    assert "nothing was paid" in dry.err
    assert dry.out.count("ready") == 2
    assert sandbox.record.submits() == []
    made = sora("batch", name, *blocks)
    assert made.code == 0, made.err
    for row in ("opening", "ending"):
        assert f"{key}-{row}/video.mp4" in made.out
    assert "2 archived" in made.err
    again = sora("batch", name, *blocks)
    assert again.code == 0, again.err
    assert len(sandbox.record.submits()) == 2


def test_bad_rows_are_shown_with_their_lines_and_nothing_is_paid(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    name = calendar(sora, GOOD + "third,Dunes at dusk\n,\n")
    (sora.folder / name).write_text((sora.folder / name).read_text().replace("id,prompt", "id,prompts"))
    unread = sora("batch", name, *blocks)
    assert unread.code == 1
    assert "did you mean prompt?" in unread.err
    (sora.folder / name).write_text("id,prompt,duration\na,Dunes,4\nb,Dunes,6\n")
    refused = sora("batch", name, *blocks)
    assert refused.code == 1
    assert "Traceback" not in refused.all
    assert "line 3: duration: must be 4, 8 or 12" in refused.err
    assert sandbox.record.submits() == []
    skipped = sora("batch", name, "--skip-bad-rows", "--no-wait", *blocks)
    assert skipped.code == 1
    assert "bad row" in skipped.out
    assert "submitted" in skipped.out
    assert len(sandbox.record.submits()) == 1


def test_a_row_that_fails_is_explained_and_the_others_are_made(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_400", prompt_contains="refused"))
    (sora.folder / "two.jsonl").write_text(
        json.dumps({"id": "a", "prompt": "refused"}) + "\n" + json.dumps({"id": "b", "prompt": "Dunes"}) + "\n"
    )
    said = sora("batch", "two.jsonl", "--key", key, *blocks)
    assert said.code == 1
    assert "Traceback" not in said.all
    assert f"line 1 {key}-a (rejected)" in said.err
    assert "Invalid parameters" in said.err
    assert f"{key}-b/video.mp4" in said.out


def test_a_workbook_with_a_column_of_its_owners_needs_both_options(
    sora: Sora, blocks: list[str], sandbox: SandboxServer
) -> None:
    workbook = Workbook()
    workbook.create_sheet("May").append(["Prompt", "Owner"])
    workbook["May"].append(["Dunes at dawn", "Ann"])
    name = f"{unique('plan-')}.xlsx"
    workbook.save(sora.folder / name)
    for options, reported in ([], "--sheet"), (["--sheet", "May"], "--ignore-columns"):
        refused = sora("batch", name, *options, *blocks)
        assert refused.code == 1
        assert "Traceback" not in refused.all
        assert reported in refused.err.replace("\n", " ")
    dry = sora("batch", name, "--sheet", "May", "--ignore-columns", "--dry-run", *blocks)
    assert dry.code == 0, dry.err
    assert "Ignored columns: 'Owner'." in dry.err
    assert sandbox.record.submits() == []


def test_a_file_name_that_makes_no_key_asks_for_one(sora: Sora, blocks: list[str], sandbox: SandboxServer) -> None:
    (sora.folder / "\u65e5\u7a0b.csv").write_text(GOOD)
    said = sora("batch", "\u65e5\u7a0b.csv", *blocks)
    assert said.code == 1
    assert "Traceback" not in said.all
    assert "--key" in said.err
    assert sandbox.record.submits() == []
