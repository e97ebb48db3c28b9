"""Rows that were submitted before line endings were normalized keep their key; all other rows get the current key."""

import pytest

from flows.batch.calendar_rows import BadRow, BatchItem, Row, as_submitted, keys_of
from flows.record.generation import Generation
from tests.flows.record.changes import claimed

TODAY = BatchItem(prompt="Dunes\nA kite")
EARLIER = TODAY.with_crlf()


def ledger_with(*items: BatchItem) -> dict[str, Generation]:
    return {item.key("b"): claimed(key=item.key("b"), request=item.request()) for item in items}


@pytest.mark.parametrize(
    ("ledger", "expected"),
    [([], TODAY), ([EARLIER], EARLIER), ([TODAY], TODAY), ([EARLIER, TODAY], TODAY)],
)
def test_row_keeps_line_endings_it_was_submitted_with(ledger: list[BatchItem], expected: BatchItem) -> None:
    assert as_submitted(Row(line=2, item=TODAY), "b", ledger_with(*ledger)) == Row(line=2, item=expected)


def test_row_with_id_is_matched_by_its_submitted_prompt() -> None:
    today = TODAY.model_copy(update={"id": "a"})
    other = BatchItem(prompt="Something\nelse", id="a")
    row = Row(line=2, item=today)
    assert as_submitted(row, "b", ledger_with(today.with_crlf())) == Row(line=2, item=today.with_crlf())
    for ledger in (today, other, other.with_crlf()):
        assert as_submitted(row, "b", ledger_with(ledger)) == row


def test_only_rows_with_line_breaks_have_two_keys() -> None:
    rows: list[Row | BadRow] = [
        Row(line=2, item=TODAY),
        Row(line=3, item=BatchItem(prompt="A kite")),
        BadRow(line=4, id="x", problems=()),
    ]
    assert keys_of(rows, "b") == [TODAY.key("b"), "b-88736a2597", EARLIER.key("b")]
    assert TODAY.key("b") != EARLIER.key("b")
    assert as_submitted(rows[1], "b", ledger_with(EARLIER)) == rows[1]
    assert as_submitted(rows[2], "b", ledger_with(EARLIER)) == rows[2]
