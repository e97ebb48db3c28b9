"""The names of a video's objects in the archive, and the attributes that they carry."""

from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import unquote

import pytest

from flows.record import object_names


@pytest.mark.parametrize(
    ("claimed_at", "folder"),
    [
        (datetime(2026, 3, 1, 12, tzinfo=UTC), "videos/2026/03/01/kite/"),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "videos/2026/12/31/kite/"),
        # 00:30 on New Year's Day in Berlin is still the old year in UTC.
        (datetime(2027, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "videos/2026/12/31/kite/"),
    ],
)
def test_folder_is_named_by_the_utc_day_of_the_claim(claimed_at: datetime, folder: str) -> None:
    assert object_names.folder("kite", claimed_at) == folder


@pytest.mark.parametrize(("number", "name"), [(1, "video.mp4"), (2, "video-2.mp4"), (12, "video-12.mp4")])
def test_second_result_is_numbered(number: int, name: str) -> None:
    assert object_names.video_name(number) == name


def test_poster_and_sidecar_names() -> None:
    assert (object_names.POSTER_NAME, object_names.SIDECAR_NAME) == ("poster.jpg", "generation.json")


@pytest.mark.parametrize(
    ("name", "media_type", "file_name"),
    [
        ("videos/2026/03/01/kite.1/video.mp4", "video/mp4", "kite.1.mp4"),
        ("videos/2026/03/01/kite.1/video-2.mp4", "video/mp4", "kite.1-2.mp4"),
        ("videos/2026/03/01/kite.1/video.mp4", "video/x-matroska", "kite.1.mkv"),
        ("videos/2026/03/01/kite.1/video.mp4", "video/webm", "kite.1.webm"),
        ("videos/2026/03/01/kite.1/video.mp4", "application/octet-stream", "kite.1.mp4"),
        ("videos/2026/03/01/kite.1/task-2/video.mp4", "video/quicktime", "kite.1-task-2.mov"),
        ("videos/2026/03/01/kite.1/poster.jpg", "image/jpeg", "kite.1-poster.jpg"),
        ("videos/2026/03/01/kite.1/generation.json", "application/json", "kite.1-generation.json"),
    ],
)
def test_content_disposition_has_a_descriptive_file_name(name: str, media_type: str, file_name: str) -> None:
    found = object_names.attributes(name, key="kite.1", task_id="task_1", sha256="ab", media_type=media_type)
    assert found["Content-Disposition"] == f'inline; filename="{file_name}"'


@pytest.mark.parametrize("task_id", ["task_1", "aufgabe ü", "a/b%c", "\U0001f3ac"])
def test_object_attributes_are_ascii(task_id: str) -> None:
    found = object_names.attributes("v/k/video.mp4", key="k", task_id=task_id, sha256="ab", media_type="video/mp4")
    assert all(value.isascii() and value.isprintable() for value in found.values())
    assert unquote(found["task"]) == task_id
    assert (found["key"], found["sha256"]) == ("k", "ab")
