"""Where a video lies in the archive."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from flows.record import object_names


@pytest.mark.parametrize(
    ("claimed_at", "folder"),
    [
        (datetime(2026, 3, 1, 12, tzinfo=UTC), "videos/2026/03/01/kite/"),
        (datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC), "videos/2026/12/31/kite/"),
        # 01:00 on New Year's Day in Berlin is still the old year by UTC.
        (datetime(2027, 1, 1, 0, 30, tzinfo=timezone(timedelta(hours=1))), "videos/2026/12/31/kite/"),
    ],
)
def test_the_folder_is_named_by_the_day_of_the_claim_in_utc(claimed_at: datetime, folder: str) -> None:
    assert object_names.folder("kite", claimed_at) == folder


@pytest.mark.parametrize(("number", "name"), [(1, "video.mp4"), (2, "video-2.mp4"), (12, "video-12.mp4")])
def test_a_second_result_has_a_number(number: int, name: str) -> None:
    assert object_names.video_name(number) == name


def test_the_names_of_the_other_objects() -> None:
    assert (object_names.POSTER_NAME, object_names.SIDECAR_NAME) == ("poster.jpg", "generation.json")
