"""Helpers that parse short calendars written as text."""

from flows.batch.calendar_rows import BadRow, BatchItem, Row
from flows.batch.calendars import parse_calendar

KITE, BOAT = BatchItem(prompt="A kite"), BatchItem(prompt="A boat")


def read_csv(text: str) -> list[Row | BadRow]:
    return parse_calendar(text.encode(), name="plan.csv")


def read_json(text: str) -> list[Row | BadRow]:
    return parse_calendar(text.encode(), name="plan.jsonl")
