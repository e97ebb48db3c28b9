"""What the Prefect UI shows of an archived video: a table, a small picture, and links without signatures."""

import asyncio
import base64
import hashlib
import io
import re
from collections.abc import Awaitable
from typing import Final

from PIL import Image
from prefect.artifacts import acreate_markdown_artifact

from blocks import VideoArchive
from flows.record.generation import Generation
from flows.signals.progress import run_logger

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of writing: they show another text than there is."""


THUMBNAIL_PIXELS: Final = 320
"""Longest side of the artifact's picture. At this size it is some 10 to 20 KB, which the Prefect database can hold."""

THUMBNAIL_QUALITY: Final = 80


async def publish(generation: Generation, archive: VideoArchive, *, poster: bytes | None) -> None:
    """Creates the artifact of one generation, with its poster as a small picture."""
    thumbnail = await asyncio.to_thread(_thumbnail, poster) if poster else None
    made = acreate_markdown_artifact(
        markdown=markdown(generation, archive, thumbnail=thumbnail),
        key=artifact_key(generation.key),
        description=f"Video {generation.key}",
    )
    await shown(made, what=f"the artifact of {generation.key}")


def _thumbnail(poster: bytes) -> bytes | None:
    try:
        with Image.open(io.BytesIO(poster)) as image:
            image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
            made = io.BytesIO()
            image.save(made, "JPEG", quality=THUMBNAIL_QUALITY)
    except OSError:  # a picture less in the artifact
        return None
    return made.getvalue()


async def shown(making: Awaitable[object], *, what: str) -> None:
    """Waits for an artifact to be made. A Prefect server that is away must not fail what is archived already."""
    try:
        await making
    except Exception as error:  # noqa: BLE001 - whatever keeps a picture from being shown, the work is done
        run_logger().warning("Prefect did not take %s (%s: %s).", what, type(error).__name__, error)


def artifact_key(key: str, *, kind: str = "video") -> str:
    """Prefect takes lower-case letters, digits and dashes only, and artifacts of one key for versions of one thing.

    So a key that has other characters gets a mark of its own.
    """
    plain_key = re.sub(r"[^a-z0-9]+", "-", key).strip("-")
    mark = "" if plain_key == key else f"-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return f"{kind}-{plain_key}{mark}"


def markdown(generation: Generation, archive: VideoArchive, *, thumbnail: bytes | None) -> str:
    """The artifact's text. Pure. What came from outside cannot become markup."""
    request, video = generation.request, generation.video
    lines = [f"# {plain(generation.key)}", ""]
    if thumbnail:
        lines += [f"![first look](data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()})", ""]
    lines += [f"> {plain(request.prompt[:500])}", "", "| | |", "|---|---|", f"| state | {generation.state} |"]
    lines.append(f"| model | {plain(generation.attempt.model)} |")
    lines.append(f"| task | {plain(generation.task_id or 'none')} |")
    if video is not None:
        lines.append(
            f"| video | {video.duration_seconds:.2f} s, {video.width} x {video.height}, {plain(video.codec or '')}, "
            f"{video.size_bytes:,} bytes |"
        )
        lines.append(f"| SHA-256 | {video.sha256} |")
    for item in generation.objects:
        link = archive.public_link(item.name)
        place = plain(f"{item.bucket}/{item.name}")
        lines.append(f"| {item.kind} | {f'[{place}]({link})' if link else place} |")
    lines += [f"| warning | {plain(warning)} |" for warning in generation.warnings]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that markdown and HTML leave as it is, on one line. PostgreSQL takes no NUL; nobody sees other controls."""
    text = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", text)
    text = re.sub(r"^(\d+)\.(?= |$)", r"\1\\.", text)  # not the beginning of a numbered list
    # Not linked by renderers that link whatever looks like an address.
    return re.sub(r"(?i)(www)\.", r"\1&#46;", text.replace("://", "&#58;//").replace("@", "&#64;"))
