"""Renders the pages on the server. The templates escape every value."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, Response

from flows.record.generation import Generation

HERE: Final = Path(__file__).parent
SHOWN_CHARACTERS: Final = 240
"""How many characters of a prompt the overview shows, on two or three lines."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A style sheet, script or picture, with a URL that changes with its content."""

    data: bytes
    media_type: str
    url: str


def load_static() -> dict[str, StaticFile]:
    """The static files, by name. All are kept in memory: a request's path never leads to the disk."""
    types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    found = {}
    for path in sorted((HERE / "static").iterdir()):
        if path.suffix in types:
            data = path.read_bytes()
            url = f"/static/{path.name}?v={hashlib.sha256(data).hexdigest()[:12]}"
            found[path.name] = StaticFile(data, types[path.suffix], url)
    return found


class Pages:
    """Renders the templates. `base` is the path in the public URL, if it has one."""

    def __init__(self, static: dict[str, StaticFile], *, base: str) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals |= {"static": {name: base + file.url for name, file in static.items()}, "base": base}
        self._environment.filters |= {"day": _day, "moment": _moment, "start": _start, "seconds": _seconds, "mb": _mb}

    def page(self, name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        """Renders a page from the template of this name."""
        text = self._environment.get_template(name).render(**values)
        return HTMLResponse(text.encode("utf-8", "replace"), status, {"Cache-Control": "no-store"})


def _day(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    return f"{moment.day} {moment:%b %Y}"


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _start(text: str) -> str:
    """The beginning of a prompt, on one line."""
    line = " ".join(text[: 2 * SHOWN_CHARACTERS].split())
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS].rstrip()}…"


def _seconds(found: Generation) -> str:
    """The video's length, or the requested length."""
    seconds = found.video.duration_seconds if found.video else found.request.duration
    return "" if seconds is None else f"{seconds:.0f} s"


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 100_000 else f"{size_bytes / 1e3:.0f} kB"
