"""The parameter schemas that the Prefect UI builds its forms from."""

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
def test_text_is_one_field_and_each_alternative_of_a_field_has_a_title(flow: Flow[..., Any]) -> None:
    for name, field in parameter_schema(flow.fn).properties.items():
        kinds = field.get("anyOf", ())
        assert all(kind.get("title") for kind in kinds), name
        assert not any(kind.get("type") == "string" for kind in kinds), name


@pytest.mark.parametrize("given", [{}, {"key": None}, {"key": ""}])
def test_empty_field_counts_as_not_given(given: dict[str, Any]) -> None:
    assert not generate_video.validate_parameters({**VIDEO, **given})["key"]


def test_form_with_unchanged_defaults_is_valid() -> None:
    for flow, filled in (
        (generate_video, VIDEO),
        (generate_batch, {}),
        (preview_then_final, VIDEO),
        (previews_then_finals, {}),
    ):
        schema = parameter_schema(flow.fn)
        shown = {name: field["default"] for name, field in schema.properties.items() if "default" in field}
        validate({**shown, **filled}, schema.model_dump_for_openapi(), raise_on_error=True)


@pytest.mark.parametrize(
    "invalid", [{"key": "A Fox"}, {"key": " "}, {"wait": "soon"}, {"request": {}}, {"request": "fox"}]
)
def test_server_rejects_invalid_form_values(invalid: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(invalid))):
        validate(
            {**VIDEO, **invalid}, parameter_schema(generate_video.fn).model_dump_for_openapi(), raise_on_error=True
        )
