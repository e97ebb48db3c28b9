"""Calendars as JSON Lines: one object per line."""

import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from flows.batch.calendar_rows import FIELDS, BadRow, Row, RowProblem, check_row, shown
from flows.batch.cells import CellError, no_number
from flows.batch.row_images import FindImage, replaced
from flows.batch.tables import bounded, refusal

MAX_LINE_CHARACTERS: Final = 250_000
"""One line of JSON: the longest prompt with every character escaped twice (120,000), and many URLs."""
MAX_REPORTED: Final = 10
"""How many ignored fields are listed."""


def json_rows(
    text: str,
    name: str,
    *,
    ignore_columns: bool,
    report: Callable[[str], None],
    find_image: FindImage | None,
) -> list[Row | BadRow]:
    """Every line that is not blank, valid or not.

    Raises:
        CalendarError: it is not JSON Lines, or has no lines or too many.
    """
    whole = text.strip()
    if whole.startswith("[") and whole.endswith("]"):
        raise refusal(name, "is one JSON array. Put one object on each line, without brackets and commas around them.")
    # Not splitlines(): JSON may contain unescaped U+2028 and similar characters.
    lines = ((number, line) for number, line in enumerate(io.StringIO(text, newline=""), 1) if line.strip())
    ignored: set[str] = set()
    rows = [_row(number, line, ignore_columns, ignored, find_image) for number, line in bounded(lines, name)]
    if ignored:
        more = f" and {len(ignored) - MAX_REPORTED:,} more" if len(ignored) > MAX_REPORTED else ""
        report(f"Ignored fields: {', '.join(shown(field) for field in sorted(ignored)[:MAX_REPORTED])}{more}.")
    return rows


def _row(number: int, line: str, ignore_columns: bool, ignored: set[str], find_image: FindImage | None) -> Row | BadRow:
    try:
        value, repeated = _parsed(line)
    except CellError as error:
        return BadRow.whole(number, str(error))
    extra = {field for field in value if field not in FIELDS and (ignore_columns or field.startswith("#"))}
    ignored |= extra
    twice = [
        RowProblem(field=field if field in FIELDS else shown(field), message="appears more than once")
        for field in repeated
        if field not in extra
    ]
    fields, problems = replaced({name: item for name, item in value.items() if name not in extra}, find_image)
    return check_row(number, fields, twice + problems)


def _parsed(line: str) -> tuple[dict[str, Any], list[str]]:
    """The object in a line, and the fields that appear more than once in it.

    Raises:
        CellError: the line has no valid object.
    """
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated[:] = [field for field, count in Counter(field for field, _ in pairs).items() if count > 1]
        return dict(pairs)  # the outermost object comes last

    if len(line) > MAX_LINE_CHARACTERS:
        raise CellError(f"is longer than {MAX_LINE_CHARACTERS:,} characters")
    try:
        value = json.loads(line, object_pairs_hook=collect, parse_constant=no_number)
    except RecursionError:
        raise CellError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise CellError(f"is not a JSON object on one line: {error.msg} at character {error.pos + 1}") from None
    except ValueError:
        raise CellError(
            "contains NaN, Infinity or a number with thousands of digits; write null where there is no value"
        ) from None
    if not isinstance(value, dict):
        raise CellError('is not a JSON object such as {"prompt": "A red kite over dunes"}')
    return value, repeated
