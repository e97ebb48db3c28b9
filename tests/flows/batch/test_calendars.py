"""Calendars as files: what is read, what is refused whole, and at which line a person has to look."""

import codecs
import csv
import io
import json
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from pydantic import SecretStr

from blocks import VideoArchive
from blocks.errors import StoreUnavailableError
from deployments.local.object_store import ObjectStoreServer
from flows.batch.calendar_rows import FIELDS
from flows.batch.calendars import (
    MAX_CALENDAR_BYTES,
    MAX_LINE_CHARACTERS,
    MAX_ROWS,
    BadRow,
    BatchItem,
    CalendarError,
    Row,
    mark_duplicates,
    parse_calendar,
    read_calendar,
)
from tests.support import unique

from .test_calendar_rows import items, told

EXAMPLE = Path(__file__).parents[3] / "deployments/calendars/example.csv"
KITE, BOAT = BatchItem(prompt="A kite"), BatchItem(prompt="A boat")


def read_csv(text: str) -> list[Row | BadRow]:
    return parse_calendar(text.encode(), name="plan.csv")


def read_json(text: str) -> list[Row | BadRow]:
    return parse_calendar(text.encode(), name="plan.jsonl")


def cell(column: str, text: str) -> Row | BadRow:
    """A row with this cell beside its prompt."""
    (row,) = read_csv(f'prompt,{column}\nA kite,"{text}"\n')
    return row


# --- CSV

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
def test_a_spreadsheet_is_read_however_it_was_saved(text: str, rows: list[Row]) -> None:
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
def test_a_switch_is_written_in_several_ways(text: str, value: bool) -> None:
    row = cell("remove_watermark", text)
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
def test_a_cell_that_is_not_understood_is_a_bad_row_of_that_field(column: str, text: str) -> None:
    row = cell(column, text)
    assert row.line == 2
    (problem,) = told(row)
    assert problem.startswith(f"{column}: must be")


@pytest.mark.parametrize("prompt", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "'quoted'", "{}", "nothing", "4"])
def test_a_prompt_is_just_text(prompt: str) -> None:
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
def test_options_that_are_no_json_object_are_a_bad_row(cell: str) -> None:
    (row,) = read_csv(f'prompt;model;options\nA kite;kling-2-6;"{cell}"\n')
    assert told(row) == ['options: must be an object such as {"sound": true}']


def test_bad_rows_stand_beside_good_ones_each_with_all_its_problems() -> None:
    rows = read_csv('duration,id,prompt\n5,A,\n4,b,"A kite\nover dunes"\n4,c,A kite, red\n8,d,A boat\n')
    assert [type(row) for row in rows] == [BadRow, Row, BadRow, Row]
    assert [row.line for row in rows] == [2, 3, 5, 6]
    assert [problem.partition(":")[0] for problem in told(rows[0])] == ["prompt", "id", "duration"]
    (problem,) = told(rows[2])
    assert problem.startswith(": has 4 cells for 3 columns. Put a cell that holds the delimiter in quotes")


HEADERS = [
    ("promt,duration\nA kite,4", ["line 1", "'promt' is not a column (did you mean prompt?)", "prompt is missing"]),
    ("\nprompt,Aspect Ratios\nA kite,portrait", ["line 2", "'Aspect Ratios'", "did you mean aspect_ratio?"]),
    ("prompt,style\nA kite,noir", ["'style' is not a column. Allowed", "not_before", "#", "--ignore-columns"]),
    ("prompt,Prompt,id\nA kite,A boat,a", ["prompt is there 2 times"]),
    ("prompt,not before,Not-Before\nA kite,,", ["not_before is there 2 times"]),
    ("id,duration\na,4", ["the column prompt is missing"]),
    ("promt;dauer\nA kite;4", ["'promt'", "'dauer'"]),
    ("prompt:duration\nA kite:4", ["'prompt:duration'"]),
    ("A kite,4,landscape", ["'A kite'", "prompt is missing"]),
    ("prompt," + ",".join(f"x{number}" for number in range(50)), ["'x9'", "and 40 more"]),
    ("prompt" + ",x" * 1_000_000, ["1,000,001 columns"]),
    ("prompt," + "x" * 10_000, ["xxx…'"]),
]


@pytest.mark.parametrize(("text", "words"), HEADERS, ids=[text[:30] for text, _ in HEADERS])
def test_columns_that_are_not_right_are_named_with_those_that_are(text: str, words: list[str]) -> None:
    with pytest.raises(CalendarError) as refused:
        read_csv(text)
    message = str(refused.value)
    assert [word for word in words if word not in message] == []
    assert len(message) < 900


def test_a_file_without_a_header_does_not_show_its_first_row() -> None:
    with pytest.raises(CalendarError) as refused:
        read_csv("A kite,https://me:hunter2@example.com/a.jpg,me:hunter2@example.com\n")
    assert "hunter2" not in str(refused.value)


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
def test_a_quote_that_is_never_closed_swallows_nothing_and_is_found_where_it_opened(text: str, line: int) -> None:
    with pytest.raises(CalendarError, match=rf"from line {line} on: the quote that opens"):
        read_csv(text)


def test_a_cell_without_end_is_found_too() -> None:
    with pytest.raises(CalendarError, match=r"a cell of more than 131,072 characters in line 3"):
        read_csv("prompt,id\nA kite,a\n" + "x" * 200_000)
    with pytest.raises(CalendarError, match=r"from line 3 on"):
        read_csv('prompt,id\nA kite,a\n"' + "x" * 200_000 + '",b')


# --- JSON Lines

BAD_LINES: list[tuple[str, str]] = [
    ("{", "is not a JSON object in one line: Expecting property name"),
    ('{"prompt": "A kite"', "is not a JSON object in one line"),
    ('{"prompt": "A kite"},', "is not a JSON object in one line: Extra data at character 21"),
    ('{"prompt": "A kite"} {"prompt": "A boat"}', "Extra data"),
    ("{'prompt': 'A kite'}", "is not a JSON object in one line"),
    ('{"prompt": "A\tkite"}', "control character"),
    ('"A kite"', "is not a JSON object such as"),
    ("[]", "is not a JSON object such as"),
    ("null", "is not a JSON object such as"),
    ("4", "is not a JSON object such as"),
    ('{"prompt": NaN}', "holds NaN, Infinity"),
    ('{"prompt": "A kite", "duration": -Infinity}', "holds NaN, Infinity"),
    ('{"prompt": "A kite", "duration": ' + "4" * 5_000 + "}", "thousands of digits"),
    ('{"prompt": "A kite", "duration": 1e999}', "duration: must be 4, 8 or 12"),
    ('{"prompt": "A kite", "duration": "5"}', "duration: must be 4, 8 or 12"),
    ('{"prompt": "A kite", "duration": {"a": 1, "a": 2}}', "duration: must be 4, 8 or 12"),
    ('{"prompt": ["A kite"]}', "prompt: must be a text"),
    ('{"prompt": "A \\ud800 kite"}', "prompt: must be a text"),
    ('{"prompt": "A kite", "image_urls": {"url": "https://example.com/a.jpg"}}', "image_urls: must be"),
    ('{"prompt": "A kite", "remove_watermark": "maybe"}', "remove_watermark: must be true or false"),
    ('{"prompt": "A kite", "not_before": 1}', "not_before: must be a day"),
    ('{"prompt": "A kite", "Duration": 4}', "'Duration': is not a field (did you mean duration?)"),
    ('{"prompt": "A kite", "prompt": "A boat"}', "prompt: is there more than once"),
    ('{"prompt": "A kite", "pr\\u006fmpt": "A boat"}', "prompt: is there more than once"),
    ("[" * 100_000, "is nested too deeply"),
    ('{"prompt":' * 20_000 + "1" + "}" * 20_000, "is nested too deeply"),
    ('{"prompt": "' + "x" * MAX_LINE_CHARACTERS + '"}', "is longer than 250,000 characters"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES, ids=[line[:40] for line, _ in BAD_LINES])
def test_a_line_that_is_not_understood_is_a_bad_row_and_the_others_stand(line: str, problem: str) -> None:
    rows = read_json(f'{{"prompt": "A kite"}}\n\n{line}\r\n{{"prompt": "A boat"}}\n')
    assert rows[0] == Row(line=1, item=KITE)
    assert rows[2] == Row(line=4, item=BOAT)
    assert rows[1].line == 3
    (message,) = told(rows[1])
    assert problem in message
    assert len(message) < 400


def test_json_lines_are_read_with_every_field_and_whatever_a_text_may_hold() -> None:
    item = BatchItem(
        prompt="A kite\u2028\x85\x00 \U0001f3ac", id="a", duration=8, aspect_ratio="portrait", remove_watermark=False,
        image_urls=["https://example.com/a.jpg"], not_before=date(2026, 3, 1),
    )  # fmt: skip
    for ascii_only in (True, False):
        line = json.dumps(item.model_dump(mode="json"), ensure_ascii=ascii_only)
        for text in (line, f"\ufeff{line}\n", f" \n{line}\r\n"):
            assert read_json(text) == [Row(line=2 if text[0] == " " else 1, item=item)]


def test_all_problems_of_a_line_are_told() -> None:
    (row,) = read_json('{"prompt": " ", "id": "A", "id": "B", "x": 1, "duration": 5}')
    assert [problem.partition(":")[0] for problem in told(row)] == ["id", "id", "'x'", "prompt", "duration"]


@pytest.mark.parametrize(
    "text", ["[]", ' [\n{"prompt": "A kite"},\n{"prompt": "A boat"}\n]\n', '[{"prompt": "A kite"}]']
)
def test_a_json_array_is_told_to_become_lines(text: str) -> None:
    with pytest.raises(CalendarError, match="one JSON array"):
        read_json(text)


# --- Both

WHOLE: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b" \n\r\n\n", "is empty"),
    (codecs.BOM_UTF8, "is empty"),
    (codecs.BOM_UTF16_LE, "is empty"),
    (codecs.BOM_UTF16_LE + b"p\0\n", "is not UTF-16: see line 1.*CSV UTF-8"),
    (codecs.BOM_UTF16_BE + "prompt\0".encode("utf-16-be"), "line 1 holds a NUL"),
    ("prompt\nA kite".encode("utf-16-le"), "line 1 holds a NUL"),
    ("prompt\nA kite".encode("utf-32"), "is UTF-32"),
    (b"prompt\nA kite\r\nA \0 boat", "line 3 holds a NUL"),
    ("prompt\nA kite\rA boat over the süden".encode("latin-1"), "is not UTF-8: see line 3.*Save it as UTF-8"),
    (b"\xef\xbb\xbfprompt\n\n\xff", "is not UTF-8: see line 3"),
    (b"PK\x03\x04\x14\x00", "NUL|UTF-8"),
    (b" " * (MAX_CALENDAR_BYTES + 1), "is larger than 50,000,000 bytes"),
]


@pytest.mark.parametrize(("data", "message"), WHOLE, ids=[repr(data[:20]) for data, _ in WHOLE])
@pytest.mark.parametrize("name", ["plan.csv", "plan.jsonl"])
def test_what_is_no_text_or_empty_or_too_large_is_refused_whole(data: bytes, message: str, name: str) -> None:
    with pytest.raises(CalendarError, match=message) as refused:
        parse_calendar(data, name=name)
    assert str(refused.value).startswith(f"The calendar '{name}' ")


@pytest.mark.parametrize("text", ["prompt", "prompt,id\n", "prompt,id\n,\n\n"])
def test_columns_without_rows_name_no_video(text: str) -> None:
    with pytest.raises(CalendarError, match="names no video"):
        read_csv(text)


@pytest.mark.parametrize("name", ["PLAN.CSV", "plan.JsonL", "s3://plans/march.ndjson", "a.b.csv"])
def test_the_ending_says_what_the_file_is(name: str) -> None:
    data = b"prompt\nA kite" if name.lower().endswith("csv") else b'{"prompt": "A kite"}'
    assert [row.line for row in parse_calendar(data, name=name)] == [2 if name.lower().endswith("csv") else 1]


@pytest.mark.parametrize(
    "name",
    ["", "plan", "plan.xls", "plan.ods", "plan.numbers", "plan.json", "plan.csv.gz", "csv", "plan.csv/x", "p" * 1_000],
)
def test_any_other_ending_is_refused(name: str) -> None:
    with pytest.raises(CalendarError, match=r"must be a \.csv, \.tsv, \.jsonl, \.ndjson or \.xlsx file") as refused:
        parse_calendar(b"prompt\nA kite", name=name)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(("first", "row"), [("prompt\n", "A kite\n"), ("", '{"prompt": "A kite"}\n')])
def test_a_batch_takes_so_many_rows_and_more_are_counted_quickly(first: str, row: str) -> None:
    name = "plan.csv" if first else "plan.jsonl"
    began = time.process_time()
    with pytest.raises(CalendarError, match="has 100,000 rows; a batch takes 5,000"):
        parse_calendar((first + row * 100_000).encode(), name=name)
    assert time.process_time() - began < 5
    assert len(parse_calendar((first + row * MAX_ROWS).encode(), name=name)) == MAX_ROWS


def test_duplicates_are_found_in_a_file() -> None:
    rows = read_csv('prompt,id\n"A\nkite",a\nA boat,\nA cat,a\nA boat,\n')
    assert [type(row) for row in rows] == [Row, Row, BadRow, BadRow]
    assert "same id as line 2" in told(rows[2])[0]
    assert "same video as line 4" in told(rows[3])[0]


def test_other_rows_do_not_change_a_rows_key() -> None:
    def keys(text: str) -> list[str]:
        return [row.item.key("b") for row in read_csv(text) if isinstance(row, Row)]

    assert keys("prompt\nA kite\nA boat") == keys("prompt,id\nA kite,\nA cat,c\nA boat,")[::2]
    assert keys("prompt\nA kite\nA boat") == keys("prompt\nA boat\nA kite")[::-1]
    assert keys("prompt;duration\nA kite;4") == keys("duration,prompt\n,A kite")
    assert keys("prompt;duration\nA kite;4") != keys("prompt;duration\nA kite;8")


def test_the_error_can_be_pickled_and_is_not_tried_again() -> None:
    error = CalendarError("The calendar 'x' is empty.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes
    assert not error.retryable


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text(st.sampled_from(list('prompt,id;\t\n\r"{}[]:1é\x00')), max_size=60).map(str.encode)
    | st.lists(
        st.sampled_from(
            ["prompt", "id", ",", '"', "sep=;", ";", "#", "\n", "\r", '""', "A kite", "{", "}", ":", "[", "]", "4"]
        )
    ).map(lambda parts: "".join(["prompt,id\n", *parts]).encode()),
    st.sampled_from(["plan.csv", "plan.tsv", "plan.jsonl", "plan.xlsx"]),
)
def test_any_bytes_are_rows_or_a_calendar_error(data: bytes, name: str) -> None:
    try:
        rows = parse_calendar(data, name=name)
    except CalendarError:
        return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    assert all(isinstance(row, Row) or row.problems for row in rows)


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
def test_what_a_csv_writer_wrote_is_read_back(
    some: list[BatchItem], delimiter: str, line_end: str, columns: list[str]
) -> None:
    text = io.StringIO()
    # All quoted: up to Python 3.12 the writer leaves a lone \r unquoted where lines end with \n.
    writer = csv.DictWriter(text, columns, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writeheader()
    lines = []
    for item in some:
        lines.append(len(io.StringIO(text.getvalue(), newline="").readlines()) + 1)
        writer.writerow(as_cells(item))
    expected = [Row(line=line, item=item) for line, item in zip(lines, some, strict=True)]
    assert read_csv(text.getvalue()) == mark_duplicates(expected)


@settings(deadline=None)
@given(st.lists(items, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_what_was_written_as_json_lines_is_read_back(some: list[BatchItem], line_end: str, ascii_only: bool) -> None:
    lines = [json.dumps(item.model_dump(mode="json"), ensure_ascii=ascii_only) for item in some]
    expected = [Row(line=1 + number * line_end.count("\n"), item=item) for number, item in enumerate(some)]
    assert read_json(line_end.join(lines)) == mark_duplicates(expected)


def test_the_example_is_good() -> None:
    rows = parse_calendar(EXAMPLE.read_bytes(), name=str(EXAMPLE))
    taken = [row.item for row in rows if isinstance(row, Row)]
    assert len(taken) == len(rows) == 3
    assert {item.duration for item in taken} == {4}
    assert {item.aspect_ratio for item in taken} == {"landscape", "portrait"}
    assert all(item.id and not item.image_urls and "," in item.prompt for item in taken)


# --- Where it lies


async def test_a_local_file_is_read(tmp_path: Path, archive: VideoArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "März.csv").write_text("prompt\nA kite", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for where in (str(tmp_path / "März.csv"), "März.csv", f" {tmp_path}/./März.csv\n"):
        assert await read_calendar(where, archive) == [Row(line=2, item=KITE)]


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        if uid == 0:
            os.seteuid(uid)


async def test_a_local_file_that_cannot_be_read_says_why(tmp_path: Path, archive: VideoArchive) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    (tmp_path / "dangling.csv").symlink_to("nowhere.csv")
    with (tmp_path / "large.csv").open("wb") as large:
        large.truncate(MAX_CALENDAR_BYTES + 1)
    for name, why in {
        "nothing.csv": "is not on the machine that runs the flow",
        "nowhere/plan.csv": "is not on the machine",
        "file/plan.csv": "is not on the machine",
        "dangling.csv": "is not on the machine",
        "folder.csv": "is a folder",
        "pipe.csv": "is no regular file",
        "loop.csv": "cannot be read: ",
        "large.csv": "is larger than 50,000,000 bytes",
        "file": r"must be a \.csv",
        "a\0b.csv": "cannot be read: that is no file name",
        "a\ud800b.csv": "cannot be read: that is no file name",
        "x" * 300 + ".csv": "cannot be read: File name too long",
    }.items():
        with pytest.raises(CalendarError, match=why) as refused:
            await read_calendar(f"{tmp_path}/{name}", archive)
        str(refused.value).encode()  # a log takes it
        assert len(str(refused.value)) < 400


async def test_a_local_file_of_somebody_else_says_so(tmp_path: Path, archive: VideoArchive) -> None:
    path = tmp_path / "plan.csv"
    path.write_text("prompt\nA kite")
    path.chmod(0)
    with nobody(), pytest.raises(CalendarError, match="may not be read by the user"):
        await read_calendar(str(path), archive)


async def test_an_object_is_read_from_any_bucket_of_the_store(archive: VideoArchive) -> None:
    plans = archive.model_copy(update={"bucket": unique("plans")})
    store = plans.store()
    try:
        await store.create_bucket()
        await store.put("2026/märz & april?#.csv", b"prompt\nA kite")
        await store.put("empty.csv", b"")
        await store.put("large.jsonl", b" " * (MAX_CALENDAR_BYTES + 1))
    finally:
        await store.aclose()
    for scheme in ("s3", "S3"):
        where = f"{scheme}://{plans.bucket}/2026/märz & april?#.csv"
        assert await read_calendar(where, archive) == [Row(line=2, item=KITE)]
    assert archive.bucket != plans.bucket
    for where, why in {
        f"s3://{plans.bucket}/nothing.csv": f"is not there: the bucket {plans.bucket} has no such object",
        f"s3://{plans.bucket}-gone/plan.csv": f"is not there: the store has no bucket {plans.bucket}-gone",
        f"s3://{plans.bucket}/empty.csv": "is empty",
        f"s3://{plans.bucket}/large.jsonl": "is larger than 50,000,000 bytes",
        f"s3://{plans.bucket}/plan.xls": r"must be a \.csv",
        f"s3://{plans.bucket}/{'x' * 1_100}.csv": "a name that no object can have",
        f"s3://{plans.bucket}/../plan.csv": "a name that no object can have",
        f"s3://{plans.bucket}/a\ud800.csv": "a name that no object can have",
    }.items():
        with pytest.raises(CalendarError, match=why) as refused:
            await read_calendar(where, archive)
        assert "sora setup" not in str(refused.value)
        assert archive.secret_key.get_secret_value() not in str(refused.value)
        assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "where",
    [
        "https://me:hunter2@example.com/plan.csv",
        "https://store.example/plan.csv?X-Amz-Signature=hunter2",
        "file:///hunter2/plan.csv",
        "s3://key:hunter2@plans/plan.csv",
        "s3://hunter2!/plan.csv",
        "s3://hunter2",
        "s3://hunter2/",
        "s3:///hunter2.csv",
        "s3://",
        "://",
    ],
)
async def test_an_address_that_is_none_is_refused_and_not_repeated(where: str, archive: VideoArchive) -> None:
    with pytest.raises(CalendarError, match=r"must be .*s3://") as refused:
        await read_calendar(where, archive)
    assert "hunter2" not in f"{refused.value} {refused.value.__cause__}"


async def test_an_object_that_may_not_be_read_says_so(archive: VideoArchive, minio: ObjectStoreServer) -> None:
    if minio.kind != "minio":
        pytest.skip("only MinIO knows users and rights")
    allowed = {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::elsewhere/*"]}
    admin = MinioAdmin(
        endpoint=minio.endpoint, credentials=StaticProvider(minio.access_key, minio.secret_key), secure=False
    )
    access_key = unique("r")
    admin.add_service_account(
        access_key=access_key, secret_key="reader-51gned", policy={"Version": "2012-10-17", "Statement": [allowed]}
    )
    reader = archive.model_copy(update={"access_key": access_key, "secret_key": SecretStr("reader-51gned")})
    where = f"s3://{archive.bucket}/plan.csv"
    with pytest.raises(CalendarError, match="has no right to read it"):
        await read_calendar(where, reader)
    wrong = archive.model_copy(update={"secret_key": SecretStr("wrong-51gned")})
    with pytest.raises(CalendarError, match=r"cannot be read.*SignatureDoesNotMatch.*secret key") as refused:
        await read_calendar(where, wrong)
    assert "51gned" not in str(refused.value)


async def test_a_store_that_is_away_is_worth_another_try(archive: VideoArchive) -> None:
    away = archive.model_copy(update={"endpoint": "127.0.0.1:9"})
    with pytest.raises(StoreUnavailableError):
        await read_calendar("s3://plans/plan.csv", away)
