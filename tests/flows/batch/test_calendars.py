"""Calendar files of every format: rejected files, the row limit, and duplicate rows."""

import codecs
import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.batch.calendar_rows import BadRow, Row
from flows.batch.calendars import MAX_CALENDAR_BYTES, parse_calendar
from flows.batch.tables import MAX_ROWS, CalendarError

from .calendar_text import read_csv
from .test_calendar_rows import problems_of

EXAMPLE = Path(__file__).parents[3] / "deployments/calendars/example.csv"


INVALID_FILES: list[tuple[bytes, str]] = [
    (b"", "is empty"),
    (b" \n\r\n\n", "is empty"),
    (codecs.BOM_UTF8, "is empty"),
    (codecs.BOM_UTF16_LE, "is empty"),
    (codecs.BOM_UTF16_LE + b"p\0\n", "is not UTF-16: see line 1.*CSV UTF-8"),
    (codecs.BOM_UTF16_BE + "prompt\0".encode("utf-16-be"), "line 1 contains a NUL"),
    ("prompt\nA kite".encode("utf-16-le"), "line 1 contains a NUL"),
    ("prompt\nA kite".encode("utf-32"), "is UTF-32"),
    (b"prompt\nA kite\r\nA \0 boat", "line 3 contains a NUL"),
    ("prompt\nA kite\rA boat over the süden".encode("latin-1"), "is not UTF-8: see line 3.*Save it as UTF-8"),
    (b"\xef\xbb\xbfprompt\n\n\xff", "is not UTF-8: see line 3"),
    (b"PK\x03\x04\x14\x00", "NUL|UTF-8"),
    (b" " * (MAX_CALENDAR_BYTES + 1), "is larger than 50,000,000 bytes"),
]


@pytest.mark.parametrize(("data", "message"), INVALID_FILES, ids=[repr(data[:20]) for data, _ in INVALID_FILES])
@pytest.mark.parametrize("name", ["plan.csv", "plan.jsonl"])
def test_binary_empty_or_oversized_file_is_rejected(data: bytes, message: str, name: str) -> None:
    with pytest.raises(CalendarError, match=message) as raised:
        parse_calendar(data, name=name)
    assert str(raised.value).startswith(f"The calendar '{name}' ")


@pytest.mark.parametrize("name", ["PLAN.CSV", "plan.JsonL", "s3://plans/march.ndjson", "a.b.csv"])
def test_file_extension_determines_format(name: str) -> None:
    data = b"prompt\nA kite" if name.lower().endswith("csv") else b'{"prompt": "A kite"}'
    assert [row.line for row in parse_calendar(data, name=name)] == [2 if name.lower().endswith("csv") else 1]


@pytest.mark.parametrize(
    "name",
    ["", "plan", "plan.xls", "plan.ods", "plan.numbers", "plan.json", "plan.csv.gz", "csv", "plan.csv/x", "p" * 1_000],
)
def test_unsupported_file_extension_is_rejected(name: str) -> None:
    with pytest.raises(CalendarError, match=r"must be a \.csv, \.tsv, \.jsonl, \.ndjson or \.xlsx file") as raised:
        parse_calendar(b"prompt\nA kite", name=name)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(("first", "row"), [("prompt\n", "A kite\n"), ("", '{"prompt": "A kite"}\n')])
def test_row_limit_is_enforced_quickly(first: str, row: str) -> None:
    name = "plan.csv" if first else "plan.jsonl"
    began = time.process_time()
    with pytest.raises(CalendarError, match="has 100,000 rows; the limit of a batch is 5,000"):
        parse_calendar((first + row * 100_000).encode(), name=name)
    assert time.process_time() - began < 5
    assert len(parse_calendar((first + row * MAX_ROWS).encode(), name=name)) == MAX_ROWS


def test_duplicates_are_found_in_a_file() -> None:
    rows = read_csv('prompt,id\n"A\nkite",a\nA boat,\nA cat,a\nA boat,\n')
    assert [type(row) for row in rows] == [Row, Row, BadRow, BadRow]
    assert "same id as line 2" in problems_of(rows[2])[0]
    assert "same video as line 4" in problems_of(rows[3])[0]


def test_other_rows_do_not_change_a_rows_key() -> None:
    def keys(text: str) -> list[str]:
        return [row.item.key("b") for row in read_csv(text) if isinstance(row, Row)]

    assert keys("prompt\nA kite\nA boat") == keys("prompt,id\nA kite,\nA cat,c\nA boat,")[::2]
    assert keys("prompt\nA kite\nA boat") == keys("prompt\nA boat\nA kite")[::-1]
    assert keys("prompt;duration\nA kite;4") == keys("duration,prompt\n,A kite")
    assert keys("prompt;duration\nA kite;4") != keys("prompt;duration\nA kite;8")


def test_calendar_error_can_be_pickled_and_is_not_retryable() -> None:
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
def test_any_bytes_give_rows_or_calendar_error(data: bytes, name: str) -> None:
    try:
        rows = parse_calendar(data, name=name)
    except CalendarError:
        return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    assert all(isinstance(row, Row) or row.problems for row in rows)


def test_example_calendar_is_valid() -> None:
    rows = parse_calendar(EXAMPLE.read_bytes(), name=str(EXAMPLE))
    taken = [row.item for row in rows if isinstance(row, Row)]
    assert len(taken) == len(rows) == 3
    assert {item.duration for item in taken} == {4}
    assert {item.aspect_ratio for item in taken} == {"landscape", "portrait"}
    assert all(item.id and not item.image_urls and "," in item.prompt for item in taken)
