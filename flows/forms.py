"""How the parameters of a flow look in the form of the Prefect UI."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from flows.record.keys import Key

Empty = Annotated[None, Field(title="Empty")]
"""What a form calls an optional parameter that is left out, instead of `None`. For numbers and lists."""


@dataclass(frozen=True, slots=True)
class _WithoutNone:
    """Hides from a schema that a text may be None, which the UI would show as a choice between two types."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made: dict[str, Any] = dict(handler(schema))
        (field,) = (kind for kind in made.pop("anyOf") if kind != {"type": "null"})
        if "pattern" in field:
            field["pattern"] = f"^$|{field['pattern']}"
        return {**made, **field}


PLAIN = (BeforeValidator(lambda value: None if value == "" else value), _WithoutNone())
"""A plain text field, which may be left empty. Its default is "", which the form sends; the function gets None for it.
With a default of None the form would send null, which the server would reject as not being text."""

OptionalKey = Annotated[Key | None, *PLAIN]
OptionalText = Annotated[str | None, *PLAIN]
