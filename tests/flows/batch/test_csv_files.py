"""Calendars as CSV: what is read, and which line a problem is reported for."""

import csv
import io
import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.batch.calendar_rows import FIELDS, BadRow, BatchItem, Row, mark_duplicates
from flows.batch.tables import CalendarError

from .calendar_text import BOAT, KITE, read_csv
from .test_calendar_rows import items, problems_of


def row_with_cell(column: str, text: str) -> Row | BadRow:
    """A row with a prompt and this cell."""
    (row,) = read_csv(f'prompt,{column}\nA kite,"{text}"\n')
    return row


GOOD_CSV: list[tuple[str, list[Row]]] = [
    ("prompt\nA kite", [Row(line=2, item=KITE)]),
    ("prompt\nA kite\n\n  \nA boat\n", [Row(line=2, item=KITE), Row(line=5, item=BOAT)]),
    ("\n\nprompt\r\n\r\nA kite\r\n", [Row(line=5, item=KITE)]),
    ("prompt\rA kite\rA boat\r", [Row(line=2, item=KITE), Row(line=3, item=BOAT)]),
    ("\ufeffprompt,id\nA kite,", [Row(line=2, item=KITE)]),
    ('\ufeff"prompt"\n"A kite"', [Row(line=2, item=KITE)]),
    (" Prompt , DURATION \nA kite, 8 ", [Row(line=2, item=BatchItem(prompt="A kite", duration=8))]),
    ("prompt;duration\nA kite, red;8", [Row(line=2, item=BatchItem(prompt="A kite, red", duration=8))]),
    ("prompt\tduration\nA kite; red,\t8", [Row(line=2, item=BatchItem(prompt="A kite; red,", duration=8))]),
    (
        "id;prompt\na;A kite\n;;\n;A boat",
        [Row(line=2, item=BatchItem(prompt="A kite", id="a")), Row(line=4, item=BOAT)],
    ),
    ("prompt,id,duration,mode\nA kite,,,\nA boat", [Row(line=2, item=KITE), Row(line=3, item=BOAT)]),
    ('prompt\n"A ""red"" kite"', [Row(line=2, item=BatchItem(prompt='A "red" kite'))]),
    ('prompt\nA "red" kite', [Row(line=2, item=BatchItem(prompt='A "red" kite'))]),
    (
        'prompt,id\n"A kite\n\nover dunes",a\n"A boat\r\n",b\nA cat,c',
        [
            Row(line=2, item=BatchItem(prompt="A kite\n\nover dunes", id="a")),
            Row(line=5, item=BatchItem(prompt="A boat\n", id="b")),
            Row(line=7, item=BatchItem(prompt="A cat", id="c")),
        ],
    ),
]


@pytest.mark.parametrize(("text", "rows"), GOOD_CSV)
def test_all_common_csv_dialects_are_read(text: str, rows: list[Row]) -> None:
    assert read_csv(text) == rows


def test_every_column_is_read() -> None:
    text = (
        "not_before,remove_watermark,mode,image_urls,aspect_ratio,duration,id,prompt\n"
        '2026-03-01,NO,image-to-video,"https://example.com/a.jpg\nhttps://example.com/b.png  http://c.example/",'
        "portrait,12,kite, A kite \n"
    )
    urls = ["https://example.com/a.jpg", "https://example.com/b.png", "http://c.example/"]
    item = BatchItem(
        prompt=" A kite ", id="kite", duration=12, aspect_ratio="portrait", image_urls=urls, mode="image-to-video",
        remove_watermark=False, not_before=date(2026, 3, 1),
    )  # fmt: skip
    assert read_csv(text) == [Row(line=2, item=item)]


@pytest.mark.parametrize(
    ("text", "value"),
    [(word, True) for word in ("true", "TRUE", "Yes", "1")] + [(w, False) for w in ("false", "no", "0")],
)
def test_boolean_cell_accepts_several_spellings(text: str, value: bool) -> None:
    row = row_with_cell("remove_watermark", text)
    assert isinstance(row, Row)
    assert row.item.remove_watermark is value


@pytest.mark.parametrize(
    ("column", "text"),
    [
        *(
            ("duration", text)
            for text in ("4.5", "4,5", "5", "4m", "04", "+4", "4e0", "٤", "-8", "true", "=2+2", "0:08")
        ),
        *(("remove_watermark", text) for text in ("on", "ja", "2", "truefalse", "checked")),
        *(("aspect_ratio", text) for text in ("square", "1:1", "9/16", "09:16:30", "9:16 AM")),
        *(("not_before", text) for text in ("01.03.2026", "2026-3-1", "2026-02-30", "tomorrow", "46082")),
        *(("id", text) for text in ("Kite", "a b", "a/b", "ä")),
        ("mode", "video"),
    ],
)
def test_invalid_cell_makes_bad_row_that_names_its_field(column: str, text: str) -> None:
    row = row_with_cell(column, text)
    assert row.line == 2
    (problem,) = problems_of(row)
    assert problem.startswith(f"{column}: must be")


@pytest.mark.parametrize("prompt", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "'quoted'", "{}", "nothing", "4"])
def test_prompt_is_read_as_plain_text(prompt: str) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["prompt"], [prompt]])
    assert read_csv(text.getvalue()) == [Row(line=2, item=BatchItem(prompt=prompt))]


def test_a_row_can_have_a_model_with_its_options_tags_and_fallbacks() -> None:
    (row,) = read_csv(
        "prompt;model;duration;options;tags;fallback_models\n"
        'A kite;kling-2-6;10;"{""sound"": true}";spring sale, kites ;kling-3-0-turbo future-1\n'
    )
    assert isinstance(row, Row)
    assert row.item.model_dump(exclude_defaults=True) == {
        "prompt": "A kite", "model": "kling-2-6", "duration": 10, "options": {"sound": True},
        "tags": ["spring sale", "kites"], "fallback_models": ["kling-3-0-turbo", "future-1"],
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["sound=true", "[1]", "{", '{""a"": NaN}', "{'sound': true}"])
def test_options_that_are_not_a_json_object_make_bad_row(cell: str) -> None:
    (row,) = read_csv(f'prompt;model;options\nA kite;kling-2-6;"{cell}"\n')
    assert problems_of(row) == ['options: must be an object such as {"sound": true}']


def test_bad_rows_list_all_their_problems_and_good_rows_are_kept() -> None:
    rows = read_csv('duration,id,prompt\n5,A,\n4,b,"A kite\nover dunes"\n4,c,A kite, red\n8,d,A boat\n')
    assert [type(row) for row in rows] == [BadRow, Row, BadRow, Row]
    assert [row.line for row in rows] == [2, 3, 5, 6]
    assert [problem.partition(":")[0] for problem in problems_of(rows[0])] == ["prompt", "id", "duration"]
    (problem,) = problems_of(rows[2])
    assert problem.startswith(": has 4 cells for 3 columns. Quote a cell that contains the delimiter")


HEADERS = [
    ("promt,duration\nA kite,4", ["line 1", "'promt' is not a column (did you mean prompt?)", "prompt is missing"]),
    ("\nprompt,Aspect Ratios\nA kite,portrait", ["line 2", "'Aspect Ratios'", "did you mean aspect_ratio?"]),
    ("prompt,style\nA kite,noir", ["'style' is not a column. Allowed", "not_before", "#", "--ignore-columns"]),
    ("prompt,Prompt,id\nA kite,A boat,a", ["prompt appears 2 times"]),
    ("prompt,not before,Not-Before\nA kite,,", ["not_before appears 2 times"]),
    ("id,duration\na,4", ["the column prompt is missing"]),
    ("promt;dauer\nA kite;4", ["'promt'", "'dauer'"]),
    ("prompt:duration\nA kite:4", ["'prompt:duration'"]),
    ("A kite,4,landscape", ["'A kite'", "prompt is missing"]),
    ("prompt," + ",".join(f"x{number}" for number in range(50)), ["'x9'", "and 40 more"]),
    ("prompt" + ",x" * 1_000_000, ["1,000,001 columns"]),
    ("prompt," + "x" * 10_000, ["xxx…'"]),
]


@pytest.mark.parametrize(("text", "words"), HEADERS, ids=[text[:30] for text, _ in HEADERS])
def test_invalid_header_raises_error_with_wrong_and_allowed_columns(text: str, words: list[str]) -> None:
    with pytest.raises(CalendarError) as raised:
        read_csv(text)
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert len(message) < 900


def test_error_for_missing_header_does_not_repeat_first_row() -> None:
    with pytest.raises(CalendarError) as raised:
        read_csv("A kite,https://me:hunter2@example.com/a.jpg,me:hunter2@example.com\n")
    assert "hunter2" not in str(raised.value)


UNCLOSED = [
    ('prompt,id\n"A kite,a\nA boat,b\n', 2),
    ('prompt,id\nA kite,a\n"A boat,b\n"A cat",c\nA dog,d\n', 3),
    ('prompt,id\n"A kite",a\n"A boat\nover water","b\nA cat,c\n' + "A dog,d\n" * 1_000, 4),
    ('prompt,id\n"A ""kite""\n\nflies","a"\n"A boat"",b\nA cat,c', 5),
    ('prompt,id\n"A kite" flies,a\nA boat,b', 2),
    ('prompt,id\n"A kite\nsays "hello, and\nleft"",a', 2),
    ('prompt;id\n"A kite;a\n' + "A boat;b\n" * 100_000, 2),
    ('prompt,id\nA kite,a\n"' + '""' * 200_000, 3),
    ('"prompt,id\nA kite,a\n', 1),
    ('prompt,id\n\n"A kite\rflies",a\r\n"A boat', 5),
    ('prompt,id\nA kite,"', 2),
]


@pytest.mark.parametrize(("text", "line"), UNCLOSED, ids=[text[:40] for text, _ in UNCLOSED])
def test_unclosed_quote_is_reported_at_line_where_it_opened(text: str, line: int) -> None:
    with pytest.raises(CalendarError, match=rf"from line {line} on: the quote that opens"):
        read_csv(text)


def test_oversized_cell_is_reported_with_its_line() -> None:
    with pytest.raises(CalendarError, match=r"a cell of more than 131,072 characters in line 3"):
        read_csv("prompt,id\nA kite,a\n" + "x" * 200_000)
    with pytest.raises(CalendarError, match=r"from line 3 on"):
        read_csv('prompt,id\nA kite,a\n"' + "x" * 200_000 + '",b')


@pytest.mark.parametrize("text", ["prompt", "prompt,id\n", "prompt,id\n,\n\n"])
def test_header_without_rows_is_rejected(text: str) -> None:
    with pytest.raises(CalendarError, match="contains no videos"):
        read_csv(text)


def as_cells(item: BatchItem) -> dict[str, Any]:
    fields = item.model_dump(mode="json")
    lists = {"image_urls": "\n", "tags": ", ", "fallback_models": " "}
    joined = {name: between.join(fields[name]) for name, between in lists.items()}
    return fields | joined | {"options": json.dumps(item.options), "remove_watermark": str(item.remove_watermark)}


@settings(deadline=None)
@given(
    st.lists(items.filter(lambda item: "\0" not in item.prompt), min_size=1, max_size=5),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n"]),
    st.permutations(FIELDS),
)
def test_csv_writer_output_is_read_back(
    some: list[BatchItem], delimiter: str, line_end: str, columns: list[str]
) -> None:
    text = io.StringIO()
    # Quote everything: up to Python 3.12, the writer does not quote a lone \r if lines end with \n.
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    lines = []
    for item in some:
        lines.append(len(io.StringIO(text.getvalue(), newline="").readlines()) + 1)
        writer.writerow(as_cells(item))
    expected = [Row(line=line, item=item) for line, item in zip(lines, some, strict=True)]
    assert read_csv(text.getvalue()) == mark_duplicates(expected)
