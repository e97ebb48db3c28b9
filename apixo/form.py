"""How the fields of a request look in a form that is made from its JSON schema, such as Prefect's."""

from collections.abc import Callable, Iterable
from typing import Any

from apixo import catalogue

Change = Callable[[dict[str, Any]], None]


def select(values: Iterable[object], title: str, kind: str) -> Change:
    """A field as a select of these values, with a way to type another one. Without a default, empty is the default."""

    def change(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"title": title, "type": kind, "enum": list(values)}, {"title": "Other", "type": kind}]
        for name in ("type", "pattern", *(() if schema.get("default") else ("default",))):
            schema.pop(name, None)

    return change


def select_model(schema: dict[str, Any]) -> None:
    """The models of the catalogue; another one can be typed."""
    select(catalogue.models(), "In the catalogue", "string")(schema)
