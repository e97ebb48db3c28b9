"""Calendars as Excel workbooks (.xlsx): reads a sheet as the text that it would have as CSV.

So a workbook and the CSV saved from it are the same videos. A cell that displays something other than what it
contains is rejected with advice: a formula without a result, a merged or hidden cell, a number in a custom format.
"""

import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from flows.batch.calendar_rows import FIELDS
from flows.batch.tables import MAX_COLUMNS, Flaw, TableRow, field_name, is_blank, refusal

if TYPE_CHECKING:
    from openpyxl import Workbook
    from openpyxl.worksheet.worksheet import Worksheet

MAX_UNPACKED_BYTES: Final = 100_000_000
"""Enough for MAX_ROWS rows with the longest prompt. A small malicious file can unpack to terabytes."""
MAX_CELLS: Final = 500_000
"""MAX_ROWS times MAX_COLUMNS. openpyxl needs a kilobyte and 20 microseconds for each cell."""
MAX_MERGED_CELLS: Final = 100_000
"""openpyxl makes an object for each, and one merged area can have 17 billion cells."""
MAX_PLAIN_DIGITS: Final = 15
"""Excel stores no more digits of a number."""
OLD_EXCEL_OR_ENCRYPTED: Final = b"\xd0\xcf\x11\xe0"
PLAIN_FORMATS: Final = frozenset({"General", "0", "@"})
"""Number formats that display a whole number unchanged."""
_ESCAPED: Final = re.compile(r"_x((?!D[89A-F])[0-9A-F]{4})_", re.IGNORECASE)
TEXT_FIELDS: Final = frozenset({"id", "prompt"})
"""In these fields, the meaning of a number or date depends on how it is displayed."""


def workbook_rows(data: bytes, name: str, *, sheet: str | None, report: Callable[[str], None]) -> Iterator[TableRow]:
    """The rows of a sheet that are not blank.

    Args:
        sheet: the sheet's name. None: the only one that is not hidden.
        report: called with the sheets that were not read.

    Raises:
        CalendarError: it is not a workbook, or it is unclear which sheet is meant.
    """
    has_formulas = _inspect(data, name)
    found = _sheet(_open(data, name, data_only=True), name, sheet, report)
    # Either a formula or its result can be read, not both.
    itself = _open(data, name, data_only=False)[found.title] if has_formulas else None
    formulas = {at for at, cell in _sparse(itself) if cell.data_type == "f"} if itself is not None else set()
    return _rows(found, formulas, report)


def _inspect(data: bytes, name: str) -> bool:
    """Whether the workbook has formulas. Rejects a file that would take openpyxl too much time or memory."""
    if data.startswith(OLD_EXCEL_OR_ENCRYPTED):
        raise refusal(name, "is password-protected, or an old .xls file. Save it as .xlsx without a password.")
    cells, merged, formulas = 0, 0, False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = archive.infolist()
            fits = sum(part.file_size for part in parts) <= MAX_UNPACKED_BYTES
            for part in parts if fits else ():  # all of them: a sheet may have any name
                text = archive.read(part)
                cells += len(re.findall(rb"<(?:\w+:)?c[\s/>]", text))
                merged += _merged_cells(text)
                formulas = formulas or re.search(rb"<(?:\w+:)?f[\s/>]", text) is not None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise refusal(name, "is not an Excel workbook, or is damaged. Save it as .xlsx again.") from error
    if not fits or cells > MAX_CELLS or merged > MAX_MERGED_CELLS:
        raise refusal(
            name, "is too large when unpacked. Delete empty formatted rows, pictures and other sheets from it."
        )
    return formulas


def _merged_cells(sheet: bytes) -> int:
    from openpyxl.utils import range_boundaries  # noqa: PLC0415 - see _open

    total = 0
    for area in re.findall(rb"<(?:\w+:)?mergeCell\b[^<>]*?\bref\s*=\s*[\"']([A-Za-z0-9:$]+)", sheet):
        left, top, right, bottom = range_boundaries(area.decode())
        total += ((right or 0) - (left or 0) + 1) * ((bottom or 0) - (top or 0) + 1)
    return total


def _open(data: bytes, name: str, *, data_only: bool) -> "Workbook":
    from openpyxl import load_workbook  # noqa: PLC0415 - takes a fifth of a second, and few calendars are workbooks

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about parts without text, such as validations
            return load_workbook(io.BytesIO(data), data_only=data_only)
    except Exception as error:  # openpyxl raises whatever its parsers raise
        raise refusal(
            name, f"cannot be read as an Excel workbook ({type(error).__name__}). Save it as .xlsx again."
        ) from error


def _sheet(workbook: "Workbook", name: str, sheet: str | None, report: Callable[[str], None]) -> "Worksheet":
    if not workbook.worksheets:
        raise refusal(name, "is a workbook in Excel's strict form, or has no sheet. Save it as Excel Workbook (.xlsx).")
    visible = [item.title for item in workbook.worksheets if item.sheet_state == "visible"]
    hidden = [item.title for item in workbook.worksheets if item.sheet_state != "visible"]
    listed = ", ".join(repr(title) for title in visible[:MAX_COLUMNS])
    if sheet is None and len(visible) != 1:
        raise refusal(
            name, f"has {len(visible)} sheets: {listed}. Choose one with sheet (--sheet on the command line)."
        )
    wanted = visible[0] if sheet is None else sheet
    if wanted not in visible + hidden:
        raise refusal(name, f"has no sheet {wanted!r}. Its sheets are {listed}.")
    others = [title for title in visible + hidden if title != wanted]
    if others:
        report(f"Read the sheet {wanted!r}, not {', '.join(repr(title) for title in others[:MAX_COLUMNS])}.")
    found: Worksheet = workbook[wanted]
    return found


def _sparse(sheet: "Worksheet") -> Iterator[tuple[tuple[int, int], Any]]:
    """The cells that are in the file. iter_rows() would also make the gaps: 17 billion for one in the far corner."""
    return iter(sorted(sheet._cells.items()))  # noqa: SLF001


def _rows(sheet: "Worksheet", formulas: set[tuple[int, int]], report: Callable[[str], None]) -> Iterator[TableRow]:
    covered = {
        (row, column): str(area)
        for area in sheet.merged_cells.ranges
        for row in range(area.min_row, area.max_row + 1)
        for column in range(area.min_col, area.max_col + 1)
    }
    fields: list[str] | None = None
    for row, group in groupby(_sparse(sheet), key=lambda item: item[0][0]):
        cells: list[str | Flaw] = []
        for (_, column), cell in group:
            # Filled only up to MAX_COLUMNS + 1: a row that is wider than any header is rejected anyway.
            gap_ends = column - 1 if fields is None else min(column - 1, MAX_COLUMNS + 1)
            cells.extend([""] * (gap_ends - len(cells)))
            field = fields[column - 1] if fields is not None and column <= len(fields) else ""
            cells.append(_text(cell, field, (row, column) in formulas, covered.get((row, column))))
        if all(is_blank(cell) for cell in cells):
            continue
        if fields is None:
            fields = [field_name(cell) if isinstance(cell, str) else "" for cell in cells]
            unseen = [field for number, field in enumerate(fields, 1) if field in FIELDS and number in _hidden(sheet)]
            if unseen:
                report(f"Read hidden columns as well: {', '.join(unseen)}.")
        hidden = row in sheet.row_dimensions and sheet.row_dimensions[row].hidden
        problem = "is hidden in the sheet, by a filter or by hand. Show it or delete it" if hidden else ""
        yield TableRow(line=row, cells=cells, problem=problem)


def _hidden(sheet: "Worksheet") -> set[int]:
    """The columns that are hidden; the file has them in ranges."""
    found: set[int] = set()
    for area in sheet.column_dimensions.values():
        if area.hidden and area.min and area.max:
            found.update(range(area.min, min(area.max, MAX_COLUMNS) + 1))
    return found


def _text(cell: Any, field: str, formula: bool, merged: str | None) -> str | Flaw:
    """What the cell would be in the sheet's CSV."""
    value = cell.value
    if merged is not None:
        return Flaw(f"is part of the merged cells {merged}. Unmerge them, and give each row its own")
    if value is None:
        return (
            Flaw("is a formula without a result. Open the file in Excel and save it, or paste values")
            if formula
            else ""
        )
    if cell.data_type == "e":
        return Flaw("is an error such as #REF!. Correct its formula")
    try:
        return _plain(value, field, cell.number_format)
    except ValueError as error:
        return Flaw(str(error))
    except (LookupError, OverflowError):
        return Flaw("has a format that is missing in the workbook. Save it as .xlsx again")


def _plain(value: Any, field: str, number_format: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return _number(value, field, number_format)
        case datetime() | date() | time() | timedelta():
            return _day_or_time(value, field)
        case _:
            # Excel escapes control characters, such as _x000D_, and the escape itself. openpyxl leaves them escaped.
            return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), str(value))


def _number(value: float, field: str, number_format: str) -> str:
    if field == "not_before":
        raise ValueError("is a number, not a day. Format the cell as a date, or enter YYYY-MM-DD as text")
    whole = abs(value) < 10**MAX_PLAIN_DIGITS and value == int(value)
    if field in TEXT_FIELDS and not (whole and number_format in PLAIN_FORMATS):
        raise ValueError("is a number that may be displayed differently than it is stored. Format the cell as text")
    return str(int(value)) if whole else str(value)


def _day_or_time(value: datetime | date | time | timedelta, field: str) -> str:
    if field in TEXT_FIELDS:
        raise ValueError("is a date or time. Format the cell as text, and enter it again")
    match value:
        case time():
            return f"{value.hour}:{value.minute:02}" + (f":{value.second:02}" if value.second else "")
        case timedelta():
            minutes, seconds = divmod(int(value.total_seconds()), 60)
            return f"{minutes // 60}:{minutes % 60:02}" + (f":{seconds:02}" if seconds else "")
        case _:
            return value.isoformat()
