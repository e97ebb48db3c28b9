"""How the parameters of a flow look in the form of the Prefect UI."""

from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from flows.record.keys import Key


def _nothing_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


@dataclass(frozen=True, slots=True)
class _WithoutNone:
    """Leaves out of a schema that a value may be None, which the UI would show as a choice between two types."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made: dict[str, Any] = dict(handler(schema))
        (field,) = (kind for kind in made.pop("anyOf") if kind != {"type": "null"})
        if "pattern" in field:
            field["pattern"] = f"^$|{field['pattern']}"  # who has typed something and deletes it leaves an empty text
        return {**made, **field}


PLAIN: Final = (BeforeValidator(_nothing_if_blank), _WithoutNone())
"""For `Annotated[T | None, *PLAIN]`: one plain field, which may be left empty."""

OptionalKey = Annotated[Key | None, *PLAIN]
OptionalText = Annotated[str | None, *PLAIN]
