"""Calendars as a person would type them."""

from flows.batch.calendars import (
    BadRow,
    BatchItem,
    Row,
    parse_calendar,
)

KITE, BOAT = BatchItem(prompt="A kite"), BatchItem(prompt="A boat")


def read_csv(text: str) -> list[Row | BadRow]:
    return parse_calendar(text.encode(), name="plan.csv")


def read_json(text: str) -> list[Row | BadRow]:
    return parse_calendar(text.encode(), name="plan.jsonl")
