"""The artifact of an archived video in the Prefect UI: a picture, a player, a table, and links without signatures."""

import asyncio
import base64
import re
from datetime import datetime
from decimal import Decimal
from html import escape
from textwrap import shorten
from typing import Final

from apixo.redaction import hide_queries
from blocks import VideoArchive
from flows.record.advice import show_command
from flows.record.generation import Generation
from flows.signals.artifacts import artifact_key, plain, show_markdown
from flows.signals.thumbnail import thumbnail
from flows.wording import utc

THUMBNAIL_PIXELS: Final = 320
"""Longest side of the artifact's picture. That makes some 10 to 20 KB, fine for the Prefect database."""

MOST_IMAGES: Final = 10
"""How many start images are listed."""


async def publish(
    generation: Generation,
    archive: VideoArchive,
    *,
    poster: bytes | None,
    cost: Decimal | None = None,
    options: str = "",
) -> None:
    """Creates the artifact of one generation, with its poster as a small picture."""
    picture = await asyncio.to_thread(thumbnail, poster, THUMBNAIL_PIXELS) if poster else None
    await show_markdown(
        markdown(generation, archive, thumbnail=picture, cost=cost, options=options),
        key=artifact_key(generation.key),
        description=f"Video {generation.key}",
    )


def markdown(
    generation: Generation,
    archive: VideoArchive,
    *,
    thumbnail: bytes | None,
    cost: Decimal | None = None,
    options: str = "",
) -> str:
    """The artifact's text. Pure. External text cannot become markup."""
    video = generation.video
    link = _link(generation.key, video.name, archive) if video is not None else None
    lines = [f"# {heading(generation)}", "", *picture_and_player(generation, archive, thumbnail=thumbnail)]
    # The first fact is the table's header: an empty header would be shown as an empty bar.
    first, *others = _facts(generation, cost)
    lines += [f"> {plain(generation.request.prompt[:500])}", "", first, "|---|---|", *others]
    for item in generation.objects:
        # The gallery does not serve the JSON description, so it is linked only in the store.
        at = archive.public_link(item.name) if item.kind == "sidecar" else _link(generation.key, item.name, archive)
        place = plain(f"{item.bucket}/{item.name}")
        # The object name itself is not a link: in link texts, the classic UI would show its backslashes.
        lines.append(f"| {item.kind} | {place}{f', [open]({at})' if at else ''} |")
    lines += [f"| warning | {plain(warning)} |" for warning in generation.warnings]
    lines += ["", "| step | ended | took |", "|---|---|---|", *_timeline(generation)]
    if video is not None:
        page = archive.gallery_link(generation.key)
        watch = "".join(
            [
                f"[see it in the gallery]({page}), " if page else "",
                f"[open it]({link}), or " if link else "",
            ]
        )
        lines += [
            "",
            (
                f"**To watch it:** {watch}run {show_command(generation.key, options, ' --link')}, whose URL works for "
                f"an hour, or {show_command(generation.key, options, ' --save video.mp4')}."
            ),
            "",
            "**To get another one:** give the request a new key. This key is never paid for again.",
        ]
    return "\n".join(lines) + "\n"


def heading(generation: Generation) -> str:
    """The heading of a video's artifact: its key, or its prompt if the key is the id of a run or event."""
    is_id = re.match(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", generation.key)
    return plain(shorten(generation.request.prompt, 60, placeholder="…") if is_id else generation.key)


def picture_and_player(generation: Generation, archive: VideoArchive, *, thumbnail: bytes | None) -> list[str]:
    """Lines with the poster, and a player if a browser can reach the video."""
    lines = []
    if thumbnail:
        lines += [f"![first look](data:image/jpeg;base64,{base64.b64encode(thumbnail).decode()})", ""]
    video = generation.video
    if video is not None and (link := _link(generation.key, video.name, archive)):
        if video.content_type.startswith("image/"):  # a GIF, which browsers play only as an image
            return [*lines, f"![the video]({link})", ""]
        # The classic UI plays it; the new UI removes it, so there is also the link below.
        picture = _link(generation.key, generation.poster_name, archive) if generation.poster_name else None
        shows = f' poster="{escape(picture)}"' if picture else ""  # without one it is a black bar
        lines += [f'<video controls preload="none" width="640"{shows} src="{escape(link)}"></video>', ""]
    return lines


def _link(key: str, object_name: str, archive: VideoArchive) -> str | None:
    """A browser's URL for an object: through the gallery, or else in the store. Never a URL signed by the store."""
    return archive.gateway_link(key, object_name) or archive.public_link(object_name)


def _facts(generation: Generation, cost: Decimal | None) -> list[str]:
    request, requested, video = generation.request, generation.requested, generation.video
    removed = requested.input().get("remove_watermark")
    watermark = "" if removed is None else f", {'without' if removed else 'with'} watermark"
    lines = [
        f"| state | {generation.state} |",
        f"| model | {plain(generation.attempt.model)} |",
        f"| requested | {plain(requested.summary)}{watermark} |",
    ]
    # A URL may carry a signature in its query.
    lines += [f"| start image | {plain(hide_queries(url))} |" for url in request.image_urls[:MOST_IMAGES]]
    lines.append(f"| task | {plain(generation.task_id or 'none')} |")
    if cost is not None:
        currency = f" {plain(generation.attempt.currency)}" if generation.attempt.currency else ""
        lines.append(f"| cost | {cost}{currency}, at the API block's prices |")
    if video is not None:
        what = (
            f"{video.duration_seconds:.2f} s, {video.width} x {video.height}, {plain(video.codec or '')}"
            if video.duration_seconds is not None
            else "damaged"
        )
        lines += [f"| video | {what}, {video.size_bytes:,} bytes |", f"| SHA-256 | {video.sha256} |"]
    return lines


def _timeline(generation: Generation) -> list[str]:
    """When each of the five steps ended, as far as recorded. The image check and the download have no times."""
    attempt = generation.attempt
    images = len(generation.request.image_urls)
    return [
        f"| validate\\_image | before the submission | {images or 'no'} image{'' if images == 1 else 's'} |",
        _step("submit", attempt.claimed_at, attempt.submitted_at),
        _step("wait", attempt.submitted_at, generation.succeeded_at),
        "| fetch | | |",
        _step("archive", generation.succeeded_at, generation.archived_at, ", with the download"),
    ]


def _step(name: str, began: datetime | None, ended: datetime | None, remark: str = "") -> str:
    took = f"{(ended - began).total_seconds():.1f} s{remark}" if began and ended else ""
    return f"| {name} | {f'{utc(ended)}' if ended else ''} | {took} |"
