"""Parameter types that control how a flow's form looks in the Prefect UI."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from flows.record.keys import Key

Empty = Annotated[None, Field(title="Empty")]
"""The form's label for an omitted optional parameter, instead of `None`. For numbers and lists."""


@dataclass(frozen=True, slots=True)
class _WithoutNone:
    """Removes null from a text's schema: the UI would show it as a choice between two types."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made: dict[str, Any] = dict(handler(schema))
        (field,) = (kind for kind in made.pop("anyOf") if kind != {"type": "null"})
        if "pattern" in field:
            field["pattern"] = f"^$|{field['pattern']}"
        return {**made, **field}


PLAIN = (BeforeValidator(lambda value: None if value == "" else value), _WithoutNone())
"""A plain text field that may be left empty. Its default is "", which the form sends and the flow receives as None.
With a default of None, the form would send null, which the server rejects because it is not text."""

OptionalKey = Annotated[Key | None, *PLAIN]
OptionalText = Annotated[str | None, *PLAIN]
