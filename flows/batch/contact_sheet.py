"""The contact sheet of a batch in the Prefect UI: for each row a picture, its outcome, and what to do."""

import asyncio
import base64
from collections.abc import Mapping
from textwrap import wrap
from typing import Final

from apixo import SoraError
from blocks.object_store import ObjectStore
from flows.batch.summary import BatchRow, BatchSummary, publish_table
from flows.signals.artifacts import artifact_key, plain, show_markdown
from flows.signals.progress import run_logger
from flows.signals.thumbnail import thumbnail

MOST_ROWS: Final = 200
"""As many as a browser shows without a delay. The table next to the sheet has all rows."""
MOST_PICTURES: Final = 60
PICTURE_PIXELS: Final = 112
"""Longest side. Each picture has 2 to 4 KB, so sixty take a quarter of a megabyte in Prefect's database."""
PROMPT_CHARACTERS: Final = 120
LINE_CHARACTERS: Final = 30
"""Two columns of this width and a picture fit between the classic UI's margins in a window of 1280 pixels."""


async def publish(summary: BatchSummary, store: ObjectStore) -> None:
    """Puts the table of all rows and the contact sheet into the Prefect UI; see `publish_sheet`."""
    await publish_table(summary)
    await publish_sheet(summary, store)


async def publish_sheet(summary: BatchSummary, store: ObjectStore, *, asks: bool = False) -> None:
    """Creates the artifact, with the posters that are in the archive.

    Args:
        store: contains the posters.
        asks: whether the run waits for an answer about these rows.
    """
    pictures = {} if summary.dry_run else await _pictures(summary.urgent_first[:MOST_ROWS], store)
    await show_markdown(
        sheet(summary, pictures, asks=asks),
        key=artifact_key(summary.key, kind="sheet"),
        description=f"{_title(summary, 'Contact sheet of', asks=asks)}. {summary.sentence()}",
    )


def sheet(summary: BatchSummary, pictures: Mapping[str, bytes], *, asks: bool = False) -> str:
    """The sheet's text. Pure. External text cannot become markup.

    Args:
        pictures: a small JPEG for each key.
        asks: whether the run waits for an answer about these rows.
    """
    rows = summary.urgent_first
    lines = [
        f"# {plain(_title(summary, 'Batch', asks=asks))}",
        "",
        plain(summary.sentence()),
        "",
    ]
    if summary.blocked:
        lines += [f"**The rest was not submitted:** {plain(summary.blocked)}", ""]
    lines += [f"- {plain(note)}" for note in summary.notes]
    lines += [""] * bool(summary.notes)
    head = ["video", "what became of it, and what to do"]
    if pictures:
        head.insert(0, "picture")
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [_line(row, pictures) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines += ["", f"{len(rows) - MOST_ROWS} more rows are in the table next to this sheet."]
    return "\n".join(lines) + "\n"


def _title(summary: BatchSummary, otherwise: str, *, asks: bool) -> str:
    what = "Waits for your answer:" if asks else "Dry run of" if summary.dry_run else otherwise
    return f"{what} {summary.key}"


def _line(row: BatchRow, pictures: Mapping[str, bytes]) -> str:
    name = row.key or f"line {row.line}"  # a key contains no markup, and the UI shows backslashes in link texts
    prompt = row.prompt if len(row.prompt) <= PROMPT_CHARACTERS else f"{row.prompt[:PROMPT_CHARACTERS]}…"
    state = row.state if row.price is None else f"{row.state}, {row.price}"
    cells = [
        "<br>".join([f"[{name}]({row.link})" if row.link else name, *_wrapped(prompt)]),
        "<br>".join(
            [
                state if row.ok else f"**{state}**",
                *_wrapped(row.explanation),
            ]
        ),
    ]
    if pictures:
        picture = pictures.get(row.key)
        cells.insert(0, f"![](data:image/jpeg;base64,{base64.b64encode(picture).decode()})" if picture else "")
    return f"| {' | '.join(cells)} |"


def _wrapped(text: str) -> list[str]:
    """The text in short lines: the UI does not wrap table cells, and cuts off what is wider than the page."""
    return [plain(line) for line in wrap(text, LINE_CHARACTERS)]


async def _pictures(rows: list[BatchRow], store: ObjectStore) -> dict[str, bytes]:
    async def picture(row: BatchRow) -> bytes | None:
        if row.poster_name is None:
            return None
        try:
            found = await store.get(row.poster_name)
        except SoraError as error:  # a missing picture must not fail the run
            run_logger().warning("The poster of %s was not read (%s).", row.key, type(error).__name__)
            return None
        return await asyncio.to_thread(thumbnail, found.data, PICTURE_PIXELS) if found else None

    wanted = [row for row in rows if row.poster_name][:MOST_PICTURES]
    made = await asyncio.gather(*map(picture, wanted))
    return {row.key: found for row, found in zip(wanted, made, strict=True) if found}
