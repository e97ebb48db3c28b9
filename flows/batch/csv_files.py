"""Calendars as delimited text: CSV, and what spreadsheets call tab-delimited or Unicode text."""

import csv
import io
import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from flows.batch.calendar_rows import FIELDS
from flows.batch.tables import CalendarError, TableRow, field_name, line_after, refusal

DELIMITERS: Final = ",;\t"
_SEP: Final = re.compile(r'[\r\n]*"?sep=([^\w\s"]|\t)"?[,;\t ]*(?:\r\n|\r|\n)', re.IGNORECASE)
"""The line that tells Excel the delimiter. Other programs write it too, some in quotes."""


def csv_rows(text: str, name: str) -> Iterator[TableRow]:
    """The rows that are not blank, each with the line where it begins.

    Raises:
        CalendarError: during iteration, since after a stray quote it is unknown where the next row begins.
    """
    named = _SEP.match(text)
    if named:
        lines_before = line_after(named[0]) - 1
        return _cells(text[named.end() :], named[1], name, lines_before)
    # The delimiter with the most known columns; then the one with the most columns; then the file extension's.
    likely = DELIMITERS if name.lower().endswith(".csv") else DELIMITERS[::-1]
    return _cells(text, max(likely, key=lambda candidate: _header_fit(text, candidate)), name)


def _header_fit(text: str, delimiter: str) -> tuple[int, int]:
    try:
        header = next(_cells(text, delimiter, ""), TableRow(line=1, cells=[]))
    except CalendarError:
        return 0, 0
    return len({field_name(cell) for cell in header.cells if isinstance(cell, str)} & set(FIELDS)), len(header.cells)


def _cells(text: str, delimiter: str, name: str, lines_before: int = 0) -> Iterator[TableRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise refusal(name, _broken_cell(text, delimiter, line, lines_before)) from error
        if any(cell.strip() for cell in cells):
            yield TableRow(line=lines_before + line, cells=cells)


def _broken_cell(text: str, delimiter: str, line: int, lines_before: int) -> str:
    """Which cell of the row that begins in this line stopped the reader, which has run on to the end of the text."""
    row = "".join(islice(io.StringIO(text, newline=""), line - 1, None))
    mark = re.escape(delimiter)
    whole_cell = re.compile(rf'(?:"(?:[^"]++|"")*+"|[^"{mark}\r\n][^{mark}\r\n]*+|){mark}')
    at = 0
    while (cell := whole_cell.match(row, at)) and len(cell[0]) <= csv.field_size_limit():
        at = cell.end()
    line += lines_before + line_after(row[:at]) - 1
    if row.startswith('"', at):
        return (
            f"cannot be read from line {line} on: the quote that opens a cell there is never closed, closes before the "
            f"cell's end, or encloses more than {csv.field_size_limit():,} characters. Double each quote inside a cell."
        )
    return f"has a cell of more than {csv.field_size_limit():,} characters in line {line}."
