"""Formats numbers and times for sentences."""

from datetime import UTC, datetime


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 row`, `2,000 rows`. Pure. For nouns with a plural in -s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def utc(moment: datetime) -> str:
    """A time in UTC, to the second. Pure."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float) -> str:
    """A duration as on a clock: `8 s`, `2:05`. Pure."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"
