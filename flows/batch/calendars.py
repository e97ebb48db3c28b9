"""Content calendars: the videos of one batch run, as a CSV or JSON Lines file.

A file whose structure is in doubt is refused whole: after a stray quote nobody knows where the next row begins, and a
row misread is a video paid for. A row that is wrong in itself becomes a `BadRow`, and the others stand.
"""

import asyncio
import codecs
import csv
import io
import json
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

from blocks import VideoArchive
from blocks.errors import StoreRefusedError
from flows.batch.calendar_rows import (
    FIELDS,
    BadRow,
    BatchItem,
    Row,
    RowProblem,
    check_row,
    hint,
    mark_duplicates,
    shown,
)
from flows.record.errors import PipelineError

T = TypeVar("T")

MAX_CALENDAR_BYTES: Final = 50_000_000
"""Room for MAX_ROWS rows with the longest prompt. A larger file is no calendar, and reading it takes several times its
size in memory."""
MAX_ROWS: Final = 5_000
"""A batch is one flow run: 1,000 generations of five tasks were measured to take 140 MB in the process that runs it."""
MAX_LINE_CHARACTERS: Final = 250_000
"""One line of JSON: the longest prompt with every character escaped twice (120,000), and many addresses."""
MAX_COLUMNS: Final = 100
"""Far more than there can be. A line of junk can have millions of cells."""
MAX_TOLD: Final = 10
"""How many problems of a header an error lists."""
MAX_OBJECT_NAME_BYTES: Final = 1_024
"""S3's limit."""
MAX_NAME_CHARACTERS: Final = 200
"""How much of a file's name an error repeats; the end of it."""

DURATION: Final = re.compile(r"[1-9][0-9]{0,3}")
SWITCHES: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
DELIMITERS: Final = ",;\t"


class CalendarError(PipelineError):
    """A calendar cannot be read as a whole: not there, not text, too large, no columns. No row of it was used."""


async def read_calendar(where: str, archive: VideoArchive) -> list[Row | BadRow]:
    """Every row of a calendar, understood or not; duplicates are bad rows.

    Args:
        where: a path on this machine, or `s3://bucket/object` in any bucket of the archive's store.
        archive: lends its endpoint and keys.

    Raises:
        CalendarError: it is not there, may not be read, or cannot be read as a whole.
        StoreUnavailableError: the store gave no answer.
    """
    where = where.strip()
    scheme, is_address, rest = where.partition("://")
    if not is_address:
        data = await asyncio.to_thread(_read_file, where)
    elif scheme.lower() == "s3":
        data = await _read_object(where, rest, archive)
    else:  # not repeated: it may hold a password or a signature
        raise CalendarError("The calendar must be a path on this machine or s3://bucket/object, no other address.")
    return await asyncio.to_thread(parse_calendar, data, name=where)


def parse_calendar(data: bytes, *, name: str) -> list[Row | BadRow]:
    """Every row of a calendar, understood or not; duplicates are bad rows. Pure.

    Args:
        data: the file, in UTF-8.
        name: its name. The ending says what it is: `.csv`, or `.jsonl` or `.ndjson` for JSON Lines.

    Raises:
        CalendarError: it cannot be read as a whole.
    """
    parse = _parser(name)
    if len(data) > MAX_CALENDAR_BYTES:
        raise _refusal(name, f"is larger than {MAX_CALENDAR_BYTES:,} bytes. Split it into several batches.")
    return mark_duplicates(parse(_text(data, name), name))


def _parser(name: str) -> Callable[[str, str], list[Row | BadRow]]:
    match name.lower().rpartition("."):
        case (_, ".", "csv"):
            return _csv_rows
        case (_, ".", "jsonl" | "ndjson"):
            return _json_rows
    raise _refusal(name, "must be a .csv, .jsonl or .ndjson file. Save a spreadsheet as 'CSV UTF-8'.")


def _text(data: bytes, name: str) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _refusal(name, "is UTF-16 ('Unicode text'). Save it as UTF-8; in Excel as 'CSV UTF-8 (comma delimited)'.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(error.object[: error.start].decode())
        raise _refusal(
            name, f"is not UTF-8: see line {line}. Save it as UTF-8; in Excel as 'CSV UTF-8 (comma delimited)'."
        ) from error
    if "\0" in text:
        line = _line(text[: text.index("\0")])
        raise _refusal(name, f"is not plain text: line {line} holds a NUL. Save it as UTF-8 text.")
    if not text.strip(f"{DELIMITERS}\r\n "):
        raise _refusal(name, "is empty.")
    return text


def _csv_rows(text: str, name: str) -> list[Row | BadRow]:
    # The delimiter by which most columns are known; then the one with most columns, and the comma where all are alike.
    delimiter = max(DELIMITERS, key=lambda candidate: _header_fit(text, candidate))
    rows = _cells(text, delimiter, name)
    line, header = next(rows, (1, []))
    columns = _columns(line, header, name)
    return [_csv_row(line, columns, cells) for line, cells in _bounded(rows, name)]


def _header_fit(text: str, delimiter: str) -> tuple[int, int]:
    try:
        _, cells = next(_cells(text, delimiter, ""), (1, []))
    except CalendarError:
        return 0, 0
    return len({cell.strip().lower() for cell in cells} & set(FIELDS)), len(cells)


def _columns(line: int, header: list[str], name: str) -> list[str]:
    if len(header) > MAX_COLUMNS:
        raise _refusal(name, f"has {len(header):,} columns in line {line}. Its first line must name its columns.")
    columns = [cell.strip().lower() for cell in header]
    problems = [
        f"column {number} has no name" if not column else f"{shown(cell.strip())} is no column{hint(column)}"
        for number, (column, cell) in enumerate(zip(columns, header, strict=True), start=1)
        if column not in FIELDS
    ]
    problems += [f"{field} is there {columns.count(field)} times" for field in FIELDS if columns.count(field) > 1]
    if "prompt" not in columns:
        problems.append("the column prompt is missing")
    if problems:
        more = f"; and {len(problems) - MAX_TOLD:,} more" if len(problems) > MAX_TOLD else ""
        raise _refusal(
            name,
            f"does not name its columns right in line {line}: {'; '.join(problems[:MAX_TOLD])}{more}. "
            f"Allowed are prompt, which must be there, and {', '.join(FIELDS[1:])}.",
        )
    return columns


def _cells(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line where it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _refusal(name, _broken_cell(text, delimiter, line)) from error
        if any(cell.strip() for cell in cells):
            yield line, cells


def _broken_cell(text: str, delimiter: str, line: int) -> str:
    """Which cell of the row that begins in this line stopped the reader. It goes on to the end, so it looks back."""
    row = "".join(islice(io.StringIO(text, newline=""), line - 1, None))
    whole_cell = re.compile(rf'(?:"(?:[^"]++|"")*+"|[^"{delimiter}\r\n][^{delimiter}\r\n]*+|){delimiter}')
    at = 0
    while (cell := whole_cell.match(row, at)) and len(cell[0]) <= csv.field_size_limit():
        at = cell.end()
    line += _line(row[:at]) - 1
    if row.startswith('"', at):
        return (
            f"cannot be read from line {line} on: the quote that opens a cell there is never closed, closes before the "
            f"cell's end, or holds more than {csv.field_size_limit():,} characters. Write a quote inside a cell twice."
        )
    return f"has a cell of more than {csv.field_size_limit():,} characters in line {line}."


def _csv_row(line: int, columns: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) > len(columns):  # which cell is whose nobody knows, so no other problem is reported
        message = f"has {len(cells)} cells for {len(columns)} columns. Put a cell that holds the delimiter in quotes"
        return BadRow(line=line, id=None, problems=(RowProblem(field="", message=message),))
    named = zip(columns, cells, strict=False)
    return check_row(line, {column: _value(column, cell) for column, cell in named if cell.strip()})


def _value(column: str, cell: str) -> Any:
    """A cell as JSON would have it. What cannot be one stays text, and is found wrong later."""
    return cell if column == "prompt" else VALUES.get(column, str)(cell.strip())


def _object(text: str) -> Any:
    """A cell that holds a JSON object; any other stays text."""
    try:
        value = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


VALUES: Final[dict[str, Callable[[str], Any]]] = {
    "duration": lambda text: int(text) if DURATION.fullmatch(text) else text,
    "remove_watermark": lambda text: SWITCHES.get(text.lower(), text),
    "image_urls": str.split,
    "options": _object,
    "tags": lambda text: [tag.strip() for tag in text.split(",")],
    "fallback_models": str.split,
}


def _json_rows(text: str, name: str) -> list[Row | BadRow]:
    whole = text.strip()
    if whole.startswith("[") and whole.endswith("]"):
        raise _refusal(name, "is one JSON array. Put one object on each line, without brackets and commas around them.")
    # Not splitlines(): JSON may hold U+2028 and the like as they are.
    lines = ((number, line) for number, line in enumerate(io.StringIO(text, newline=""), 1) if line.strip())
    return [_json_row(number, line) for number, line in _bounded(lines, name)]


def _json_row(number: int, line: str) -> Row | BadRow:
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated[:] = [field for field, count in Counter(field for field, _ in pairs).items() if count > 1]
        return dict(pairs)  # the outermost object is the last to come

    if len(line) > MAX_LINE_CHARACTERS:
        problem = f"is longer than {MAX_LINE_CHARACTERS:,} characters"
    else:
        try:
            value = json.loads(line, object_pairs_hook=collect, parse_constant=_no_number)
        except RecursionError:
            problem = "is nested too deeply"
        except json.JSONDecodeError as error:
            problem = f"is not a JSON object in one line: {error.msg} at character {error.pos + 1}"
        except ValueError:
            problem = "holds NaN, Infinity or a number with thousands of digits"
        else:
            if isinstance(value, dict):
                twice = [RowProblem(field=_field(field), message="is there more than once") for field in repeated]
                return check_row(number, value, twice)
            problem = 'is not a JSON object such as {"prompt": "A red kite over dunes"}'
    return BadRow(line=number, id=None, problems=(RowProblem(field="", message=problem),))


def _field(name: str) -> str:
    return name if name in FIELDS else shown(name)


def _no_number(_: str) -> NoReturn:
    raise ValueError


def _bounded(rows: Iterator[T], name: str) -> list[T]:
    """All rows, if there are some and not too many. The rest is counted without being kept."""
    kept = list(islice(rows, MAX_ROWS))
    count = len(kept) + sum(1 for _ in rows)
    if not count:
        raise _refusal(name, "names no video.")
    if count > MAX_ROWS:
        raise _refusal(name, f"has {count:,} rows; a batch takes {MAX_ROWS:,}. Split it into several batches.")
    return kept


def _read_file(where: str) -> bytes:
    _parser(where)
    path = Path(where)
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise _refusal(where, f"is {'a folder' if path.is_dir() else 'no regular file'}. Name one file.")
        with path.open("rb") as file:
            return file.read(MAX_CALENDAR_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _refusal(where, "is not on the machine that runs the flow. Does the path begin with a /?") from error
    except PermissionError as error:
        raise _refusal(where, "may not be read by the user that runs the flow.") from error
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "that is no file name"
        raise _refusal(where, f"cannot be read: {what}.") from error


async def _read_object(where: str, rest: str, archive: VideoArchive) -> bytes:
    bucket, _, name = rest.partition("/")
    try:
        if not name:
            raise ValueError
        store = archive.model_copy(update={"bucket": bucket}).store()
    except ValueError:  # neither repeated nor kept as the cause: before an @ may stand a password
        raise CalendarError("The calendar must be s3://bucket/object, such as s3://plans/march.csv.") from None
    try:
        _parser(where)
        if len(name.encode()) > MAX_OBJECT_NAME_BYTES:
            raise ValueError
        data = await store.read(name, max_bytes=MAX_CALENDAR_BYTES + 1)
    except StoreRefusedError as error:
        what = {
            "NoSuchBucket": f"is not there: the store has no bucket {bucket}.",
            "AccessDenied": "is not there, or the access key of the video-archive block has no right to read it.",
        }.get(error.code, f"cannot be read. {error}")
        raise _refusal(where, what) from error
    except ValueError as error:
        raise _refusal(where, "has a name that no object can have.") from error
    finally:
        await store.aclose()
    if data is None:
        raise _refusal(where, f"is not there: the bucket {bucket} has no such object.")
    return data


def _line(before: str) -> int:
    """The line that follows this text or goes on behind it; the first is 1."""
    return len(re.findall(r"\r\n|\r|\n", before)) + 1


def _refusal(name: str, what: str) -> CalendarError:
    return CalendarError(f"The calendar {name[-MAX_NAME_CHARACTERS:]!r} {what}")


__all__ = [
    "BadRow",
    "BatchItem",
    "CalendarError",
    "Row",
    "RowProblem",
    "check_row",
    "mark_duplicates",
    "parse_calendar",
    "read_calendar",
]
