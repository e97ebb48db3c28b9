"""Calendars as common programs export them. The cases of docs/field-reports.md are tested here or next to it."""

import csv
import io
import json
from datetime import date
from typing import Any

import pytest

from flows.batch.calendar_rows import BadRow, BatchItem, Row
from flows.batch.calendars import parse_calendar
from flows.batch.tables import CalendarError
from flows.record.indexes import request_digest

from .test_calendar_rows import problems_of

KITE, FOX = BatchItem(prompt="A kite"), BatchItem(prompt="A fox", duration=8)
A, B = "https://example.com/a.jpg", "https://example.com/b.jpg"


def read(text: str | bytes, name: str = "plan.csv", **options: Any) -> list[Row | BadRow]:
    return parse_calendar(text if isinstance(text, bytes) else text.encode(), name=name, **options)


def items(rows: list[Row | BadRow]) -> list[BatchItem]:
    assert [row for row in rows if isinstance(row, BadRow)] == []
    return [row.item for row in rows if isinstance(row, Row)]


# --- Keys: if the key of a row changed, the row would be paid for again.

PINNED = [
    ({"prompt": "A kite"}, "spring-88736a2597"),
    (
        {
            "prompt": '"A kite\nover dunes"', "duration": "8", "aspect_ratio": "portrait",
            "image_urls": '"https://example.com/a.jpg\nhttps://example.com/b.png"', "remove_watermark": "no",
        },
        "spring-45dbc6e6ba",
    ),
    (
        {
            "prompt": "A kite", "duration": "12",
            "image_urls": '"https://res.cloudinary.com/demo/image/upload/w_400,h_300/sample.jpg"',
        },
        "spring-33aca43656",
    ),
    (
        {"prompt": "A kite", "duration": "12", "image_urls": '"https://x.imgix.net/a.jpg?rect=0,0,400,300"'},
        "spring-291d6f2b43",
    ),
    ({"prompt": " A kite "}, "spring-2e51479925"),
    ({"prompt": "A kite", "id": "7.0"}, "spring-7.0"),
]  # fmt: skip


@pytest.mark.parametrize(("cells", "key"), PINNED)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_previously_read_rows_keep_their_keys(cells: dict[str, str], key: str, line_end: str) -> None:
    text = f"{','.join(cells)}\n{','.join(cells.values())}\n".replace("\n", line_end)
    assert [item.key("spring") for item in items(read(text))] == [key]


def test_request_digest_is_stable() -> None:
    assert request_digest(KITE.request()) == "88736a2597bd4048a03db78606efb36012d9665fb119efe71a5b58b74224bb41"


def test_crlf_and_lf_versions_of_file_request_the_same_videos() -> None:
    text = 'prompt,duration\n"Shot 1: dunes\nShot 2: kite",4\n'
    (unix,), (windows,), (mac,) = (items(read(text.replace("\n", end))) for end in ("\n", "\r\n", "\r"))
    assert unix.prompt == "Shot 1: dunes\nShot 2: kite"
    assert unix == windows == mac
    line = json.dumps({"prompt": "Shot 1: dunes\r\nShot 2: kite"})
    assert items(read(line, "plan.jsonl")) == [unix]
    assert unix.with_crlf().prompt == "Shot 1: dunes\r\nShot 2: kite"
    assert unix.with_crlf().request().prompt == "Shot 1: dunes\r\nShot 2: kite"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image_urls": [None], "tags": [""]}, {}),
        ({"image_urls": [A, "", None, B], "tags": ["spring", None]}, {"image_urls": [A, B], "tags": ["spring"]}),
        ({"remove_watermark": 1.0}, {}),
        ({"remove_watermark": 0.0}, {"remove_watermark": False}),
    ],
)
def test_empty_list_entries_are_ignored_and_boolean_may_be_number(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    rows = read(json.dumps({"prompt": "A kite", **fields}), "plan.jsonl")
    assert items(rows) == [BatchItem(prompt="A kite", **expected)]


@pytest.mark.parametrize("fields", [{"image_urls": [" "]}, {"image_urls": [[]]}, {"remove_watermark": 0.5}])
def test_blank_or_nested_list_entry_or_fractional_boolean_is_bad_row(fields: dict[str, Any]) -> None:
    (row,) = read(json.dumps({"prompt": "A kite", **fields}), "plan.jsonl")
    assert isinstance(row, BadRow)


# --- Empty columns and trailing cells


@pytest.mark.parametrize(
    "text",
    [
        "prompt,duration\r\nA kite,4,\r\nA fox,8,\r\n",
        "prompt,duration,,\r\nA kite,4,,\r\nA fox,8,,\r\n",
        "prompt,duration,,\nA kite,4\nA fox,8,,,,,\n,,,,,,,\n",
        "prompt,,duration\nA kite,,4\nA fox, ,8\n",
        ",prompt,duration\n,A kite,4\n,A fox,8\n",
        "prompt,duration" + "," * 500 + "\nA kite,4\nA fox,8" + "," * 500 + "\n",
    ],
)
def test_empty_columns_and_cells_are_ignored(text: str) -> None:
    assert items(read(text)) == [KITE, FOX]


@pytest.mark.parametrize("ignore_columns", [True, False])
@pytest.mark.parametrize(
    ("text", "where"),
    [
        # The index column of pandas.
        (",prompt\n0,A kite\n1,A fox\n", "a cell in line 2 in column 1, which has no name in line 1"),
        ("id,,prompt\na,,A fox\nb,ask Ann,A kite\n", "a cell in line 3 in column 2"),
    ],
)
def test_a_column_without_a_name_must_be_empty(text: str, where: str, ignore_columns: bool) -> None:
    with pytest.raises(CalendarError, match=where) as raised:
        read(text, ignore_columns=ignore_columns)
    assert "#" in str(raised.value)


def test_unquoted_comma_is_reported_as_extra_cell() -> None:
    for text in ("prompt,duration\nA kite, red,4,,\n", "id,prompt,,\na,A kite, red,\n", "id,prompt,\na,A kite,ask Ann"):
        (row,) = read(text, ignore_columns=True)
        assert "cells for 2 columns. Quote a cell that contains the delimiter; clear one" in problems_of(row)[0]


# --- The header


@pytest.mark.parametrize(
    "header",
    ["Prompt,Aspect Ratio,Not Before", "PROMPT ,aspect-ratio, NOT-BEFORE", "\ufeffprompt,Aspect_Ratio,not\u00a0before"],
)
def test_column_names_ignore_case_and_separators(header: str) -> None:
    item = BatchItem(prompt="A kite", aspect_ratio="portrait", not_before=date(2026, 3, 1))
    assert items(read(f"{header}\nA kite,9:16,2026-03-01\n")) == [item]


def test_unknown_columns_are_rejected_or_ignored_and_reported() -> None:
    text = "prompt,Status,#owner,duration\nA kite,done,Ann,4\nA fox,,,8\n"
    with pytest.raises(CalendarError, match=r"'Status' is not a column.*--ignore-columns") as raised:
        read(text)
    assert "owner" not in str(raised.value)
    notes: list[str] = []
    assert items(read(text, ignore_columns=True, report=notes.append)) == [KITE, FOX]
    assert notes == ["Ignored columns: 'Status', '#owner'."]
    notes.clear()
    assert items(read(text.replace("Status", "# Status"), report=notes.append)) == [KITE, FOX]
    assert notes == ["Ignored columns: '# Status', '#owner'."]


def test_unknown_json_fields_are_rejected_or_ignored_and_reported() -> None:
    text = '{"prompt": "A kite", "Status": "done", "#owner": 1}\n{"prompt": "A fox", "duration": 8, "style": 1}\n'
    assert [type(row) for row in read(text, "plan.jsonl")] == [BadRow, BadRow]
    notes: list[str] = []
    assert items(read(text, "plan.jsonl", ignore_columns=True, report=notes.append)) == [KITE, FOX]
    assert notes == ["Ignored fields: '#owner', 'Status', 'style'."]


def test_misspelled_required_column_is_not_ignored() -> None:
    with pytest.raises(CalendarError, match="prompt is missing"):
        read("promt,duration\nA kite,4\n", ignore_columns=True)


# --- Delimiters and encodings


@pytest.mark.parametrize("mark", ["sep=;", '"sep=;"', "SEP=;", "sep=;;;", "\nsep=;"])
def test_sep_line_for_excel_sets_delimiter(mark: str) -> None:
    rows = read(f"{mark}\r\nprompt;duration\r\nA kite;4\r\nA, fox;9\r\n")
    assert rows[0] == Row(line=3 + mark.count("\n"), item=KITE)
    assert rows[1].line == 4 + mark.count("\n")
    for delimiter in (",", "|", "\t"):
        assert items(read(f"sep={delimiter}\nprompt{delimiter}duration\nA fox{delimiter}8\n")) == [FOX]


def test_unclosed_quote_after_sep_line_is_reported_at_its_line() -> None:
    with pytest.raises(CalendarError, match="from line 3 on: the quote"):
        read('sep=|\nprompt|id\n"A kite|a\nA fox|b\n')


def excel_unicode_text() -> bytes:
    text = io.StringIO()
    csv.writer(text, "excel-tab").writerows([["prompt", "duration"], ["A kite", "4"], ["A fox", "8"]])
    return text.getvalue().encode("utf-16")


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (excel_unicode_text(), "plan.txt"),
        (excel_unicode_text(), "plan.csv"),
        (b"prompt\tduration\nA kite\t4\nA fox\t8\n", "plan.tsv"),
        ("prompt\tduration\nA kite\t4\nA fox\t8\n".encode("utf-8-sig"), "PLAN.TSV"),
        ("\ufeffprompt;duration\r\nA kite;4\r\nA fox;8,0\r\n".encode("utf-16-be"), "plan.csv"),
        ('{"prompt": "A kite"}\n{"prompt": "A fox", "duration": 8}\n'.encode("utf-16"), "plan.jsonl"),
    ],
)
def test_excel_unicode_text_and_tab_separated_files_are_read(data: bytes, name: str) -> None:
    assert items(read(data, name)) == [KITE, FOX]


def test_comma_in_tsv_is_part_of_the_text() -> None:
    assert items(read("prompt\nA kite, red\n", "plan.tsv")) == [BatchItem(prompt="A kite, red")]


# --- Cells


def test_numbers_from_pandas_and_with_decimal_comma_are_read() -> None:
    assert items(read("prompt,duration\nA kite,\nA fox,8.0\n")) == [KITE, FOX]
    assert items(read("prompt;duration\nA kite;4,0\nA fox;8 s\n")) == [KITE, FOX]


def test_json_null_means_default() -> None:
    text = (
        '{"id":"a","prompt":"A kite","duration":8.0,"aspect_ratio":"portrait","image_urls":null}\n'
        '{"id":"b","prompt":"A fox","duration":null,"aspect_ratio":null,"image_urls":null,"mode":null,'
        '"remove_watermark":null,"not_before":null}\n'
    )
    first = BatchItem(id="a", prompt="A kite", duration=8, aspect_ratio="portrait")
    assert items(read(text, "plan.jsonl")) == [first, BatchItem(id="b", prompt="A fox")]


def test_json_strings_from_automations_are_parsed_like_cells() -> None:
    line = {
        "prompt": "A fox",
        "duration": "8",
        "image_urls": f"{A},{B}",
        "remove_watermark": "false",
        "id": 42,
        "mode": "",
    }
    expected = BatchItem(prompt="A fox", duration=8, image_urls=[A, B], remove_watermark=False, id="42")
    assert items(read(json.dumps(line), "plan.jsonl")) == [expected]


@pytest.mark.parametrize("cell", [f"{A},{B}", f"{A}, {B}", f"{A};{B}", f"{A}\r\n{B}", f"{A} {B}", f"{A}|{B}"])
def test_several_image_urls_in_one_cell_are_split(cell: str) -> None:
    assert items(read(f'prompt,image_urls\nA kite,"{cell}"\n')) == [BatchItem(prompt="A kite", image_urls=[A, B])]


@pytest.mark.parametrize(
    ("cell", "field"),
    [
        (f"{A},b.jpg", "image_urls"),  # WooCommerce also writes file names
        # Airtable: the URL expires within hours.
        ("a.jpg (https://v5.airtableusercontent.com/v3/u/1/2/x)", "image_urls.0"),
        ("Plan%20of%20May/a.jpg", "image_urls.0"),  # Notion: a file in the folder of the export
        ('[""https://example.com/a.jpg""]', "image_urls.0"),
    ],
)
def test_image_that_is_not_clearly_a_url_is_bad_row(cell: str, field: str) -> None:
    (row,) = read(f'prompt,image_urls,mode\nA kite,"{cell}",image-to-video\n')
    assert isinstance(row, BadRow)
    assert row.problems[0].field == field
    assert {problem.field.partition(".")[0] for problem in row.problems} == {"image_urls"}
    assert "example" not in str(row)
    assert "airtable" not in str(row)


@pytest.mark.parametrize(
    ("column", "cell", "remedy"),
    [
        ("remove_watermark", "checked", "an empty cell means true"),  # Airtable leaves unchecked boxes empty
        ("not_before", "3/1/2026", "YYYY-MM-DD"),
        ("not_before", "46082", "YYYY-MM-DD"),
        ("not_before", "March 1, 2026", "YYYY-MM-DD"),  # Notion
        ("duration", "00:00:08", "4, 8 or 12 seconds"),
        ("aspect_ratio", "16-Sep", "landscape or portrait"),  # what Excel makes of 9/16
        ("id", "1.23457E+15", "lowercase"),
    ],
)
def test_ambiguous_value_is_rejected_with_advice(column: str, cell: str, remedy: str) -> None:
    (row,) = read(f'prompt,{column}\nA kite,"{cell}"\n')
    (problem,) = problems_of(row)
    assert problem.startswith(f"{column}: must be")
    assert remedy in problem
