"""Calendars as JSON Lines: what is read, and which line a problem is reported for."""

import json
import sys
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.batch.calendar_rows import BatchItem, Row, mark_duplicates
from flows.batch.json_files import MAX_LINE_CHARACTERS
from flows.batch.tables import CalendarError

from .calendar_text import BOAT, KITE, read_json
from .test_calendar_rows import items, problems_of

TOO_DEEP = "is nested too deeply" if sys.version_info < (3, 14) else "prompt: must be text"
"""Since Python 3.14, the JSON parser accepts any nesting that fits on the stack."""

BAD_LINES: list[tuple[str, str]] = [
    ("{", "is not a JSON object on one line: Expecting property name"),
    ('{"prompt": "A kite"', "is not a JSON object on one line"),
    ('{"prompt": "A kite"},', "is not a JSON object on one line: Extra data at character 21"),
    ('{"prompt": "A kite"} {"prompt": "A boat"}', "Extra data"),
    ("{'prompt': 'A kite'}", "is not a JSON object on one line"),
    ('{"prompt": "A\tkite"}', "control character"),
    ('"A kite"', "is not a JSON object such as"),
    ("[]", "is not a JSON object such as"),
    ("null", "is not a JSON object such as"),
    ("4", "is not a JSON object such as"),
    ('{"prompt": NaN}', "contains NaN, Infinity"),
    ('{"prompt": "A kite", "duration": -Infinity}', "contains NaN, Infinity"),
    ('{"prompt": "A kite", "duration": ' + "4" * 5_000 + "}", "thousands of digits"),
    ('{"prompt": "A kite", "duration": 1e999}', "duration: must be 4, 8 or 12"),
    ('{"prompt": "A kite", "duration": "5"}', "duration: must be 4, 8 or 12"),
    ('{"prompt": "A kite", "duration": {"a": 1, "a": 2}}', "duration: must be 4, 8 or 12"),
    ('{"prompt": ["A kite"]}', "prompt: must be text"),
    ('{"prompt": "A \\ud800 kite"}', "prompt: must be text"),
    ('{"prompt": "A kite", "image_urls": {"url": "https://example.com/a.jpg"}}', "image_urls: must be"),
    ('{"prompt": "A kite", "remove_watermark": "maybe"}', "remove_watermark: must be true or false"),
    ('{"prompt": "A kite", "not_before": 1}', "not_before: must be a day"),
    ('{"prompt": "A kite", "Duration": 4}', "'Duration': is not a field (did you mean duration?)"),
    ('{"prompt": "A kite", "prompt": "A boat"}', "prompt: appears more than once"),
    ('{"prompt": "A kite", "pr\\u006fmpt": "A boat"}', "prompt: appears more than once"),
    ("[" * 100_000, "is nested too deeply"),
    ('{"prompt":' * 20_000 + "1" + "}" * 20_000, TOO_DEEP),
    ('{"prompt": "' + "x" * MAX_LINE_CHARACTERS + '"}', "is longer than 250,000 characters"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_LINES, ids=[line[:40] for line, _ in BAD_LINES])
def test_invalid_line_is_bad_row_and_other_lines_are_kept(line: str, problem: str) -> None:
    rows = read_json(f'{{"prompt": "A kite"}}\n\n{line}\r\n{{"prompt": "A boat"}}\n')
    assert rows[0] == Row(line=1, item=KITE)
    assert rows[2] == Row(line=4, item=BOAT)
    assert rows[1].line == 3
    (message,) = problems_of(rows[1])
    assert problem in message
    assert len(message) < 400


def test_json_lines_with_all_fields_and_unusual_characters_are_read() -> None:
    item = BatchItem(
        prompt="A kite\u2028\x85\x00 \U0001f3ac", id="a", duration=8, aspect_ratio="portrait", remove_watermark=False,
        image_urls=["https://example.com/a.jpg"], not_before=date(2026, 3, 1),
    )  # fmt: skip
    for ascii_only in (True, False):
        line = json.dumps(item.model_dump(mode="json"), ensure_ascii=ascii_only)
        for text in (line, f"\ufeff{line}\n", f" \n{line}\r\n"):
            assert read_json(text) == [Row(line=2 if text[0] == " " else 1, item=item)]


def test_all_problems_of_a_line_are_reported() -> None:
    (row,) = read_json('{"prompt": " ", "id": "A", "id": "B", "x": 1, "duration": 5}')
    assert [problem.partition(":")[0] for problem in problems_of(row)] == ["id", "id", "'x'", "prompt", "duration"]


@pytest.mark.parametrize(
    "text", ["[]", ' [\n{"prompt": "A kite"},\n{"prompt": "A boat"}\n]\n', '[{"prompt": "A kite"}]']
)
def test_json_array_is_rejected(text: str) -> None:
    with pytest.raises(CalendarError, match="one JSON array"):
        read_json(text)


@settings(deadline=None)
@given(st.lists(items, min_size=1, max_size=5), st.sampled_from(["\n", "\r\n", "\n\n"]), st.booleans())
def test_written_json_lines_are_read_back(some: list[BatchItem], line_end: str, ascii_only: bool) -> None:
    lines = [json.dumps(item.model_dump(mode="json"), ensure_ascii=ascii_only) for item in some]
    expected = [Row(line=1 + number * line_end.count("\n"), item=item) for number, item in enumerate(some)]
    assert read_json(line_end.join(lines)) == mark_duplicates(expected)
