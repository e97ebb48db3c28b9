"""Calendars as JSON Lines: one object per line."""

import io
import json
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from flows.batch.calendar_rows import FIELDS, BadRow, Row, RowProblem, check_row, shown
from flows.batch.cells import no_number
from flows.batch.row_images import Pictures, no_pictures
from flows.batch.tables import bounded, refusal

MAX_LINE_CHARACTERS: Final = 250_000
"""One line of JSON: the longest prompt with every character escaped twice (120,000), and many URLs."""
MAX_REPORTED: Final = 10
"""How many ignored fields are named."""


def json_rows(
    text: str,
    name: str,
    *,
    ignore_columns: bool,
    report: Callable[[str], None],
    pictures: Pictures = no_pictures,
) -> list[Row | BadRow]:
    """Every line that is not blank, valid or not.

    Raises:
        CalendarError: it is not JSON Lines, or has no lines or too many.
    """
    whole = text.strip()
    if whole.startswith("[") and whole.endswith("]"):
        raise refusal(name, "is one JSON array. Put one object on each line, without brackets and commas around them.")
    # Not splitlines(): JSON may hold U+2028 and the like as they are.
    lines = ((number, line) for number, line in enumerate(io.StringIO(text, newline=""), 1) if line.strip())
    ignored: set[str] = set()
    rows = [_row(number, line, ignore_columns, ignored, pictures) for number, line in bounded(lines, name)]
    if ignored:
        more = f" and {len(ignored) - MAX_REPORTED:,} more" if len(ignored) > MAX_REPORTED else ""
        report(f"Ignored fields: {', '.join(shown(field) for field in sorted(ignored)[:MAX_REPORTED])}{more}.")
    return rows


def _row(number: int, line: str, ignore_columns: bool, ignored: set[str], pictures: Pictures) -> Row | BadRow:
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated[:] = [field for field, count in Counter(field for field, _ in pairs).items() if count > 1]
        return dict(pairs)  # the outermost object is the last to come

    if len(line) > MAX_LINE_CHARACTERS:
        problem = f"is longer than {MAX_LINE_CHARACTERS:,} characters"
    else:
        try:
            value = json.loads(line, object_pairs_hook=collect, parse_constant=no_number)
        except RecursionError:
            problem = "is nested too deeply"
        except json.JSONDecodeError as error:
            problem = f"is not a JSON object on one line: {error.msg} at character {error.pos + 1}"
        except ValueError:
            problem = "contains NaN, Infinity or a number with thousands of digits; write null where there is no value"
        else:
            if isinstance(value, dict):
                extra = {field for field in value if field not in FIELDS and (ignore_columns or field.startswith("#"))}
                ignored |= extra
                twice = [
                    RowProblem(field=field if field in FIELDS else shown(field), message="appears more than once")
                    for field in repeated
                    if field not in extra
                ]
                fields, problems = pictures({name: item for name, item in value.items() if name not in extra})
                return check_row(number, fields, twice + problems)
            problem = 'is not a JSON object such as {"prompt": "A red kite over dunes"}'
    return BadRow.whole(number, problem)
