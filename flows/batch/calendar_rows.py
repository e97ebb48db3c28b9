"""The rows of a batch: the requested videos, valid or not.

No message repeats a value: a cell in the wrong column may contain an image's URL with a password.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import date, datetime
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from apixo import VideoRequest
from apixo.video_request import STORED, UNSUPPORTED
from flows.batch.cells import line_ends, normalize
from flows.record.generation import Generation
from flows.record.indexes import request_digest
from flows.record.keys import check_key

MAX_PROBLEMS: Final = 12
"""How many problems of one row are reported: one for each field. A line of junk can have 50,000. 5,000 such lines with
50 each made a table of 37 MB for the Prefect UI."""
ID_PATTERN: Final = r"^[a-z0-9._-]{1,91}$"
"""Characters and length of an id. A key has at most 128: a flow run's id (36), a hyphen, and this id (91)."""
MAX_SHOWN_CHARACTERS: Final = 80
"""How much of an external name a message repeats."""


def _day(value: object) -> object:
    # Pydantic alone would read 20260301 as seconds since 1970, a day long past: the video would be paid for at once.
    if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
        return value
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
        return date.fromisoformat(value)
    raise ValueError("must be a day written as YYYY-MM-DD, such as 2026-03-01")


class BatchItem(VideoRequest):
    """One video of a batch: a request, its id, and the day it is due."""

    model_config = ConfigDict(title="Batch item")

    id: str | None = Field(
        default=None,
        title="Id",
        description=(
            "Names the video within its batch: its key is `<batch key>-<id>`. Lowercase letters, digits, dots, "
            "hyphens and underscores. If empty, it is derived from the request, so a changed request is a new video."
        ),
        pattern=ID_PATTERN,
    )
    not_before: Annotated[date | None, BeforeValidator(_day)] = Field(
        default=None,
        title="Not before",
        description="The video is not generated before this day (UTC), YYYY-MM-DD. Leave empty to generate it at once.",
    )

    @field_validator("prompt", mode="before")
    @classmethod
    def _same_line_ends(cls, prompt: object) -> object:
        # Excel saves a file with CRLF, an editor or git the same file with LF. Both are the same calendar.
        return line_ends(prompt) if isinstance(prompt, str) else prompt

    def with_crlf(self) -> Self:
        """The item with CRLF, as older versions read it from a file with CRLF: they did not normalize line ends."""
        return self.model_copy(update={"prompt": self.prompt.replace("\n", "\r\n")})

    def request(self) -> VideoRequest:
        """The `VideoRequest` alone, which the ledger stores and compares."""
        return VideoRequest.model_validate(self.model_dump(include=set(VideoRequest.model_fields)), context=STORED)

    def name(self) -> str:
        """The id; without one, ten hex digits derived from the request alone, whatever other rows there are."""
        if self.id is not None:
            return self.id
        return request_digest(self.request())[:10]

    def key(self, batch_key: str) -> str:
        """The key of this video in a batch.

        Raises:
            InvalidKeyError: the batch key is invalid, or the key is longer than 128 characters.
        """
        return check_key(f"{batch_key}-{self.name()}")


class RowProblem(BaseModel):
    """What is wrong with a row. Without the value, which may be a secret."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="The field, such as `duration` or `image_urls.0`; empty for the row as a whole.")
    message: str = Field(description="What is allowed there.")


class BadRow(BaseModel):
    """An invalid row, with everything that is wrong with it."""

    model_config = ConfigDict(frozen=True)

    line: int = Field(description="Line of the file where the row begins, or position in the list; the first is 1.")
    id: str | None = Field(description="The row's id, if it has a valid one.")
    problems: tuple[RowProblem, ...]

    @classmethod
    def whole(cls, line: int, message: str) -> Self:
        """A row that is invalid as a whole."""
        return cls(line=line, id=None, problems=(RowProblem(field="", message=message),))


class Row(BaseModel):
    """A valid row."""

    model_config = ConfigDict(frozen=True)

    line: int = Field(description="Line of the file where the row begins, or position in the list; the first is 1.")
    item: BatchItem


FIELDS: Final = tuple(BatchItem.model_fields)
ALLOWED: Final = {
    "prompt": "must be text of 1 to 10,000 characters",
    "model": "must be a model's name, such as sora-2",
    "duration": "must be 4, 8 or 12 seconds with sora-2",
    "aspect_ratio": "must be landscape (16:9) or portrait (9:16), or another one that the model supports, such as 1:1",
    "image_urls": (
        "must be public http:// or https:// URLs of JPG, PNG or WebP images, of at most 2,000 characters each, "
        "complete, without brackets, user name or password; or s3://bucket/object; or, in a calendar, relative paths"
    ),
    "mode": "must be text-to-video or image-to-video, or another one that the model has, or be left out",
    "remove_watermark": "must be true or false, yes or no; an empty cell means true",
    "options": 'must be an object such as {"sound": true}',
    "tags": "must be at most 20 labels, each of 1 to 50 letters, digits, spaces and . : + - _",
    "fallback_models": "must be at most 5 model names",
    "id": "must be 1 to 91 lowercase letters, digits, dots, hyphens and underscores",
    "not_before": "must be a day written as YYYY-MM-DD, such as 2026-03-01; 3/1/2026 is ambiguous",
}
"""What each field allows, unless the model decides that. Pydantic's and urllib's own messages are not used: some
repeat a part of the URL."""


OF_THE_MODEL: Final = frozenset({"duration", "aspect_ratio", "image_urls", "mode", "remove_watermark", "options"})
"""Fields whose validity depends on the model."""


def mark_duplicates(rows: Iterable[Row | BadRow]) -> list[Row | BadRow]:
    """Turns each row with the same key as an earlier row into a `BadRow`: one key is one video. Pure.

    The ids of bad rows count too. Otherwise the other row would take the key, and be paid, before the bad one is
    fixed. Marking twice changes nothing.
    """
    first: dict[str, int] = {}
    marked: list[Row | BadRow] = []
    for row in rows:
        row_id = row.item.id if isinstance(row, Row) else row.id
        name = row.item.name() if isinstance(row, Row) else row_id
        line = row.line if name is None else first.setdefault(name, row.line)
        if line == row.line:
            marked.append(row)
            continue
        same = "has the same id as" if row_id is not None else "asks for the same video as"
        wanted = "another id" if row_id is not None else "an id"
        problem = RowProblem(
            field="id", message=f"{same} line {line}, and one id is one video. Give it {wanted} if you want both"
        )
        others = row.problems if isinstance(row, BadRow) else ()
        marked.append(BadRow(line=row.line, id=row_id, problems=tuple(dict.fromkeys((*others, problem)))))
    return marked


def check_row(line: int, fields: dict[str, Any], problems: Sequence[RowProblem] = ()) -> Row | BadRow:
    """A row from its fields. Reports every problem, not just the first. Pure.

    Args:
        fields: values of JSON types; texts are read like cells.
        problems: problems that are already known.
    """
    remaining, unclear = normalize(fields)
    found = [*problems, *(RowProblem(field=field, message=message) for field, message in unclear.items())]
    count = len(found)
    remaining = _without({problem.field for problem in found} - remaining.keys(), remaining)
    known_wrong: set[str] = set()
    while True:
        try:
            item = BatchItem.model_validate(remaining, strict=True)
        except ValidationError as error:
            details = error.errors(include_url=False, include_context=False, include_input=False)
            # A field that was left out because it is wrong is not missing.
            details = [detail for detail in details if detail["loc"][0] not in known_wrong]
            if not details:
                break
        else:
            break
        # The allowed fields are listed once for each row: a row can have many fields that do not exist.
        unknown = next((detail for detail in details if detail["loc"][0] not in FIELDS), None)
        found += [_problem(detail, lists_allowed=detail is unknown) for detail in details[:MAX_PROBLEMS]]
        count += len(details)
        # Pydantic checks the row as a whole only once every field is valid. So validate again without the invalid ones.
        wrong = {str(detail["loc"][0]) for detail in details}
        remaining = _without(wrong, remaining)
        known_wrong |= wrong
    if not found:
        return Row(line=line, item=item)
    if count > MAX_PROBLEMS:
        found[MAX_PROBLEMS:] = [RowProblem(field="", message=f"has {count - MAX_PROBLEMS:,} more problems")]
    row_id = normalize({"id": fields.get("id")})[0].get("id")
    valid = isinstance(row_id, str) and re.fullmatch(ID_PATTERN.strip("^$"), row_id) is not None
    return BadRow(line=line, id=row_id if valid else None, problems=tuple(found))


def keys_of(rows: Sequence[Row | BadRow], batch_key: str) -> list[str]:
    """Every key under which the ledger may have these rows. Pure."""
    items = [row.item for row in rows if isinstance(row, Row)]
    earlier = [item.with_crlf() for item in items if "\n" in item.prompt]
    return list(dict.fromkeys(item.key(batch_key) for item in (*items, *earlier)))


def as_submitted(row: Row | BadRow, batch_key: str, known: Mapping[str, Generation]) -> Row | BadRow:
    """The row, with CRLF in its prompt if an older version, which did not normalize line ends, submitted it so. Pure.

    The row keeps the key and text from then; otherwise it would be paid for again.

    Args:
        known: the generations that the ledger has for `keys_of`.
    """
    if isinstance(row, BadRow) or "\n" not in row.item.prompt:
        return row
    earlier = row.item.with_crlf()
    found, today = known.get(earlier.key(batch_key)), known.get(row.item.key(batch_key))
    if found is None or found.request != earlier.request():
        return row
    if today is not None and today.request == row.item.request():
        return row
    return row.model_copy(update={"item": earlier})


def _without(wrong: Set[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without the wrong ones, adjusted so that leaving them out causes no further problems."""
    remaining = {name: value for name, value in fields.items() if name not in wrong}
    if "prompt" in wrong:
        remaining["prompt"] = "-"
    if "image_urls" in wrong:
        remaining.pop("mode", None)
    if "model" in wrong:  # what the intended model accepts is unknown
        remaining = {name: value for name, value in remaining.items() if name not in OF_THE_MODEL}
    return remaining


def _problem(detail: ErrorDetails, *, lists_allowed: bool) -> RowProblem:
    name = str(detail["loc"][0])
    if name not in FIELDS:
        allowed = f". {allowed_fields()}" if lists_allowed else ""
        return RowProblem(field=shown(name), message=f"is not a field{suggestion(name)}{allowed}")
    message = {"missing": "is missing", UNSUPPORTED: detail["msg"]}.get(detail["type"], ALLOWED[name])
    return RowProblem(field=".".join(str(part) for part in detail["loc"]), message=message)


def allowed_fields() -> str:
    """Which fields a row may have, and what to do with others."""
    return (
        f"Allowed are {FIELDS[0]}, which is required, and {', '.join(FIELDS[1:])}. To keep others in a calendar, put "
        "a # before their name, or turn on ignore_columns (--ignore-columns on the command line)"
    )


def suggestion(name: str) -> str:
    """The field that was probably meant; empty if none is similar."""
    near = difflib.get_close_matches(name[:MAX_SHOWN_CHARACTERS].lower(), FIELDS, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def shown(name: str) -> str:
    """An external name, safe to repeat in a message: short, quoted, and not a URL."""
    if "@" in name or "/" in name:
        return "(not shown)"
    return repr(name if len(name) <= MAX_SHOWN_CHARACTERS else f"{name[:MAX_SHOWN_CHARACTERS]}…")
