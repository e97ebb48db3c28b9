"""The names of a generation's objects in the archive. Pure; others rely on them."""

from datetime import UTC, datetime
from typing import Final

VIDEO_TYPE: Final = "video/mp4"
POSTER_TYPE: Final = "image/jpeg"
SIDECAR_TYPE: Final = "application/json"


def folder(key: str, claimed_at: datetime, *, task_number: int = 1) -> str:
    """`videos/<yyyy>/<mm>/<dd>/<key>/`, by the day (UTC) of the first claim, which the ledger fixes for all reruns.

    The second and later tasks of a key have a folder of their own in it, `task-2/`: two tasks never share a name.
    """
    own = "" if task_number == 1 else f"task-{task_number}/"
    return f"videos/{claimed_at.astimezone(UTC):%Y/%m/%d}/{key}/{own}"


def video_name(number: int) -> str:
    """`video.mp4`, and for a second result `video-2.mp4`."""
    return "video.mp4" if number == 1 else f"video-{number}.mp4"


POSTER_NAME: Final = "poster.jpg"
SIDECAR_NAME: Final = "generation.json"
