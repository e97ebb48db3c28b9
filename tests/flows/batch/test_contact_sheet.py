"""The text of a batch's contact sheet."""

import re

from flows.batch.contact_sheet import LINE_CHARACTERS, MOST_ROWS, sheet
from flows.batch.summary import BatchRow, summarize


def rows() -> list[BatchRow]:
    return [
        BatchRow(
            line=1, key="may-a_1", state="archived", prompt="Dunes <b>|" + " wide" * 60, link="https://v.example/a"
        ),
        BatchRow(line=2, key="may-b", state="failed", prompt="Harbor", problem="may-b: Do this, " + "then that, " * 9),
        BatchRow(line=3, key="", state="bad row", problem="duration: must be 4"),
    ]


def test_rows_needing_attention_come_first_and_lines_fit_the_page() -> None:
    text = sheet(summarize("may", rows(), price=None, spent_before=None), {"may-a_1": b"jpeg"})
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [re.findall(r"may-b|line 3|may-a_1", line)[0] for line in lines] == ["may-b", "line 3", "may-a_1"]
    assert "[may-a_1](https://v.example/a)" in text
    assert "<b>" not in text
    for cell in (cell for line in lines for cell in re.sub(r"!?\[\]\(data[^)]*\)", "", line).split(" | ")):
        for part in cell.split("<br>"):
            shown = re.sub(r"\]\([^)]*\)", "", part).replace("\\", "").replace("&lt;", "<").replace("&gt;", ">")
            assert len(shown.strip("| *[")) <= LINE_CHARACTERS + 6


def test_dry_run_has_no_pictures_and_huge_batch_counts_omitted_rows() -> None:
    many = [BatchRow(line=line, key=f"may-{line}", state="ready") for line in range(1, MOST_ROWS + 6)]
    text = sheet(summarize("may", many, price=None, spent_before=None, dry_run=True), {})
    assert text.startswith("# Dry run of may")
    assert "picture" not in text
    assert "5 more rows" in text
