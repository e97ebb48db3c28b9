"""What is rejected before anything is sent, and what is sent."""

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from apixo import VideoRequest
from deployments.sandbox import SandboxServer
from deployments.sandbox.request_body import GenerationRequest

from .conftest import KEY

IMAGE = "https://example.com/start.jpg"

REJECTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["prompt", "required"]),
    ({"prompt": ""}, ["prompt", "at least 1 character"]),
    ({"prompt": " \n\t "}, ["prompt", "blank"]),
    ({"prompt": "x" * 10_001}, ["prompt", "at most 10000 characters"]),
    ({"prompt": None}, ["prompt", "string"]),
    ({"prompt": 7}, ["prompt", "string"]),
    ({"duration": 5}, ["duration", "4, 8 or 12"]),
    ({"duration": 0}, ["duration", "4, 8 or 12"]),
    ({"duration": 6}, ["duration", "the nearest is 4 or 8"]),
    ({"duration": "4"}, ["duration", "valid integer"]),
    ({"duration": 4.0}, ["duration", "valid integer"]),
    ({"duration": True}, ["duration", "valid integer"]),
    ({"aspect_ratio": "square"}, ["aspect_ratio", "landscape or portrait"]),
    ({"aspect_ratio": "Landscape"}, ["aspect_ratio", "landscape or portrait"]),
    ({"aspect_ratio": "16:9"}, ["aspect_ratio", "landscape or portrait"]),
    ({"mode": "video-to-video"}, ["mode", "text-to-video or image-to-video"]),
    ({"mode": "image-to-video"}, ["mode", "'image-to-video'", "needs at least one URL in image_urls"]),
    ({"mode": "text-to-video", "image_urls": [IMAGE]}, ["mode", "'text-to-video'", "does not support image_urls"]),
    ({"remove_watermark": "perhaps"}, ["remove_watermark", "boolean"]),
    ({"style": "noir"}, ["style", "not permitted"]),
    ({"image_urls": IMAGE}, ["image_urls", "list"]),
    ({"image_urls": ["file:///etc/passwd"]}, ["image_urls.0", "'file'", "http:// or https://"]),
    ({"image_urls": [IMAGE, "ftp://host/start.jpg"]}, ["image_urls.1", "'ftp'", "http:// or https://"]),
    ({"image_urls": ["s3://bucket"]}, ["image_urls.0", "s3://bucket/object"]),
    ({"image_urls": ["s3://user:pass@bucket/a.jpg"]}, ["image_urls.0", "s3://bucket/object"]),
    ({"image_urls": ["s3://bucket/a.jpg?X-Amz-Signature=0"]}, ["image_urls.0", "s3://bucket/object"]),
    ({"image_urls": ["start.jpg"]}, ["image_urls.0", "'none'", "http:// or https://"]),
    ({"image_urls": ["data:image/png;base64,AAAA"]}, ["image_urls.0", "'data'", "http:// or https://"]),
    ({"image_urls": [""]}, ["image_urls.0", "http:// or https://"]),
    ({"image_urls": ["https:///start.jpg"]}, ["image_urls.0", "no host", "https://example.com/start.jpg"]),
    ({"image_urls": ["https://me:secret@example.com/a.jpg"]}, ["image_urls.0", "user name or password"]),
    ({"image_urls": ["https://me@example.com/a.jpg"]}, ["image_urls.0", "user name or password"]),
    ({"image_urls": ["https://[::1/a.jpg"]}, ["image_urls.0", "not a URL", "http:// or https://"]),
    ({"image_urls": ["https://example.com:99999/a.jpg"]}, ["image_urls.0", "not a URL", "http:// or https://"]),
    ({"image_urls": ["https://exam ple.com/a.jpg"]}, ["image_urls.0", "spaces or control characters in its host"]),
    ({"image_urls": ["https://example.com/" + "a" * 2_000]}, ["image_urls.0", "at most 2000 characters"]),
    ({"image_urls": [None]}, ["image_urls.0", "string"]),
    ({"model": "../statusTask/sora-2"}, ["model", "pattern"]),
    ({"model": "sora-2/batches"}, ["model", "pattern"]),
    ({"options": {"sound": True}}, ["options", "sound", "sora-2 does not support"]),
    ({"tags": ["a/b"]}, ["tags.0", "pattern"]),
    ({"tags": ["x" * 51]}, ["tags.0", "pattern"]),
    ({"tags": [str(n) for n in range(21)]}, ["tags", "at most 20"]),
    ({"fallback_models": ["a b"]}, ["fallback_models.0", "pattern"]),
    ({"fallback_models": ["kling-2-6"]}, ["fallback_models", "kling-2-6", "options.sound", "is required"]),
    ({"model": "kling-2-6", "duration": 5}, ["options.sound", "is required by kling-2-6", "true or false"]),
]


@pytest.mark.parametrize(("fields", "words"), REJECTIONS, ids=[str(fields)[:60] for fields, _ in REJECTIONS])
def test_rejection_names_the_field_and_the_allowed_values(fields: dict[str, Any], words: list[str]) -> None:
    prompt = {"prompt": "A kite"} if fields else {}
    with pytest.raises(ValidationError) as raised:
        VideoRequest.model_validate(prompt | fields)
    message = str(raised.value)
    assert [word for word in words if word not in message] == []


def test_rejection_does_not_repeat_the_password() -> None:
    with pytest.raises(ValidationError) as raised:
        VideoRequest(prompt="A kite", image_urls=["https://me:hunter2@example.com/a.jpg"])
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://example.com/a b.jpg", "https://example.com/a%20b.jpg"),
        ("example.com/a.jpg", "https://example.com/a.jpg"),
        ("//example.com/a.jpg", "https://example.com/a.jpg"),
        ("HTTPS://münchen.example/ü.jpg", "https://xn--mnchen-3ya.example/%C3%BC.jpg"),
        ("https://exam\nple.com/a.jpg", "https://example.com/a.jpg"),
        ("https:\\\\example.com\\a.jpg", "https://example.com/a.jpg"),
        ("https://Example.com/%7Ea.jpg?sig=a%2Fb+c%3D&x='|", "https://Example.com/%7Ea.jpg?sig=a%2Fb+c%3D&x='|"),
    ],
)
def test_image_url_is_sent_normalized(url: str, sent: str) -> None:
    request = VideoRequest(prompt="A kite", image_urls=[url])
    assert request.body()["input"]["image_urls"] == [sent]
    assert VideoRequest(prompt="A kite", image_urls=[sent]) == request


BODIES: list[tuple[dict[str, Any], str | None, dict[str, Any]]] = [
    (
        {"prompt": "A kite"},
        None,
        {
            "request_type": "async",
            "provider": "official",
            "input": {
                "mode": "text-to-video",
                "prompt": "A kite",
                "duration": 4,
                "aspect_ratio": "landscape",
                "remove_watermark": True,
            },
        },
    ),
    (
        {
            "prompt": " A kite, ünïcode ",
            "duration": 12,
            "aspect_ratio": "portrait",
            "image_urls": [f" {IMAGE} ", "http://example.org:8080/b.webp?sig=1"],
            "remove_watermark": False,
        },
        "https://callbacks.example.com/apixo/k/t",
        {
            "request_type": "callback",
            "callback_url": "https://callbacks.example.com/apixo/k/t",
            "provider": "official",
            "input": {
                "mode": "image-to-video",
                "prompt": " A kite, ünïcode ",
                "duration": 12,
                "aspect_ratio": "portrait",
                "image_urls": [IMAGE, "http://example.org:8080/b.webp?sig=1"],
                "remove_watermark": False,
            },
        },
    ),
]


@pytest.mark.parametrize(("fields", "callback_url", "body"), BODIES)
def test_body_is_as_documented(fields: dict[str, Any], callback_url: str | None, body: dict[str, Any]) -> None:
    assert VideoRequest.model_validate(fields).body(callback_url) == body


def test_empty_callback_url_means_polling() -> None:
    body = VideoRequest(prompt="A kite").body("")
    assert body["request_type"] == "async"
    assert "callback_url" not in body


def test_longest_prompt_is_accepted() -> None:
    assert len(VideoRequest(prompt="ä" * 10_000).prompt) == 10_000


def test_requests_with_the_same_content_are_equal() -> None:
    assert VideoRequest(prompt="A kite") == VideoRequest(prompt="A kite", mode="text-to-video", duration=4)
    assert VideoRequest(prompt="A kite") != VideoRequest(prompt="A kite", duration=8)


def test_request_is_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        VideoRequest(prompt="A kite").duration = 8  # type: ignore[misc]


urls = st.builds(
    "{}://{}{}/{}".format,
    st.sampled_from(["http", "https"]),
    st.from_regex(r"[a-z]{1,10}(\.[a-z]{2,5}){0,2}", fullmatch=True),
    st.sampled_from(["", ":8080"]),
    st.from_regex(r"[A-Za-z0-9%_.-]{0,20}(\?[a-z]=[a-z0-9]{1,5})?", fullmatch=True),
)
requests = st.builds(
    VideoRequest,
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200).filter(str.strip),
    duration=st.sampled_from([4, 8, 12]),
    aspect_ratio=st.sampled_from(["landscape", "portrait"]),
    image_urls=st.lists(urls, max_size=3),
    remove_watermark=st.booleans(),
)


@given(requests)
def test_request_survives_a_json_round_trip(request: VideoRequest) -> None:
    assert VideoRequest.model_validate_json(request.model_dump_json()) == request


@given(requests, st.none() | urls)
def test_sandbox_model_accepts_every_valid_body(request: VideoRequest, callback_url: str | None) -> None:
    sent = json.loads(json.dumps(request.body(callback_url)))
    parsed = GenerationRequest.model_validate_json(json.dumps(sent))
    assert parsed.input.model_dump(exclude_none=True) == sent["input"]
    assert parsed.active_callback_url == callback_url


# The server is shared, but no state of it matters here. No deadline: the machine may be slow.
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests)
def test_running_sandbox_accepts_every_valid_body(
    realtime_sandbox_server: SandboxServer, request: VideoRequest
) -> None:
    answer = httpx.post(
        f"{realtime_sandbox_server.base_url}/api/v1/generateTask/sora-2",
        json=request.body(),
        headers={"Authorization": f"Bearer {KEY}"},
        trust_env=False,
    )
    assert (answer.status_code, answer.json()["code"]) == (200, 200)
