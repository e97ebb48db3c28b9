"""A calendar as a table, whatever its file type: its header, and its rows as text."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

from flows.batch.calendar_rows import FIELDS, BadRow, Row, RowProblem, allowed_fields, check_row, shown, suggestion
from flows.batch.row_images import FindImage, replaced
from flows.record.pipeline_errors import PipelineError

T = TypeVar("T")

MAX_ROWS: Final = 5_000
"""A batch is one flow run. Measured: 1,000 generations of five tasks each take 140 MB in its process."""
MAX_COLUMNS: Final = 100
"""Far more than needed. A line of junk can have millions of cells."""
MAX_REPORTED: Final = 10
"""How many problems of a header an error reports."""
MAX_NAME_CHARACTERS: Final = 200
"""How much of the end of a file's name an error repeats."""


class CalendarError(PipelineError):
    """A calendar cannot be read as a whole: missing, not text, too large, no columns. No row of it was used."""


@dataclass(frozen=True)
class Flaw:
    """A cell without reliable text, and what to do about it."""

    message: str


@dataclass(frozen=True)
class TableRow:
    """A row that is not blank."""

    line: int
    cells: Sequence[str | Flaw]
    problem: str = ""
    """What is wrong with the row as a whole."""


def read_table(
    rows: Iterator[TableRow],
    name: str,
    *,
    ignore_columns: bool,
    report: Callable[[str], None],
    find_image: FindImage | None,
) -> list[Row | BadRow]:
    """Every row below the header, valid or not.

    Args:
        rows: the rows that are not blank; the first is the header.
        ignore_columns: whether unknown columns are ignored; those that begin with # always are.

    Raises:
        CalendarError: the header is invalid, a column without a name has a value, or there are too many rows.
    """
    header = next(rows, TableRow(line=1, cells=[]))
    fields = _fields(header, name, ignore_columns=ignore_columns, report=report)
    nameless = [position for position, field in enumerate(fields) if field == ""]
    kept = bounded(rows, name)
    for row in kept:
        for position in nameless:
            if len(row.cells) > position and not is_blank(row.cells[position]):
                raise refusal(
                    name,
                    f"has a cell in line {row.line} in column {position + 1}, which has no name in line {header.line}. "
                    "Clear it if it is there by mistake, or give its column a name, such as #notes.",
                )
    return [_row(row, fields, find_image) for row in kept]


def bounded(rows: Iterable[T], name: str) -> list[T]:
    """All rows, unless there are none or too many. Rows over the limit are only counted."""
    iterator = iter(rows)
    kept = list(islice(iterator, MAX_ROWS))
    count = len(kept) + sum(1 for _ in iterator)
    if not count:
        raise refusal(name, "contains no videos.")
    if count > MAX_ROWS:
        raise refusal(name, f"has {count:,} rows; the limit of a batch is {MAX_ROWS:,}. Split it into several batches.")
    return kept


def refusal(name: str, what: str) -> CalendarError:
    """An error about the calendar of this name. `what` should also say what to do."""
    return CalendarError(f"The calendar {name[-MAX_NAME_CHARACTERS:]!r} {what}")


def line_after(text: str) -> int:
    """The line that follows this text or continues it; the first is 1."""
    return len(re.findall(r"\r\n|\r|\n", text)) + 1


def is_blank(cell: str | Flaw) -> bool:
    """Whether there is nothing in a cell."""
    return isinstance(cell, str) and not cell.strip()


def field_name(header: str) -> str:
    """The field that a column's name stands for: `Aspect Ratio` and `aspect-ratio` are `aspect_ratio`."""
    return re.sub(r"[\s_-]+", "_", header.strip(" \t\r\n\ufeff\u200b").lower())


def _fields(row: TableRow, name: str, *, ignore_columns: bool, report: Callable[[str], None]) -> list[str | None]:
    """The field of each column; None for one that is ignored, empty for one without a name, which must be empty."""
    header = _trimmed(row.cells, 0)
    if len(header) > MAX_COLUMNS:
        raise refusal(name, f"has {len(header):,} columns in line {row.line}. Its first line must name its columns.")
    flaws = [f"column {number} {cell.message}" for number, cell in enumerate(header, 1) if isinstance(cell, Flaw)]
    texts = [cell.strip() if isinstance(cell, str) else "" for cell in header]
    names = [field_name(text) for text in texts]
    unknown = [text for text, field in zip(texts, names, strict=True) if text and field not in FIELDS]
    ignored = [text for text in unknown if ignore_columns or text.startswith("#")]
    problems = flaws + [
        f"{shown(text)} is not a column{suggestion(field_name(text))}" for text in unknown if text not in ignored
    ]
    problems += [f"{field} appears {names.count(field)} times" for field in FIELDS if names.count(field) > 1]
    if "prompt" not in names:
        problems.append("the column prompt is missing")
    if problems:
        more = f"; and {len(problems) - MAX_REPORTED:,} more" if len(problems) > MAX_REPORTED else ""
        listed = "; ".join(problems[:MAX_REPORTED])
        raise refusal(name, f"has wrong column names in line {row.line}: {listed}{more}. {allowed_fields()}.")
    if ignored:
        report(f"Ignored columns: {', '.join(shown(text) for text in ignored)}.")
    return [field if field in FIELDS or not text else None for text, field in zip(texts, names, strict=True)]


def _row(row: TableRow, columns: Sequence[str | None], find_image: FindImage | None) -> Row | BadRow:
    cells = _trimmed(row.cells, len(columns))
    if len(cells) > len(columns):  # it is unknown which cell belongs to which column, so no other problem is reported
        count = len(cells) if len(cells) <= MAX_COLUMNS else f"more than {MAX_COLUMNS}"
        return BadRow.whole(
            row.line,
            f"has {count} cells for {len(columns)} columns. Quote a cell that contains the delimiter; "
            "clear one that is there by mistake, or give its column a name, such as #notes",
        )
    if row.problem:
        return BadRow.whole(row.line, row.problem)
    named = [(field, cell) for field, cell in zip(columns, cells, strict=False) if field]
    texts = {field: cell for field, cell in named if isinstance(cell, str) and cell.strip()}
    fields, problems = replaced(texts, find_image)
    flaws = [RowProblem(field=field, message=cell.message) for field, cell in named if isinstance(cell, Flaw)]
    return check_row(row.line, fields, flaws + problems)


def _trimmed(cells: Sequence[str | Flaw], at_least: int) -> Sequence[str | Flaw]:
    """At least this many cells, without further blank ones at the end, of which spreadsheets write many."""
    end = len(cells)
    while end > at_least and is_blank(cells[end - 1]):
        end -= 1
    return cells[:end]
