"""Converts the values of a calendar or an event, as users and programs write them, to the form that the API expects.

Only unambiguous values are converted: `8.0` and `8 s` are 8, `9:16` is portrait. Everything else stays as it is, for
the field's own checks to reject.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from apixo.constants import DEFAULT_MODEL

DURATION: Final = re.compile(r"([1-9]\d{0,3})(?:[.,]0+)?\s*(?:s|sec|secs|second|seconds)?", re.IGNORECASE)
"""pandas and LibreOffice write 8.0 if a column has empty cells, or 8,0 in locales with a decimal comma."""
SWITCHES: Final = {
    **dict.fromkeys(("true", "yes", "1", "1.0", "wahr", "vrai", "verdadero"), True),
    **dict.fromkeys(("false", "no", "0", "0.0", "falsch", "faux", "falso"), False),
}
"""Excel saves TRUE and FALSE in the language of its user."""
RATIOS: Final = {"landscape": "landscape", "16:9": "landscape", "portrait": "portrait", "9:16": "portrait"}
"""What sora-2 calls them. Other models accept ratios as they are."""
SHOWN_RATIOS: Final = {"16:09": "16:9", "1:01": "1:1", "4:03": "4:3", "3:04": "3:4", "21:09": "21:9"}
"""Excel reads 16:9 as a time, nine minutes past four in the afternoon, and shows 16:09."""
MIDNIGHT: Final = re.compile(r"(\d{4}-\d\d-\d\d)[T ]00:00(?::00(?:\.0+)?)?(?:Z|\+00:?00)?", re.ASCII)
"""A day as pandas, LibreOffice and JavaScript write it. Any other time is not a day."""

_TIME: Final = re.compile(r"0?(\d{1,2}:\d\d)(?::00)?", re.ASCII)
"""Excel reads 9:16 as a time of day and shows 09:16 or 09:16:00."""
_SEPARATOR: Final = re.compile(r"\s+|(?<![,;|])[,;|]++(?=\s|https?://|s3://|$)", re.IGNORECASE)
"""Between two URLs. A comma inside a URL, as in Cloudinary's, does not separate. A run of commas is matched only once,
from its beginning: a cell can contain a hundred thousand."""
_FOREIGN: Final = re.compile(r"(?:[\uff0c\u3001\uff1b]|\\[rn])(?=\\|\s|(?:https?|s3)://|$)", re.IGNORECASE)
"""Chinese and Japanese commas, and a line break that a program wrote as two characters."""
_URL: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//|www\.", re.IGNORECASE)
_NO_PROMPT: Final = re.compile(
    r"#(?:NAME\?|N/A|REF!|VALUE!|ERROR!|DIV/0!|NUM!|NULL!|SPILL!|CALC!)|Loading\.\.\.|nan|null|none|undefined|\\N|\x1a|"
    r"\[object \w+\]|\{\{[^{}]*\}\}|\$\{[^{}]*\}",
    re.IGNORECASE,
)
"""What spreadsheets show for an error, and programs write for a missing value."""
_STARTS: Final = re.compile(r"(?:^|[\s,;|])(?:https?|s3)://", re.IGNORECASE)
_IMAGE: Final = re.compile(r"\.(?:jpe?g|png|webp)$", re.IGNORECASE)
_GARBLED: Final = re.compile(
    r"\ufffd|\u00e2\u20ac|\u00f0\u0178"  # undecodable bytes; quotes and dashes; emoji
    r"|(?<=[a-z])\u00c3[^\sA-Za-z]|\u00c3[^\sA-Za-z](?=[a-z])|\u00c2[\u00a3\u00a7\u00a9\u00ae\u00b0\u00b2\u00b3\u00bc-\u00be]"
)
"""UTF-8 that was decoded as Windows-1252, or replaced. No language has these sequences. A capital \u00c3 counts only
near a lowercase letter: a word in capitals may end in \u00c3 before an ellipsis."""
_INVISIBLE: Final = re.compile(r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]+")
"""Characters that web pages leave behind in a cell that looks empty."""
_ESCAPED: Final = re.compile(r"&(?:amp|#38|#x26);", re.IGNORECASE)


class CellError(Exception):
    """An ambiguous value. The message says so and what to do, without repeating the value."""


def normalize(fields: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of one video in the form that the API expects, and what is wrong with the others. Pure.

    Absent values are left out, for the default: `null`, as pandas and JavaScript write it, and empty text, as in an
    empty cell. Only the prompt is kept when empty, because it is required. A name that begins with # is a comment.
    """
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for field, value in fields.items():
        if (
            value is None
            or field.startswith("#")
            or (isinstance(value, str) and field in _READERS and field != "prompt" and not value.strip())
        ):
            continue
        try:
            values[field] = _read(field, value)
        except CellError as error:
            problems[field] = str(error)
    if values.get("model", DEFAULT_MODEL) == DEFAULT_MODEL and "aspect_ratio" in values:
        ratio = values["aspect_ratio"]
        values["aspect_ratio"] = RATIOS.get(ratio, ratio) if isinstance(ratio, str) else ratio
    return values, problems


def as_meant(request: Any) -> Any:
    """An external request, such as an event's, in the form that the API expects. For pydantic, before validation.

    Raises:
        ValueError: a value is ambiguous.
    """
    if not isinstance(request, dict):
        return request
    values, problems = normalize(request)
    if problems:
        raise ValueError("; ".join(f"{field} {problem}" for field, problem in problems.items()))
    return values


def line_ends(text: str) -> str:
    r"""The text with every line end as `\n`, so that the same text is the same video whatever program saved it."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def addresses(text: str) -> list[str]:
    """The URLs in a text: separated by spaces, line breaks, commas, semicolons or bars.

    Raises:
        CellError: a comma or semicolon could be part of a URL or separate two.
    """
    found = [part for part in _SEPARATOR.split(_FOREIGN.sub(" ", text)) if part]
    for url in found:
        before, *parts = re.split(r"[,;|+\uff0c\u3001\uff1b]|\\[rn]", url)
        for part in parts:
            if _URL.match(part) or (_IMAGE.search(before) and _IMAGE.search(part)):
                raise CellError(
                    "contains a comma, semicolon or plus that could be part of a URL or separate two. Put a space "
                    "between URLs, and write a comma inside one as %2C, a plus as %2B"
                )
            before = part
    return found


def _read(field: str, value: Any) -> Any:
    if field == "image_urls":
        _check_urls(value)
    if isinstance(value, str):
        return _READERS[field](value) if field in _READERS else value
    if isinstance(value, list):
        return [item for item in value if item is not None and item != ""]  # without empty entries
    if field == "remove_watermark" and isinstance(value, float):  # pandas writes 1.0 if the column has empty cells
        return SWITCHES.get(str(value), value)
    if field == "duration" and isinstance(value, float) and value.is_integer():
        return int(value)
    if field == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # as in a CSV cell. Not a float: 7.0 would be another video than 7
    return value


def _check_urls(value: Any) -> None:
    if any(isinstance(item, str) and _ESCAPED.search(item) for item in (value if isinstance(value, list) else [value])):
        raise CellError("contains a URL with &amp;, which is HTML for an ampersand. Write & instead")
    if isinstance(value, list) and any(isinstance(item, str) and len(_STARTS.findall(item)) > 1 for item in value):
        raise CellError("contains more than one URL in one entry of the list. Give each its own entry")


def _prompt(text: str) -> str:
    if _NO_PROMPT.fullmatch(text.strip()):
        raise CellError(
            "is what a spreadsheet shows for an error, or a program writes for no value, such as #NAME? or null. "
            "Enter the prompt; in a spreadsheet, put a ' before one that begins with = or -"
        )
    if text.strip() and not _INVISIBLE.sub("", text):
        raise CellError("has only invisible characters, such as a zero-width space. Enter the prompt")
    if _GARBLED.search(text):
        raise CellError(
            "has letters that were garbled by another encoding, such as \u00c3\u00a9 for \u00e9, or \ufffd. Enter "
            "them again, and save as UTF-8; in Excel, open a CSV file with Data > From Text/CSV"
        )
    return text


def _duration(text: str) -> Any:
    found = DURATION.fullmatch(text.strip())
    return int(found[1]) if found else text


def _aspect_ratio(text: str) -> str:
    ratio = text.strip().lower()
    time = _TIME.fullmatch(ratio)
    return SHOWN_RATIOS.get(time[1], time[1]) if time else ratio if ratio in RATIOS else text


def _options(text: str) -> Any:
    """A JSON object in a cell; any other text stays as it is, to be rejected."""
    try:
        found = json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError):
        return text
    return found if isinstance(found, dict) else text


def no_number(_: str) -> NoReturn:
    """Rejects NaN and Infinity, which JSON does not have."""
    raise ValueError


def _not_before(text: str) -> str:
    found = MIDNIGHT.fullmatch(text.strip())
    return found[1] if found else text.strip()


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "prompt": _prompt,
    "model": str.strip,
    "options": _options,
    "tags": lambda text: [tag for part in text.split(",") if (tag := part.strip())],
    "fallback_models": lambda text: re.split(r"[\s,;]+", text.strip()),
    "duration": _duration,
    "aspect_ratio": _aspect_ratio,
    "image_urls": addresses,
    "mode": lambda text: re.sub(r"[\s_]+", "-", text.strip().lower()),
    "remove_watermark": lambda text: SWITCHES.get(text.strip().lower(), text),
    "id": str.strip,
    "not_before": _not_before,
}
"""How the text of each field is read."""
