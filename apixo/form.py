"""How the fields of a request look in a form that is made from its JSON schema, such as Prefect's."""

from collections.abc import Callable, Iterable
from typing import Any

from apixo import catalogue

Change = Callable[[dict[str, Any]], None]


def select(values: Iterable[object], title: str, kind: str) -> Change:
    """A field as a select of these values, with a way to type another one. Without a default it may be left empty."""

    def change(schema: dict[str, Any]) -> None:
        schema["anyOf"] = [{"title": title, "type": kind, "enum": list(values)}, {"title": "Other", "type": kind}]
        if schema.get("default") is None:  # null last: what comes first is what a form begins with
            schema["anyOf"].append({"title": "Empty", "type": "null"})
            schema.pop("default", None)
        schema.pop("type", None)
        schema.pop("pattern", None)

    return change


def select_model(schema: dict[str, Any]) -> None:
    """The models of the catalogue; another one can be typed."""
    select(catalogue.models(), "In the catalogue", "string")(schema)
