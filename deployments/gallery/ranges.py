"""The `Range` header of a request for a video. Pure."""

import re


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the number of bytes that are asked for; None: all of it, as for what is not understood.

    Raises:
        ValueError: nothing of the object is in the range.
    """
    asked = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip())
    if asked is None or not any(asked.groups()):
        return None
    first, last = asked.groups()
    if first and last and int(last) < int(first):
        return None
    if not first:
        start, end = max(size - int(last), 0), size - 1
    else:
        start, end = int(first), min(int(last or size - 1), size - 1)
    if start > end:
        raise ValueError(f"the object has {size} bytes")
    return start, end - start + 1
