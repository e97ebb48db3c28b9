"""How a batch is summarized: counts, sentences, errors and the table."""

from decimal import Decimal
from typing import Any

import pytest

from flows.batch.calendar_rows import BadRow, RowProblem
from flows.batch.summary import SHOWN, BatchRow, bad_rows_error, batch_error, summarize, table


def row(line: int, state: Any = "archived", **fields: Any) -> BatchRow:
    return BatchRow(line=line, key=f"may-{line}", state=state, duration_seconds=4, **fields)


def test_rows_are_sorted_by_line_and_failed_rows_add_no_seconds_of_video() -> None:
    rows = [row(3), row(1, "submitted"), row(2, "failed", problem="no"), row(4, "not due"), row(5, "ready")]
    summary = summarize("may", rows, price=Decimal("1.20"), spent_before=Decimal(0))
    assert [item.line for item in summary.rows] == [1, 2, 3, 4, 5]
    assert summary.counts == {"archived": 1, "failed": 1, "not due": 1, "ready": 1, "submitted": 1}
    assert summary.seconds_of_video == 12
    assert [item.line for item in summary.failed] == [2]
    assert summary.sentence() == (
        "5 rows: 1 archived, 1 failed, 1 not due, 1 ready, 1 submitted; 12 s of video, paid 1.20."
    )


def test_dry_run_reports_cost_and_does_not_mention_new_run() -> None:
    summary = summarize(
        "may", [row(1, "not submitted", problem="no")], price=Decimal(2), spent_before=None, dry_run=True
    )
    assert "would pay 2" in summary.sentence()
    assert "A new run" not in str(batch_error(summary))


def test_summary_without_price_mentions_no_payment() -> None:
    assert "pa" not in summarize("may", [row(1)], price=None, spent_before=None).sentence()


@pytest.mark.parametrize("count", [1, SHOWN, SHOWN + 5])
def test_error_lists_first_problems_and_counts_the_rest(count: int) -> None:
    failed = [row(line, "failed", problem=f"problem {line}.") for line in range(1, count + 1)]
    summary = summarize("may", [*failed, row(99)], price=None, spent_before=None)
    reported = str(batch_error(summary))
    assert f"{count + 1} rows: 1 archived, {count} failed" in reported
    for line in range(1, count + 1):
        assert (f"line {line} may-{line} (failed): problem {line}." in reported) is (line <= SHOWN)
    assert ("and 5 more" in reported) is (count > SHOWN)
    bad = [
        BadRow(line=line, id=None, problems=(RowProblem(field="duration", message="is odd"),)) for line in range(count)
    ]
    reported = str(bad_rows_error(bad, summary))
    assert "line 0: duration: is odd" in reported
    assert ("and 5 more" in reported) is (count > SHOWN)
    assert f"{count} row{'s are' if count > 1 else ' is'} invalid. Nothing was submitted." in reported


def test_table_lists_rows_needing_attention_first() -> None:
    rows = [
        row(1, link="https://videos.example.com/a.mp4", object_name="a.mp4"),
        row(2, "failed", problem="Do this."),
        row(3, "not due", note="not before 2026-03-01"),
        row(4, "bad row", problem="duration: must be 4"),
        row(5, object_name="videos/b.mp4"),
    ]
    shown = table(summarize("may", rows, price=None, spent_before=None))
    assert [tuple(item.values()) for item in shown] == [
        (2, "may-2", "failed", "", "Do this."),
        (4, "may-4", "bad row", "", "duration: must be 4"),
        (1, "may-1", "archived", "[open](https://videos.example.com/a.mp4)", ""),
        (3, "may-3", "not due", "", "not before 2026-03-01"),
        (5, "may-5", "archived", "videos/b.mp4", ""),
    ]
    assert list(shown[0]) == ["line", "key", "state", "video", "what to do"]
