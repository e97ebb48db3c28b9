"""The label of an effect: its kind and its object, but no id, so the label is the same in every run. All pure."""

import json
import re
from typing import Any, Final
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict

UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
NOT_COUNTED: Final = re.compile(r"/(logs|admin|csrf-token|health|ready|version)\b")
"""Calls of Prefect's client that depend on the time or on its caches, and on which nothing depends."""
TELEMETRY: Final = ("prefect.flow-run.heartbeat", "prefect.block.")
"""Events without consequences. A heartbeat depends on the time."""


class Places(BaseModel):
    """Host and port of the provider, the store and Prefect."""

    model_config = ConfigDict(frozen=True)

    provider: str
    store: str
    prefect: str


STORED: Final = {
    "ledger": "record", "open": "marker", "tasks": "task owner", "requests": "request index", "probe": "probe",
    "incoming": "incoming", "budget": "monthly spend",
}  # fmt: skip
"""What each folder of the bucket contains. Videos and the files that belong to them keep their names."""


def label_of_request(places: Places, method: str, url: str, body: bytes) -> str | None:
    """What an HTTP request does; None: it does not count. Requests to the store have `label_of_store_call`."""
    parts = urlsplit(url)
    if parts.netloc == places.provider:
        return _of_provider(method, parts.path)
    if parts.netloc == places.store:
        return None
    if parts.netloc == places.prefect:
        return _of_prefect(method, parts.path.removeprefix("/api"), body)
    return f"{method} elsewhere"


def label_of_store_call(method: str, name: str) -> str:
    """What a call of the store does, regardless of which client makes it.

    Args:
        method: `GET`, `PUT`, `DELETE` or `LIST`.
        name: the object, or the prefix; empty: the bucket.
    """
    folder, _, rest = name.partition("/")
    if rest == ".probe":
        return f"{method} probe"
    if method == "LIST":
        return f"LIST {folder or 'bucket'}"
    return f"{method} {STORED.get(folder) or rest.rpartition('/')[2] or 'bucket'}"


def label_of_message(message: str | bytes) -> str | None:
    """What a message to Prefect's event socket contains; None: it does not count."""
    content: dict[str, Any] = json.loads(message)
    if "event" not in content:
        return "LISTEN events" if content.get("type") == "filter" else None
    name: str = content["event"]
    if name.startswith(TELEMETRY):
        return None
    if not name.startswith("prefect.task-run."):
        return f"EVENT {name}"
    task = re.match(r"[a-z_]*", str(content["resource"].get("prefect.resource.name", "")))
    return f"EVENT {name.removeprefix('prefect.')} {task.group() if task else '?'}"


def label_of_rename(target: str) -> str | None:
    """Which file gets its final name; None: it does not count."""
    name = target.rpartition("/")[2]
    return f"RENAME {name}" if name.endswith(".mp4") else None


def _of_provider(method: str, path: str) -> str:
    what = {"generateTask": "generation", "statusTask": "status", "results": "result", "samples": "image"}
    found = [name for part, name in what.items() if part in path.split("/")]
    return f"{method} {found[0] if found else path}"


def _of_prefect(method: str, path: str, body: bytes) -> str | None:
    if NOT_COUNTED.search(path):
        return None
    if path.endswith("/set_state"):
        state = json.loads(body)["state"]
        return f"STATE {'flow' if 'flow_runs' in path else 'task'} run {state['name'] or state['type']}"
    path = re.sub(r"(?<=/name/)[^/]+", "*", UUID.sub("*", path).strip("/"))
    return f"{method} prefect {path}"
