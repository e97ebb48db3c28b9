"""The key of a generation: one key is one video, whoever asks for it and how often."""

import re
from typing import Annotated, Final

from pydantic import Field

from flows.errors import InvalidKeyError

PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{0,127}$"

Key = Annotated[str, Field(pattern=PATTERN)]


def check_key(key: str) -> str:
    """The key, if the ledger takes it.

    Raises:
        InvalidKeyError: it does not.
    """
    # Not `re.match`: `$` would let a line feed at the end pass.
    if re.fullmatch(PATTERN.strip("^$"), key) is None:
        raise InvalidKeyError(
            f"{key[:140]!r} cannot be a key. Use 1 to 128 lower-case letters, digits, dots, hyphens and underscores, "
            "beginning with a letter or digit, such as spring-sale-03.",
            key=key,
        )
    return key
