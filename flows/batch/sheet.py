"""The contact sheet of a batch in the Prefect UI: a picture, what became of each row, and what to do."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Final

from prefect.artifacts import acreate_markdown_artifact

from apixo import SoraError
from blocks.object_store import ObjectStore
from flows.batch.summary import BatchRow, BatchSummary
from flows.signals.artifacts import artifact_key, plain, shown
from flows.signals.progress import run_logger
from flows.signals.thumbnail import thumbnail

MOST_ROWS: Final = 200
"""What a browser shows at once without a pause. The table beside the sheet has all rows."""
MOST_PICTURES: Final = 60
PICTURE_PIXELS: Final = 112
"""Longest side. Some 2 to 4 KB each, so sixty are a quarter of a megabyte in Prefect's database."""
POSTERS_AT_ONCE: Final = 8
PROMPT_CHARACTERS: Final = 120


async def publish_sheet(summary: BatchSummary, store: ObjectStore) -> None:
    """Creates the artifact, with the pictures that the archive has."""
    pictures = {} if summary.dry_run else await _pictures(in_order(summary)[:MOST_ROWS], store)
    made = acreate_markdown_artifact(
        sheet(summary, pictures),
        key=artifact_key(summary.key, kind="sheet"),
        description=f"{'Dry run' if summary.dry_run else 'Contact sheet'} of {summary.key}. {summary.sentence()}",
    )
    await shown(made, what=f"the contact sheet of {summary.key}")


def in_order(summary: BatchSummary) -> list[BatchRow]:
    """The rows as a person looks at them: what needs somebody first. Pure."""
    return sorted(summary.rows, key=lambda row: (row.ok, row.line))


def sheet(summary: BatchSummary, pictures: Mapping[str, bytes]) -> str:
    """The sheet's text. Pure. What came from outside cannot become markup.

    Args:
        summary: the batch.
        pictures: of each key, a small JPEG.
    """
    rows = in_order(summary)
    lines = [
        f"# {'Dry run of' if summary.dry_run else 'Batch'} {plain(summary.key)}",
        "",
        plain(summary.sentence()),
        "",
    ]
    if summary.blocked:
        lines += [f"**The rest was not submitted:** {plain(summary.blocked)}", ""]
    lines += [f"- {plain(note)}" for note in summary.notes]
    lines += [""] * bool(summary.notes)
    head = ["video", "state", "price", "what to do"]
    if pictures:
        head.insert(0, "picture")
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [_line(row, pictures) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines += ["", f"{len(rows) - MOST_ROWS} more rows are in the table beside this sheet."]
    return "\n".join(lines) + "\n"


def _line(row: BatchRow, pictures: Mapping[str, bytes]) -> str:
    name = plain(row.key or f"line {row.line}")
    if row.link:
        name = f"[{name}]({row.link})"
    prompt = row.prompt if len(row.prompt) <= PROMPT_CHARACTERS else f"{row.prompt[:PROMPT_CHARACTERS]}…"
    # The line break is ours; `plain` leaves none of what came from outside.
    cells = [
        f"{name}<br>{plain(prompt)}" if prompt else name,
        row.state if row.ok else f"**{row.state}**",
        "" if row.price is None else str(row.price),
        plain((row.problem or row.note).removeprefix(f"{row.key}: ")),
    ]
    if pictures:
        picture = pictures.get(row.key)
        cells.insert(0, f"![](data:image/jpeg;base64,{base64.b64encode(picture).decode()})" if picture else "")
    return f"| {' | '.join(cells)} |"


async def _pictures(rows: list[BatchRow], store: ObjectStore) -> dict[str, bytes]:
    gate = asyncio.Semaphore(POSTERS_AT_ONCE)

    async def picture(row: BatchRow) -> bytes | None:
        if row.poster_name is None:
            return None
        async with gate:
            try:
                found = await store.get(row.poster_name)
            except SoraError as error:  # a picture must not fail what is archived
                run_logger().warning("The poster of %s was not read (%s).", row.key, type(error).__name__)
                return None
        return await asyncio.to_thread(thumbnail, found.data, PICTURE_PIXELS) if found else None

    wanted = [row for row in rows if row.poster_name][:MOST_PICTURES]
    made = await asyncio.gather(*map(picture, wanted))
    return {row.key: found for row, found in zip(wanted, made, strict=True) if found}
