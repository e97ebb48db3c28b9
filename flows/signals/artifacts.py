"""Creates artifacts in the Prefect UI, with valid keys, and escapes text so that it cannot become markup."""

import hashlib
import re
from collections.abc import Awaitable
from typing import Final

from prefect.artifacts import acreate_markdown_artifact

from flows.signals.progress import run_logger

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that change the writing direction and so make a text look different than it is."""


async def show_markdown(text: str, *, key: str, description: str) -> None:
    """Creates a markdown artifact, if Prefect accepts it."""
    await shown(acreate_markdown_artifact(markdown=text, key=key, description=description), what=f"artifact {key}")


async def shown(making: Awaitable[object], *, what: str) -> None:
    """Waits for an artifact to be created. Logs a failure: it must not fail a run whose video is archived."""
    try:
        await making
    except Exception as error:  # noqa: BLE001 - whatever the error, the work is done
        run_logger().warning("Prefect did not accept %s (%s: %s).", what, type(error).__name__, error)


def artifact_key(key: str, *, kind: str = "video") -> str:
    """The artifact key for a generation's or batch's key.

    Prefect accepts only lowercase letters, digits and dashes, and treats artifacts with the same key as versions of
    one artifact. So a key with other characters gets a unique suffix.
    """
    plain_key = re.sub(r"[^a-z0-9]+", "-", key).strip("-")
    mark = "" if plain_key == key else f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return f"{kind}-{plain_key}{mark}"


def plain(text: str) -> str:
    """The text on one line, escaped for Markdown and HTML. PostgreSQL rejects NUL; other controls are invisible."""
    text = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", text)
    text = re.sub(r"^(\d+)\.(?= |$)", r"\1\\.", text)  # not the beginning of a numbered list
    # So that renderers that link everything that looks like a URL do not link it.
    return re.sub(r"(?i)(www)\.", r"\1&#46;", text.replace("://", "&#58;//").replace("@", "&#64;"))
