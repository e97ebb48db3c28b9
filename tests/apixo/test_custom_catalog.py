"""A catalog of the user's own, named by `SORA_MODELS`."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from apixo import VideoRequest
from apixo.video_request import STORED

CATALOG = """{
  "future-1": {"source": "Our contract.", "modes": {"text-to-video": {"images": [0, 0]}}, "durations": "2-4"},
  "kling-2-6": {"source": "Our contract.", "modes": {"text-to-video": {"images": [0, 0]}}, "durations": [20]}
}"""


def test_custom_catalog_adds_models_and_overrides_built_in_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.json").write_text(CATALOG, encoding="utf-8-sig")  # with a BOM, as editors on Windows write it
    monkeypatch.setenv("SORA_MODELS", str(tmp_path / "models.json"))
    assert VideoRequest(prompt="A kite", model="kling-2-6").input()["duration"] == 20
    with pytest.raises(ValidationError, match="must be 2, 3 or 4 with future-1"):
        VideoRequest(prompt="A kite", model="future-1", duration=5)
    assert VideoRequest(prompt="A kite").body()["provider"] == "official"
    schema = VideoRequest.model_json_schema()["properties"]["model"]
    assert "future-1" in schema["anyOf"][0]["enum"]
    assert schema["anyOf"][1] == {"title": "Other", "type": "string"}
    assert schema["default"] == "sora-2"


def catalog_with(**changed: Any) -> str:
    """A catalog with one model, some of whose fields are changed."""
    return json.dumps({"x": {"source": "?", "modes": {"a": {"images": [0, 1]}}} | changed})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file"),
        ("{", "Invalid JSON"),
        ('{"a b": {}}', "a b"),
        ('{"x": {"source": "?", "modes": {}}}', "modes"),
        ('{"x": {"source": "?", "modes": {"a": {"images": [0, 0]}}, "price": 1}}', "price"),
        # Each of these would pay for something else than intended, or poll without a pause, or never poll.
        (catalog_with(durations="9-3"), "durations: a range of seconds goes from the lowest to the highest"),
        (catalog_with(durations=[0]), "durations.0"),
        (catalog_with(durations=[4], default_duration=9), "default_duration 9 is not one of its durations"),
        (catalog_with(modes={"a": {"images": [2, 1]}}), "images: must be a minimum of 0 or more"),
        (catalog_with(modes={"a": {"images": [-1, 1]}}), "images: must be a minimum of 0 or more"),
        (catalog_with(prompt_characters=[10, 1]), "prompt_characters: must be a minimum of 0 or more"),
        (catalog_with(image_side_pixels=[9, 2]), "image_side_pixels: must be a minimum of 0 or more"),
        (catalog_with(image_formats=[]), "image_formats"),
        (catalog_with(max_image_bytes=0), "max_image_bytes"),
        (catalog_with(ratio_field="prompt", ratios={"landscape": "16:9"}), "prompt is a request field"),
        (catalog_with(options={"duration": {"type": "integer"}}), "duration is a request field"),
        (catalog_with(options_with_images={"image_urls": []}), "image_urls is a request field"),
        (catalog_with(options={"sound": {"modes": ["b"]}}), "b is not one of its modes"),
        (catalog_with(options={"size": {"values": {"X": {"modes": ["b"]}}}}), "b is not one of its modes"),
        (catalog_with(options={"size": {"values": {"X": {"ratios": ["5:4"]}}}}), "5:4 is not one of its ratios"),
        (
            catalog_with(options={"size": {"values": {"x": {"images": [3, 1]}}}}),
            "images: must be a minimum of 0 or more",
        ),
        (catalog_with(options={"size": {"allowed": ["x"], "values": {"X": {}}}}), "X is not one of its values"),
        (catalog_with(options={"sound": {"type": "boolean", "values": {"yes": {}}}}), "yes is not one of its values"),
        (catalog_with(first_wait_seconds=-5), "first_wait_seconds"),
        (catalog_with(poll_interval_seconds=0), "poll_interval_seconds"),
        (catalog_with(poll_interval_seconds=float("inf")), "poll_interval_seconds"),
    ],
)
def test_invalid_catalog_stops_new_requests_with_the_reason(
    content: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "models.json").write_text(content)
    monkeypatch.setenv("SORA_MODELS", str(tmp_path / "models.json"))
    with pytest.raises(ValidationError, match=f"SORA_MODELS points to an invalid catalog .*{why}"):
        VideoRequest(prompt="A kite")
    # Requests that were already paid for stay readable.
    stored = VideoRequest.model_validate({"prompt": "A kite", "model": "kling-2-6", "duration": 5}, context=STORED)
    assert stored.seconds == 5


def test_value_may_require_a_ratio_that_is_given_as_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "models.json"
    options = {"size": {"allowed": ["1792*1024"]}, "quality": {"values": {"high": {"ratios": ["1792*1024"]}}}}
    path.write_text(catalog_with(ratio_field="size", options=options))
    monkeypatch.setenv("SORA_MODELS", str(path))
    assert VideoRequest(prompt="A kite", model="x", options={"size": "1792*1024", "quality": "high"}).model == "x"


def test_values_of_a_boolean_option_are_spelled_as_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = {"type": "boolean", "values": {"true": {"modes": ["b"]}}}
    modes = {"a": {"images": [0, 1]}, "b": {"images": [0, 1]}}
    (tmp_path / "models.json").write_text(catalog_with(modes=modes, options={"sound": sound}))
    monkeypatch.setenv("SORA_MODELS", str(tmp_path / "models.json"))
    for mode, on in (("a", False), ("b", True), ("b", False)):
        VideoRequest(prompt="A kite", model="x", mode=mode, options={"sound": on})
    with pytest.raises(ValidationError, match=r"sound\s+is for mode b only with x"):
        VideoRequest(prompt="A kite", model="x", mode="a", options={"sound": True})


def test_fallback_model_may_share_no_image_format_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"source": "?", "modes": {"a": {"images": [0, 1]}}}
    models = {"x": model | {"image_formats": ["JPEG"]}, "y": model | {"image_formats": ["PNG"]}}
    (tmp_path / "models.json").write_text(json.dumps(models))
    monkeypatch.setenv("SORA_MODELS", str(tmp_path / "models.json"))
    limits = VideoRequest(prompt="A kite", model="x", fallback_models=["y"]).image_limits
    assert limits.image_problem("PNG", 300, 300) == (
        "is a PNG, but the model and its fallback models have no format in common"
    )
