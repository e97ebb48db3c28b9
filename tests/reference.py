"""Generates docs/reference.md from the commands, the flows and the models: `make reference`."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from prefect import Flow
from pydantic import BaseModel

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.cli.app import COMMANDS, LazyCommand
from flows.batch.calendar_rows import BatchItem

PAGE: Final = Path(__file__).parent.parent / "docs" / "reference.md"
HEAD: Final = """# Reference

Written from the code by `make reference`; a test fails where it is not what the code says.

- [Commands](#commands): what `sora` can do
- [Flows](#flows): what is deployed, and its parameters
- [Fields](#fields): of a request, a calendar's row, and the two blocks
"""
FLOWS: Final = (
    "generate_video",
    "generate_batch",
    "preview_then_final",
    "previews_then_finals",
    "collect_videos",
    "resolve_video",
    "report_costs",
    "check_setup",
)


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_commands(), *_flows(), *_fields()]) + "\n"


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    for name in COMMANDS:
        loaded = LazyCommand(name).load()
        yield f"### sora {name}\n"
        yield f"{inspect.cleandoc(loaded.help or '')}\n"
        rows = [_option(parameter) for parameter in loaded.params if parameter.name != "help"]
        yield from _table(("argument or option", "default", ""), rows)


def _option(parameter: Any) -> tuple[str, str, str]:
    names = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
    named = ", ".join(f"`{name}`" for name in names) or f"`{(parameter.name or '').upper()}`"
    default = "" if parameter.default in (None, False) or parameter.required else f"`{parameter.default}`"
    return named, "required" if parameter.required else default, parameter.help or ""


def _flows() -> Iterator[str]:
    yield "## Flows\n"
    for module in FLOWS:
        flow: Flow[..., Any] = getattr(import_module(f"flows.{module}"), module)
        yield f"### {flow.name}\n"
        yield f"{inspect.cleandoc(flow.fn.__doc__ or '').partition(chr(10) * 2 + 'Args:')[0]}\n"
        properties = flow.parameters.properties.items()
        required = set(flow.parameters.required)
        rows = [
            (f"`{name}`", _default(field, name in required), field.get("description", "")) for name, field in properties
        ]
        yield from _table(("parameter", "default", ""), rows)


def _fields() -> Iterator[str]:
    yield "## Fields\n"
    own = [name for name in BatchItem.model_fields if name not in VideoRequest.model_fields]
    yield from _model("Request", VideoRequest, list(VideoRequest.model_fields))
    yield from _model("Calendar row, beside those of a request", BatchItem, own)
    yield from _model("Block apixo-api", ApixoApi, [name for name in ApixoApi.model_fields if name[0] != "_"])
    yield from _model("Block video-archive", VideoArchive, list(VideoArchive.model_fields))


def _model(title: str, model: type[BaseModel], names: list[str]) -> Iterator[str]:
    yield f"### {title}\n"
    schema = model.model_json_schema()
    properties, required = schema["properties"], set(schema.get("required", ()))
    rows = [
        (f"`{name}`", _default(properties[name], name in required), properties[name].get("description", ""))
        for name in names
        if name in properties
    ]
    yield from _table(("field", "default", ""), rows)


def _default(field: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = field.get("default")
    return (
        "" if default in (None, [], {}, "") else f"`{str(default).lower() if isinstance(default, bool) else default}`"
    )


def _table(head: tuple[str, str, str], rows: list[tuple[str, str, str]]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(head)} |\n|---|---|---|"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(page())
