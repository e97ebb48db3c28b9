"""What the forms of the Prefect UI are made from."""

from typing import Any

import pytest
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

from flows.generate_batch import generate_batch
from flows.generate_video import generate_video
from flows.preview_then_final import preview_then_final
from flows.previews_then_finals import previews_then_finals
from flows.resolve_video import resolve_video

FLOWS = [generate_video, generate_batch, preview_then_final, previews_then_finals, resolve_video]
VIDEO = {"request": {"prompt": "Dunes"}}


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_each_parameter_is_one_field_and_no_choice_between_types(flow: Flow[..., Any]) -> None:
    for name, field in parameter_schema(flow.fn).properties.items():
        assert "anyOf" not in field, name
        assert "type" in field or "$ref" in field, name


@pytest.mark.parametrize(
    ("given", "key"),
    [({}, None), ({"key": None}, None), ({"key": ""}, None), ({"key": " "}, None), ({"key": "a-1"}, "a-1")],
)
def test_a_field_left_empty_is_one_that_was_not_given(given: dict[str, Any], key: str | None) -> None:
    assert generate_video.validate_parameters({**VIDEO, **given}).get("key") == key
    if given.get("key") != " ":
        validate(
            {**VIDEO, **given}, parameter_schema(generate_video.fn).model_dump_for_openapi(),
            raise_on_error=True, preprocess=True, allow_none_with_default=True,
        )  # fmt: skip


@pytest.mark.parametrize("wrong", [{"key": "A Fox"}, {"wait": "soon"}, {"request": {}}, {"request": "a fox"}])
def test_the_server_refuses_what_the_form_should_not_have_sent(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        validate({**VIDEO, **wrong}, parameter_schema(generate_video.fn).model_dump_for_openapi(), raise_on_error=True)
