"""Excel workbooks: they give the same videos as a CSV saved from them, and nothing hidden is read silently."""

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook
from openpyxl.worksheet.worksheet import Worksheet

from flows.batch.calendar_rows import BadRow, BatchItem, Row
from flows.batch.calendars import parse_calendar
from flows.batch.tables import MAX_ROWS, CalendarError
from flows.batch.workbooks import MAX_CELLS, MAX_UNPACKED_BYTES

from .test_calendar_rows import problems_of

KITE = BatchItem(prompt="A kite")


def make_workbook(*rows: list[Any], change: Callable[[Worksheet], None] = lambda _: None) -> bytes:
    """The bytes of a workbook with these rows in its only sheet."""
    workbook = Workbook()
    sheet = workbook.active
    assert isinstance(sheet, Worksheet)
    for row in rows:
        sheet.append(row)
    change(sheet)
    return to_bytes(workbook)


def to_bytes(workbook: Workbook) -> bytes:
    file = io.BytesIO()
    workbook.save(file)
    return file.getvalue()


def replace_in_part(data: bytes, part: str, old: str, new: str) -> bytes:
    """Replaces text in one part of a workbook, to imitate files from other programs."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            text = before.read(name)
            if name == part:
                assert old.encode() in text
                text = text.replace(old.encode(), new.encode())
            after.writestr(name, text)
    return file.getvalue()


def read(data: bytes, **options: Any) -> list[Row | BadRow]:
    return parse_calendar(data, name="plan.xlsx", **options)


def read_cell(column: str, value: Any, *, number_format: str | None = None) -> Row | BadRow:
    """The row read from a workbook with a prompt and this value."""

    def change(sheet: Worksheet) -> None:
        if number_format is not None:
            sheet["B2"].number_format = number_format

    (row,) = read(make_workbook(["prompt", column], ["A kite", value], change=change))
    return row


def test_cells_are_read_as_in_csv() -> None:
    urls = "https://example.com/a.jpg, https://example.com/b.jpg"
    rows = read(
        make_workbook(
            ["Prompt", "ID", "Duration", "Aspect Ratio", "Image URLs", "Remove watermark", "Not before", None],
            ["A kite\nover dunes", "kite", 8, "9:16", urls, False, datetime(2026, 3, 1), None],  # noqa: DTZ001
            [],
            [" A kite ", 7, 12.0, None, None, True, "2026-03-02"],
        )
    )
    assert rows == [
        Row(
            line=2,
            item=BatchItem(
                prompt="A kite\nover dunes", id="kite", duration=8, aspect_ratio="portrait", remove_watermark=False,
                image_urls=urls.split(", "), not_before=date(2026, 3, 1),
            ),
        ),
        Row(line=4, item=BatchItem(prompt=" A kite ", id="7", duration=12, not_before=date(2026, 3, 2))),
    ]  # fmt: skip


def test_row_has_same_key_as_in_csv() -> None:
    """Pinned: with another key, the same calendar would be paid for again."""
    (row,) = read(make_workbook(["prompt"], ["A kite"]))
    assert isinstance(row, Row)
    assert row.item.key("spring") == "spring-88736a2597"


@pytest.mark.parametrize(
    ("column", "value", "field", "expected"),
    [
        ("aspect_ratio", time(9, 16), "aspect_ratio", "portrait"),
        ("aspect_ratio", time(16, 9), "aspect_ratio", "landscape"),
        ("aspect_ratio", timedelta(hours=16, minutes=9), "aspect_ratio", "landscape"),
        ("duration", 8.0, "duration", 8),
        ("remove_watermark", 0, "remove_watermark", False),
        ("not_before", date(2026, 3, 1), "not_before", date(2026, 3, 1)),
        ("id", 1234, "id", "1234"),
    ],
)
def test_values_converted_by_excel_are_understood(column: str, value: Any, field: str, expected: Any) -> None:
    row = read_cell(column, value)
    assert isinstance(row, Row), row
    assert getattr(row.item, field) == expected


@pytest.mark.parametrize(
    ("column", "value", "number_format", "problem"),
    [
        ("not_before", 46082, None, "not_before: is a number, not a day. Format the cell as a date"),
        ("not_before", datetime(2026, 3, 1, 9, 30), None, "not_before: must be a day"),  # noqa: DTZ001
        ("id", 7, "000", "id: is a number that may be displayed differently"),
        ("id", 7.5, None, "id: is a number that may be displayed"),
        ("id", 1234567890123456, None, "id: is a number that may be displayed"),
        ("id", date(2026, 3, 1), None, "id: is a date or time"),
        ("duration", time(0, 0, 8), None, "duration: must be 4, 8 or 12"),
        ("duration", 8.5, None, "duration: must be 4, 8 or 12"),
        ("duration", "=4+4", None, "duration: is a formula without a result. Open the file in Excel and save it"),
        ("duration", "#REF!", None, "duration: is an error such as #REF!"),
    ],
)
def test_cell_whose_display_may_differ_from_its_value_is_bad_row(
    column: str, value: Any, number_format: str | None, problem: str
) -> None:
    assert problem in problems_of(read_cell(column, value, number_format=number_format))[0]


def test_prompt_that_is_date_or_formula_is_only_reported_problem() -> None:
    rows = read(make_workbook(["prompt", "duration"], [date(2026, 3, 1), 4], ['="A "&"kite"', 8]))
    assert [problem.partition(".")[0] for row in rows for problem in problems_of(row)] == [
        "prompt: is a date or time",
        "prompt: is a formula without a result",
    ]


def test_formula_result_is_used() -> None:
    data = make_workbook(["prompt", "duration"], ["A kite", "=4+4"])
    data = replace_in_part(data, "xl/worksheets/sheet1.xml", "<f>4+4</f><v />", "<f>4+4</f><v>8</v>")
    assert read(data) == [Row(line=2, item=BatchItem(prompt="A kite", duration=8))]


def test_escaped_carriage_return_is_line_ending_as_in_csv() -> None:
    escaped = {"one_x000B_two": "one\vtwo", "tab_x0009_": "tab\t", "_x005F_x000D_": "_x000D_", "_xD800_": "_xD800_"}
    for cell, same in escaped.items():
        (row,) = read(make_workbook(["prompt"], [f"a {cell} b"]))
        assert isinstance(row, Row)
        assert row.item.prompt == f"a {same} b"
    (row,) = read(make_workbook(["prompt"], ["Dunes_x000D_\nA kite_x000d_"]))
    assert isinstance(row, Row)
    assert row.item.prompt == "Dunes\nA kite\n"


def test_merged_cells_make_each_of_their_rows_bad() -> None:
    data = make_workbook(
        ["prompt", "aspect_ratio"], ["A kite", "portrait"], ["A fox", None], ["A cat", None],
        change=lambda sheet: sheet.merge_cells("B2:B3"),
    )  # fmt: skip
    rows = read(data)
    assert [type(row) for row in rows] == [BadRow, BadRow, Row]
    for row in rows[:2]:
        assert problems_of(row) == [
            "aspect_ratio: is part of the merged cells B2:B3. Unmerge them, and give each row its own"
        ]


def test_merged_title_above_header_is_rejected_with_allowed_columns() -> None:
    data = make_workbook(
        ["Spring", None], ["prompt", "id"], ["A kite", "a"], change=lambda sheet: sheet.merge_cells("A1:B1")
    )
    with pytest.raises(CalendarError, match=r"in line 1: column 1 is part of the merged cells A1:B1.*Allowed are"):
        read(data)


def hide(sheet: Worksheet) -> None:
    sheet.row_dimensions[3].hidden = True
    sheet.row_dimensions[5].hidden = True  # empty
    sheet.column_dimensions["B"].hidden = True
    sheet.column_dimensions["C"].hidden = True


def test_hidden_row_is_rejected_and_hidden_column_is_reported() -> None:
    notes: list[str] = []
    data = make_workbook(["prompt", "id"], ["A kite", "a"], ["A fox", "b"], ["A cat", "c"], change=hide)
    rows = read(data, report=notes.append)
    assert [type(row) for row in rows] == [Row, BadRow, Row]
    assert problems_of(rows[1]) == [": is hidden in the sheet, by a filter or by hand. Show it or delete it"]
    assert notes == ["Read hidden columns as well: id."]


def two_sheets() -> bytes:
    workbook = load_workbook(
        io.BytesIO(make_workbook(["prompt"], ["A kite"], change=lambda sheet: setattr(sheet, "title", "May")))
    )
    other = workbook.create_sheet("June")
    other.append(["prompt"])
    other.append(["A fox"])
    hidden = workbook.create_sheet("Lists")
    hidden.append(["Ann"])
    hidden.sheet_state = "hidden"
    return to_bytes(workbook)


def test_sheet_must_be_chosen_if_several_are_visible() -> None:
    with pytest.raises(CalendarError, match=r"has 2 sheets: 'May', 'June'\. Choose one with sheet .*--sheet"):
        read(two_sheets())
    with pytest.raises(CalendarError, match=r"has no sheet 'may'\. Its sheets are 'May', 'June'"):
        read(two_sheets(), sheet="may")
    notes: list[str] = []
    assert read(two_sheets(), sheet="June", report=notes.append) == [Row(line=2, item=BatchItem(prompt="A fox"))]
    assert notes == ["Read the sheet 'June', not 'May', 'Lists'."]


def test_only_visible_sheet_is_read() -> None:
    workbook = load_workbook(io.BytesIO(two_sheets()))
    workbook["June"].sheet_state = "veryHidden"
    notes: list[str] = []
    assert read(to_bytes(workbook), report=notes.append) == [Row(line=2, item=KITE)]
    assert notes == ["Read the sheet 'May', not 'June', 'Lists'."]


@pytest.mark.parametrize("name", ["plan.csv", "plan.jsonl"])
def test_sheet_option_is_rejected_for_text_files(name: str) -> None:
    with pytest.raises(CalendarError, match="has no sheets"):
        parse_calendar(b"prompt\nA kite", name=name, sheet="May")


def test_cells_with_formatting_only_are_ignored() -> None:
    def far_away(sheet: Worksheet) -> None:
        sheet["XFD1048576"].number_format = "0"
        sheet["C2"] = " "

    assert read(make_workbook(["prompt"], ["A kite"], change=far_away)) == [Row(line=2, item=KITE)]


def test_rows_with_value_in_last_column_are_rejected_using_little_memory() -> None:
    def far_away(sheet: Worksheet) -> None:
        for line in range(2, 1_002):
            sheet.cell(line, 16_384, "x")

    data = make_workbook(["prompt"], change=far_away)
    tracemalloc.start()
    try:
        rows = read(data)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(rows) == 1_000
    assert "has more than 100 cells for 1 columns" in problems_of(rows[0])[0]
    assert peak_bytes < 30_000_000  # it would be 131 MB with a list of 16,384 cells for each row


def test_workbook_with_too_many_rows_is_rejected() -> None:
    with pytest.raises(CalendarError, match="has 5,001 rows; the limit of a batch is 5,000"):
        read(make_workbook(["prompt"], *[["A kite"]] * (MAX_ROWS + 1)))


SHEET = "xl/worksheets/sheet1.xml"


def with_sheet_end(end: str) -> bytes:
    """A workbook whose sheet data ends with this XML."""
    return replace_in_part(make_workbook(["prompt"]), SHEET, "</sheetData>", end)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "is empty"),
        (lambda: b"prompt\nA kite", "is not an Excel workbook, or is damaged. Save it as .xlsx"),
        (lambda: make_workbook(["prompt"])[:-30], "is not an Excel workbook, or is damaged"),
        (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is password-protected, or an old .xls"),
        (lambda: make_workbook(["id"], ["a"]), "the column prompt is missing"),
        (lambda: make_workbook(["prompt"]), "contains no videos"),
        (make_workbook, "the column prompt is missing"),
        (
            lambda: replace_in_part(make_workbook(["prompt"]), SHEET, "<sheetData>", "<sheetData"),
            "cannot be read as an Excel workbook",
        ),
        (lambda: with_sheet_end(" " * MAX_UNPACKED_BYTES + "</sheetData>"), "too large when unpacked"),
        (lambda: with_sheet_end(f"<row r='3'>{'<c/>' * (MAX_CELLS + 1)}</row></sheetData>"), "too large when unpacked"),
        (
            lambda: with_sheet_end("</sheetData><mergeCells><mergeCell ref='A1:XFD1048576'/></mergeCells>"),
            "too large when unpacked",
        ),
    ],
    ids=["empty", "csv", "cut", "encrypted", "no prompt", "no rows", "no cells", "junk", "bomb", "cells", "merged"],
)
def test_invalid_workbook_is_rejected_with_advice(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(CalendarError, match=message):
        read(make())


GOOD = make_workbook(["prompt", "id", "duration"], ["A kite", 7, "=4+4"], [None, None, date(2026, 3, 1)])


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_workbook_gives_rows_or_calendar_error(data: st.DataObject) -> None:
    with zipfile.ZipFile(io.BytesIO(GOOD)) as archive:
        part = data.draw(st.sampled_from(archive.namelist()))
        text = archive.read(part).decode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    put = data.draw(st.sampled_from(["", "<", ">", '"', "0", "-1", "99999999999999999999", "x", "<c r='B9'/>", "&a;"]))
    try:
        rows = read(replace_in_part(GOOD, part, text, text[:start] + put + text[end:]) if text else GOOD)
    except CalendarError:
        return
    assert all(isinstance(row, Row) or row.problems for row in rows)
