"""What each model accepts: checked before anything is paid for, and sent with the model's own names and values."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from apixo import VideoRequest, catalog
from apixo.catalog import ImageFormat, VideoModel, one_of, shape_of
from apixo.video_request import STORED
from deployments.sandbox.request_body import InvalidInputError, read_request

from .conftest import MakeClient
from .wire import envelope, http, reply, serving

IMAGE = "https://example.com/start.jpg"
SOUND = {"sound": True}
REFERENCE = {"generationType": "REFERENCE_2_VIDEO"}

REJECTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"model": "sora-2-pro", "duration": 5}, ["duration", "4, 8 or 12 with sora-2-pro", "the nearest is 4"]),
    ({"model": "sora-2-pro", "aspect_ratio": "4:3"}, ["aspect_ratio", "landscape or portrait with sora-2-pro"]),
    ({"model": "sora-2-pro", "options": {"size": "1*1"}}, ["options.size", "1280*720, 720*1280"]),
    (
        {"model": "sora-2-pro", "options": {"resolution": "720p"}},
        ["options.resolution", "for mode image-to-video only"],
    ),
    ({"model": "sora-2-pro", "image_urls": [IMAGE] * 2}, ["image_urls", "at most 1"]),
    ({"model": "sora-2-pro", "prompt": "x" * 5_001}, ["prompt", "1 to 5,000 characters with sora-2-pro"]),
    ({"model": "veo-3-1", "duration": 8}, ["duration", "is not supported by veo-3-1; leave it empty"]),
    ({"model": "veo-3-1", "mode": "text-to-video"}, ["mode", "quality or fast"]),
    ({"model": "veo-3-1", "options": {"generationType": "IMAGE"}}, ["options.generationType", "TEXT_2_VIDEO"]),
    (
        {"model": "veo-3-1", "image_urls": [IMAGE], "options": {"generationType": "TEXT_2_VIDEO"}},
        ["options.generationType", "requires 0 image_urls", "FIRST_AND_LAST_FRAMES_2_VIDEO would do"],
    ),
    (
        {"model": "veo-3-1", "mode": "fast", "image_urls": [IMAGE] * 3},
        ["options.generationType", "requires 1 or 2 image_urls", "REFERENCE_2_VIDEO would do"],
    ),
    (
        {"model": "veo-3-1", "mode": "quality", "image_urls": [IMAGE], "options": REFERENCE},
        ["options.generationType", "is for mode fast only with veo-3-1", "FIRST_AND_LAST_FRAMES_2_VIDEO would do"],
    ),
    (
        {"model": "veo-3-1", "mode": "fast", "aspect_ratio": "portrait", "image_urls": [IMAGE], "options": REFERENCE},
        ["options.generationType", "is for aspect_ratio 16:9 only"],
    ),
    ({"model": "veo-3-1", "mode": "fast", "options": REFERENCE}, ["requires 1, 2 or 3 image_urls", "TEXT_2_VIDEO"]),
    (
        {"model": "sora-2-pro", "aspect_ratio": "portrait", "options": {"size": "1792*1024"}},
        ["options.size", "is landscape, but aspect_ratio is portrait with sora-2-pro: leave one of them out"],
    ),
    (
        {"fallback_models": ["sora-2-pro"], "options": {"size": "720*1280"}},
        ["fallback_models", "is portrait, but aspect_ratio is landscape with sora-2-pro"],
    ),
    (
        {"model": "hailuo-2-3", "options": {"resolution": "1080p"}},
        ["options.resolution", "is for mode pro-text-to-video or pro-image-to-video only", "768p would do"],
    ),
    (
        {"model": "hailuo-2-3", "mode": "pro-text-to-video", "options": {"resolution": "768p"}},
        ["options.resolution", "is for mode standard-text-to-video or standard-image-to-video only", "1080p would do"],
    ),
    ({"model": "veo-3-1", "options": {"seed": "7"}}, ["options.seed", "of type integer"]),
    ({"model": "kling-2-6", "duration": 8, "options": SOUND}, ["duration", "5 or 10", "the nearest is 10"]),
    ({"model": "kling-2-6"}, ["options.sound", "is required by kling-2-6", "true or false"]),
    ({"model": "kling-2-6", "options": {"sound": "yes"}}, ["options.sound", "true or false"]),
    (
        {"model": "kling-2-6", "options": SOUND | {"sond": 1}},
        ["options", "sond", "does not support", "it supports sound"],
    ),
    ({"model": "kling-2-6", "options": SOUND, "aspect_ratio": "4:3"}, ["aspect_ratio", "landscape, portrait or 1:1"]),
    ({"model": "kling-2-6", "options": SOUND, "remove_watermark": False}, ["remove_watermark", "kling-2-6"]),
    ({"model": "kling-3-0-turbo", "duration": 16}, ["duration", "3 to 15", "the nearest is 15"]),
    ({"model": "seedance-1-5-pro", "options": SOUND, "prompt": "ab"}, ["prompt", "3 to 2,500"]),
    ({"model": "seedance-2-0", "aspect_ratio": "wide"}, ["aspect_ratio", "landscape, portrait or auto", "4:3"]),
    ({"model": "seedance-2-0", "mode": "first_and_last_frames"}, ["mode", "needs at least one URL"]),
    ({"model": "wan-2-5-video", "aspect_ratio": "landscape"}, ["aspect_ratio", "is not supported by wan-2-5-video"]),
    ({"model": "wan-2-5-video", "options": {"negative_prompt": "x" * 501}}, ["options.negative_prompt", "at most 500"]),
    ({"model": "hailuo-2-3", "mode": "pro-text-to-video", "duration": 6}, ["duration", "must be 5 with hailuo-2-3"]),
    ({"model": "future-1", "duration": 0}, ["duration", "1 to 3,600 with future-1"]),
    ({"model": "future-1", "duration": 4, "options": {"duration": 60}}, ["options", "duration", "is a separate field"]),
    ({"model": "wan-2-7-video", "options": {"image_urls": ["http://10.0.0.1/a.jpg"]}}, ["options", "image_urls"]),
    ({"model": "future-1", "options": {"a": {1, 2}}}, ["options", "plain JSON"]),
    ({"model": "future-1", "options": {"a": float("nan")}}, ["options", "plain JSON"]),
    ({"model": "future-1", "options": {"a": "\ud800"}}, ["options", "plain JSON"]),
    ({"model": "future-1", "options": {"a": "x" * 20_000}}, ["options", "20,000 characters"]),
    ({"model": "grok-video", "duration": 4}, ["duration", "6 to 30", "the nearest is 6"]),
]


@pytest.mark.parametrize(("fields", "words"), REJECTIONS, ids=[str(fields)[:60] for fields, _ in REJECTIONS])
def test_rejection_names_the_field_and_the_values_the_model_allows(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        VideoRequest.model_validate({"prompt": "A kite"} | fields)
    assert [word for word in words if word not in str(raised.value)] == []


def test_all_invalid_fields_are_reported_at_once() -> None:
    with pytest.raises(ValidationError) as raised:
        VideoRequest.model_validate({"prompt": "A kite", "model": "kling-2-6", "duration": 4, "aspect_ratio": "4:3"})
    wrong = [".".join(map(str, error["loc"])) for error in raised.value.errors()]
    assert wrong == ["duration", "aspect_ratio", "options.sound"]


@pytest.mark.parametrize("secret", ["https://me:hunter2@example.com/a.jpg", "me:hunter2@x"])
def test_rejections_do_not_repeat_possible_secrets(secret: str) -> None:
    for fields in ({"mode": secret}, {"aspect_ratio": secret[:40]}, {"options": {secret: secret}}, {"tags": [secret]}):
        with pytest.raises(ValidationError) as raised:
            VideoRequest.model_validate({"prompt": "A kite", "fallback_models": ["kling-3-0-turbo"]} | fields)
        assert "hunter2" not in str(raised.value)


INPUTS: list[tuple[dict[str, Any], dict[str, Any], int | None, str | None]] = [
    (
        {"model": "sora-2-pro", "aspect_ratio": "portrait"},
        {"mode": "text-to-video", "duration": 4, "size": "720*1280"}, 4, "portrait",
    ),
    (
        {"model": "sora-2-pro", "options": {"size": "1024*1792"}},
        {"mode": "text-to-video", "duration": 4, "size": "1024*1792"}, 4, "portrait",
    ),
    (
        {"model": "sora-2-pro", "duration": 8, "aspect_ratio": "portrait", "image_urls": [IMAGE]},
        {"mode": "image-to-video", "duration": 8, "image_urls": [IMAGE]}, 8, None,
    ),
    ({"model": "veo-3-1"}, {"mode": "quality", "aspect_ratio": "16:9"}, None, "landscape"),
    (
        {"model": "veo-3-1", "mode": "fast", "aspect_ratio": "auto", "image_urls": [IMAGE]},
        {
            "mode": "fast", "aspect_ratio": "auto", "image_urls": [IMAGE],
            "generationType": "FIRST_AND_LAST_FRAMES_2_VIDEO",
        }, None, None,
    ),
    (
        {"model": "veo-3-1", "mode": "fast", "image_urls": [IMAGE] * 3, "options": REFERENCE},
        {
            "mode": "fast", "aspect_ratio": "16:9", "image_urls": [IMAGE] * 3, "generationType": "REFERENCE_2_VIDEO",
        }, None, "landscape",
    ),
    (
        {"model": "hailuo-2-3", "mode": "pro-text-to-video", "options": {"resolution": "1080p"}},
        {"mode": "pro-text-to-video", "duration": 5, "resolution": "1080p"}, 5, None,
    ),
    (
        {"model": "sora-2-pro", "aspect_ratio": "portrait", "options": {"size": "1024*1792"}},
        {"mode": "text-to-video", "duration": 4, "size": "1024*1792"}, 4, "portrait",
    ),
    (
        {"model": "kling-2-6", "aspect_ratio": "1:1", "image_urls": [IMAGE, IMAGE], "options": SOUND},
        {"mode": "image-to-video", "duration": 5, "aspect_ratio": "1:1", "image_urls": [IMAGE, IMAGE], "sound": True},
        5, "square",
    ),
    (
        {"model": "kling-2-6", "aspect_ratio": "9:16", "options": {"sound": False}},
        {"mode": "text-to-video", "duration": 5, "aspect_ratio": "9:16", "sound": False}, 5, "portrait",
    ),
    (
        {"model": "seedance-2-0-mini", "aspect_ratio": "21:9", "image_urls": [IMAGE] * 3},
        {"mode": "omni_reference", "duration": 4, "aspect_ratio": "21:9", "image_urls": [IMAGE] * 3}, 4, "landscape",
    ),
    ({"model": "wan-2-5-video"}, {"mode": "text-to-video", "duration": 5}, 5, None),
    (
        {"model": "wan-2-7-video", "mode": "video-edit", "options": {"video_url": "https://example.com/a.mp4"}},
        {
            "mode": "video-edit", "duration": 5, "aspect_ratio": "16:9", "video_url": "https://example.com/a.mp4",
        }, 5, "landscape",
    ),
    (
        {"model": "hailuo-2-3", "mode": "pro-image-to-video", "image_urls": [IMAGE]},
        {"mode": "pro-image-to-video", "duration": 5, "image_urls": [IMAGE]}, 5, None,
    ),
    ({"model": "grok-video"}, {"mode": "text-to-video", "duration": 6, "aspect_ratio": "16:9"}, 6, "landscape"),
    ({"model": "grok-video", "mode": ""}, {"mode": "text-to-video", "duration": 6, "aspect_ratio": "16:9"}, 6,
     "landscape"),
    # What the catalog does not have is sent as it is.
    ({"model": "future-1"}, {"mode": "text-to-video"}, None, None),
    ({"model": "future-1", "mode": "", "aspect_ratio": ""}, {"mode": "text-to-video"}, None, None),
    (
        {"model": "future-1", "duration": 99, "aspect_ratio": "3:1", "mode": "x", "options": {"a": {"b": [1]}}},
        {"mode": "x", "duration": 99, "aspect_ratio": "3:1", "a": {"b": [1]}}, 99, "landscape",
    ),
    (
        {"model": "future-1", "image_urls": [IMAGE], "remove_watermark": False},
        {"mode": "image-to-video", "image_urls": [IMAGE], "remove_watermark": False}, None, None,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "sent", "seconds", "shape"), INPUTS, ids=[str(row[0])[:60] for row in INPUTS])
def test_common_fields_are_translated_for_each_model(
    fields: dict[str, Any], sent: dict[str, Any], seconds: int | None, shape: str | None
) -> None:
    request = VideoRequest.model_validate({"prompt": "A kite"} | fields)
    assert request.body() == {"request_type": "async", "input": {"prompt": "A kite"} | sent}
    assert (request.seconds, request.shape) == (seconds, shape)
    assert VideoRequest.model_validate_json(request.model_dump_json()) == request


@pytest.mark.parametrize("name", catalog.models())
def test_every_catalog_model_and_mode_can_be_requested(name: str) -> None:
    """In each of its modes, with nothing but what it requires. The sandbox accepts what is sent."""
    model = catalog.models()[name]
    assert model.source.endswith(".")
    for mode, limits in model.modes.items():
        request = VideoRequest(
            prompt="A kite over dunes",
            model=name,
            mode=mode,
            image_urls=[IMAGE] * limits.images[0],
            options={option: True for option, known in model.options.items() if known.required},
        )
        assert request.input()["mode"] == mode
        read_request(name, json.dumps(request.body()).encode())


def test_sandbox_validates_bodies_as_strictly_as_the_catalog() -> None:
    body = VideoRequest(prompt="A kite", model="kling-2-6", options=SOUND).body()
    for changed in ({"duration": 4}, {"duration": "5"}, {"aspect_ratio": "landscape"}, {"sound": 1}, {"mode": "x"}):
        with pytest.raises(InvalidInputError, match=f"Invalid parameters: input.{next(iter(changed))}"):
            read_request("kling-2-6", json.dumps(body | {"input": body["input"] | changed}).encode())


def test_stored_request_loads_whatever_the_current_catalog_says() -> None:
    fields = {"prompt": "A kite", "model": "kling-2-6", "duration": 7, "mode": "gone", "options": {"sund": 1}}
    stored = VideoRequest.model_validate(fields, context=STORED)
    assert (stored.seconds, stored.duration, stored.mode) == (7, 7, "gone")


@pytest.mark.parametrize(
    ("fields", "model", "sent"),
    [
        ({}, "kling-3-0-turbo", {"mode": "text-to-video", "duration": 4, "aspect_ratio": "16:9"}),
        ({"aspect_ratio": "portrait"}, "veo-3-1", {"mode": "quality", "aspect_ratio": "9:16"}),
        ({"duration": 4}, "sora-2-pro", {"mode": "text-to-video", "duration": 4, "size": "1280*720"}),
        (
            {"model": "grok-video", "duration": 8, "aspect_ratio": "portrait"},
            "sora-2",
            {"mode": "text-to-video", "duration": 8, "aspect_ratio": "portrait", "remove_watermark": True},
        ),
        (
            {"options": {"resolution": "720p", "sound": True}},
            "kling-3-0-turbo",
            {"mode": "text-to-video", "duration": 4, "aspect_ratio": "16:9", "resolution": "720p"},
        ),
    ],
)
def test_fallback_model_is_sent_its_own_field_values(fields: dict[str, Any], model: str, sent: dict[str, Any]) -> None:
    chain = [model, "seedance-1-5-pro"] if "options" in fields else [model]
    request = VideoRequest.model_validate({"prompt": "A kite", "fallback_models": chain} | fields)
    assert request.on(model).input() == {"prompt": "A kite"} | sent


def test_portrait_request_rejects_fallback_model_without_aspect_ratio() -> None:
    VideoRequest(prompt="A kite", model="grok-video", duration=6, fallback_models=["hailuo-2-3"])
    with pytest.raises(ValidationError, match="hailuo-2-3: aspect_ratio is not supported"):
        VideoRequest(
            prompt="A kite", model="grok-video", duration=6, aspect_ratio="portrait", fallback_models=["hailuo-2-3"]
        )


@pytest.mark.parametrize(
    ("models", "image", "words"),
    [
        (["sora-2"], ("WEBP", 100, 9_000), None),
        (["wan-2-5-video"], ("WEBP", 240, 8_000), None),
        (
            ["wan-2-5-video"],
            ("JPEG", 239, 8_000),
            "has 239 x 8000 pixels, but the model requires at least 240 on each side",
        ),
        (["wan-2-5-video"], ("JPEG", 240, 8_001), "allows at most 8,000 on each side"),
        (["hailuo-2-3"], ("PNG", 301, 20_000), None),
        (["hailuo-2-3"], ("PNG", 300, 400), "requires at least 301 on each side"),
        (["hailuo-2-3"], ("WEBP", 301, 400), "is a WEBP, but the model accepts JPEG or PNG"),
        (["wan-2-5-video", "hailuo-2-3"], ("WEBP", 301, 400), "JPEG or PNG"),
        (["wan-2-5-video", "hailuo-2-3"], ("JPEG", 301, 8_001), "at most 8,000 on each side"),
        (["wan-2-5-video", "hailuo-2-3"], ("JPEG", 250, 400), "at least 301 on each side"),
    ],
)
def test_image_limits_cover_every_model_that_may_receive_the_image(
    models: list[str], image: tuple[ImageFormat, int, int], words: str | None
) -> None:
    limits = VideoRequest(prompt="A kite", model=models[0], fallback_models=models[1:]).image_limits
    found = limits.image_problem(*image)
    assert (found is None) == (words is None)
    assert words is None or (found is not None and words in found)


def test_image_byte_limit_is_the_smallest_of_all_models() -> None:
    assert VideoRequest(prompt="A kite", model="wan-2-5-video").image_limits.max_image_bytes == 20_000_000
    chained = VideoRequest(prompt="A kite", model="wan-2-5-video", duration=5, fallback_models=["kling-3-0-turbo"])
    assert chained.image_limits.max_image_bytes == 10_000_000


def test_one_of_and_shape_of_and_duration_ranges() -> None:
    assert one_of([4]) == "4"
    assert one_of([5, 10]) == "5 or 10"
    assert one_of(range(3, 16)) == "3 to 15"
    assert [shape_of(text) for text in ("16:9", "720*1280", "7x7", "auto", None)] == [
        "landscape", "portrait", "square", None, None,
    ]  # fmt: skip
    assert VideoModel(source="?", modes={"a": {"images": (0, 0)}}, durations="2-4").durations == (2, 3, 4)


async def test_submit_and_status_urls_name_the_model(make_client: MakeClient) -> None:
    answers = ({"taskId": "t1"}, {"taskId": "t1", "state": "pending"})
    async with serving(*(reply(http(200, envelope(data))) for data in answers)) as server:
        client = make_client(server.url)
        request = VideoRequest(prompt="A kite", model="kling-2-6", options=SOUND)
        assert await client.submit_once(request) == "t1"
        assert (await client.status("t1", model=request.model)).state == "pending"
        assert server.lines() == [
            "POST /api/v1/generateTask/kling-2-6 HTTP/1.1",
            "GET /api/v1/statusTask/kling-2-6?taskId=t1 HTTP/1.1",
        ]
        assert json.loads(server.requests[0].body) == request.body()
