"""Request digests: which requests are for the same video. If a digest changed, known calendars would be paid again."""

from typing import Any

import pytest

from apixo import VideoRequest
from flows.batch.calendar_rows import BatchItem
from flows.record.indexes import is_same_video, request_digest

IMAGE = "https://example.com/start.jpg"
KITE = "A red kite over dunes, slow dolly in, golden hour"

# Computed by the last version whose requests had no model. They must never be recomputed.
PINNED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": KITE}, "4736a9728196446dce1662de66bb14b6abd16f0dca6e9b59c5aeb80fee992887"),
    ({"prompt": KITE, "duration": 8}, "184d685c154b4471052d8fadcc9cbfeef96d517ffe49687873a8464622ab9d2c"),
    (
        {"prompt": KITE, "duration": 12, "aspect_ratio": "portrait", "remove_watermark": False},
        "8af9f7db92617aa24456cd50359782ef02f819b9719960bcd9b52f343a7d4c01",
    ),
    (
        {"prompt": "The harbor wakes", "image_urls": [IMAGE]},
        "68dfe7f87e64300b7a05debb6bd4d76f6015e531bdf04317d308b462462fc3df",
    ),
    (
        {
            "prompt": "The harbor wakes",
            "image_urls": [f" {IMAGE} ", "http://example.org:8080/b.webp?sig=1"],
            "mode": "image-to-video",
            "duration": 8,
        },
        "656b9ecc8612d0a0950660d0182f11f22d6bd1c25db25e34ed83aae5cd846211",
    ),
    (
        {"prompt": " Ünïcode \u2028 \U0001f3ac\n", "mode": "text-to-video"},
        "c835a28b590e875e576559dce7b8f703957d8324313fda013df2cd285db4f904",
    ),
]


@pytest.mark.parametrize(("fields", "digest"), PINNED)
@pytest.mark.parametrize(
    "added",
    [
        {},
        {"model": "sora-2"},
        {"options": {}, "tags": [], "fallback_models": []},
        {"tags": ["spring", "sale"]},
        {"fallback_models": ["wan-9-preview"]},
    ],
    ids=str,
)
def test_existing_requests_keep_their_digest(fields: dict[str, Any], digest: str, added: dict[str, Any]) -> None:
    request = VideoRequest.model_validate(fields | added)
    assert request_digest(request) == digest
    assert BatchItem.model_validate(fields | added).name() == digest[:10]
    assert is_same_video(request, VideoRequest.model_validate(fields))


def test_omitted_fields_have_the_defaults_of_sora_2() -> None:
    short = VideoRequest(prompt=KITE)
    full = VideoRequest(prompt=KITE, duration=4, aspect_ratio="landscape", mode="text-to-video")
    assert request_digest(short) == request_digest(full)
    assert VideoRequest.model_validate({"prompt": KITE, "duration": None, "aspect_ratio": None}) == full


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "sora-2-pro"},
        {"model": "future-1"},
        {"model": "future-1", "options": {"sound": True}},
        {"options": {"sound": True}, "fallback_models": ["kling-3-0-turbo", "future-1"]},
    ],
    ids=str,
)
def test_different_model_or_options_change_the_digest(changed: dict[str, Any]) -> None:
    digests = {request_digest(VideoRequest.model_validate({"prompt": KITE} | fields)) for fields in ({}, changed)}
    assert len(digests) == 2


def test_catalog_defaults_do_not_change_the_digest(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a model is added to the catalog later, its calendars must not be paid for again."""
    fields: dict[str, Any] = {"prompt": KITE, "model": "future-1"}
    before = VideoRequest.model_validate(fields)
    file = tmp_path_factory.mktemp("catalog") / "models.json"
    file.write_text(
        '{"future-1": {"source": "a test", "modes": {"text": {"images": [0, 0]}}, "durations": [7],'
        ' "ratios": {"landscape": "16:9"}}}'
    )
    monkeypatch.setenv("SORA_MODELS", str(file))
    after = VideoRequest.model_validate(fields)
    assert after.input() == {"mode": "text", "prompt": KITE, "duration": 7, "aspect_ratio": "16:9"}
    assert request_digest(after) == request_digest(before)
