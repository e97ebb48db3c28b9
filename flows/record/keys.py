"""The key of a generation: one key is one video, however often and by which process it is requested."""

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated, Final

from pydantic import Field

from flows.record.pipeline_errors import InvalidKeyError

PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,127}$"

Key = Annotated[str, Field(pattern=PATTERN)]


def check_key(key: str) -> str:
    """The key, if it is valid.

    Raises:
        InvalidKeyError: it is not.
    """
    # Not `re.match`: `$` would accept a trailing line feed.
    if re.fullmatch(PATTERN.strip("^$"), key) is None:
        raise InvalidKeyError(
            f"{key[:140]!r} cannot be a key. Use 1 to 128 lowercase letters, digits, dots, hyphens and underscores, "
            "beginning with a letter or digit, such as spring-sale-03.",
            key=key,
        )
    return key


def calendar_key(calendar: str) -> str:
    """The key of a calendar's batch: its file name, so the same file is the same batch, however it is started. Pure.

    Letters become lower case, other characters not allowed in a key become hyphens, and at most 80 characters are kept:
    `calendars/Spring Sale.csv` and `s3://bucket/spring-sale.jsonl` are both `spring-sale`.

    Args:
        calendar: a path, with slashes or backslashes, or `s3://bucket/object`.

    Raises:
        InvalidKeyError: the name has no characters allowed in a key, or this is another URL.
    """
    scheme, is_address, _ = calendar.strip().partition("://")
    if is_address and scheme.lower() != "s3":  # not in the message: it may contain a password or a signature
        raise InvalidKeyError("The calendar must be a path or s3://bucket/object, not another URL.")
    # NFC: macOS may store the same name with accents as separate characters.
    stem = PurePosixPath(unicodedata.normalize("NFC", calendar).replace("\\", "/")).stem
    key = re.sub(r"[^a-z0-9._]+", "-", stem.lower()).strip("-._")[:80]
    if not key:
        raise InvalidKeyError(
            f"The calendar's name, {calendar[-140:]!r}, has nothing that a key may have. Nothing was submitted. Give "
            "the batch a `key` (--key on the command line), such as spring-sale."
        )
    return key
