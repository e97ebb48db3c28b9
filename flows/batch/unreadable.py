"""Why a calendar is refused as a whole."""

from typing import Final

from flows.record.errors import PipelineError

MAX_NAME_CHARACTERS: Final = 200
"""How much of a file's name an error repeats; the end of it."""


class CalendarError(PipelineError):
    """A calendar cannot be read as a whole: not there, not text, too large, no columns. No row of it was used."""


def refusal(name: str, what: str) -> CalendarError:
    """What is wrong with the calendar of this name. It should also say what to do."""
    return CalendarError(f"The calendar {name[-MAX_NAME_CHARACTERS:]!r} {what}")
