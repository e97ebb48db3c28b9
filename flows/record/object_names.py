"""The names of a generation's objects in the archive. Pure; other programs rely on them."""

from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

VIDEOS: Final = "videos/"
POSTER_TYPE: Final = "image/jpeg"
SIDECAR_TYPE: Final = "application/json"


def folder(key: str, claimed_at: datetime, *, task_number: int = 1) -> str:
    """`videos/<yyyy>/<mm>/<dd>/<key>/`, by the day (UTC) of the first claim, which never changes.

    The second and later tasks of a key have subfolders, such as `task-2/`: two tasks never share a name.
    """
    own = "" if task_number == 1 else f"task-{task_number}/"
    return f"{VIDEOS}{day(claimed_at)}/{key}/{own}"


def day(moment: datetime) -> str:
    """The day in a folder's name, in UTC: `2026/11/28`."""
    return f"{moment.astimezone(UTC):%Y/%m/%d}"


def video_name(number: int) -> str:
    """`video.mp4`, and for a second result `video-2.mp4`."""
    return "video.mp4" if number == 1 else f"video-{number}.mp4"


POSTER_NAME: Final = "poster.jpg"
SIDECAR_NAME: Final = "generation.json"

_EXTENSIONS: Final = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
    "video/mp2t": "ts",
    "video/mpeg": "mpg",
    "video/ogg": "ogv",
    "video/x-flv": "flv",
    "video/webm": "webm",
    "video/x-ms-wmv": "wmv",
    "video/x-ivf": "ivf",
    "application/mxf": "mxf",
    "video/h264": "h264",
    "video/h265": "h265",
    "video/mp4v-es": "m4v",
    "video/av1": "obu",
    "video/x-yuv4mpeg": "y4m",
    "image/gif": "gif",
    "image/apng": "png",
    POSTER_TYPE: "jpg",
    SIDECAR_TYPE: "json",
}


def attributes(name: str, *, key: str, task_id: str, sha256: str, media_type: str) -> dict[str, str]:
    """An object's metadata: a descriptive file name, how long it may be cached, and its owner.

    Args:
        name: the object's name, with its folder.
        key: the generation's key. It is ASCII, and valid as a file name.
        task_id: any text. S3 metadata must be ASCII, so the id is percent-encoded.
    """
    folder_name, _, file_name = name.rpartition("/")
    stem, _, extension = file_name.rpartition(".")
    own_folder = folder_name.rpartition("/")[2]
    what = "" if own_folder == key else f"-{own_folder}"  # the folder of a second task
    what += stem.removeprefix("video") if stem.startswith("video") else f"-{stem}"
    return {
        "Content-Disposition": f'inline; filename="{key}{what}.{_EXTENSIONS.get(media_type, extension)}"',
        # Videos and posters are created once and never overwritten; a description may be completed.
        "Cache-Control": "no-cache" if media_type == SIDECAR_TYPE else "max-age=31536000, immutable",
        "key": key,
        "task": quote(task_id, safe=""),
        "sha256": sha256,
    }
