"""The flow `previews-then-finals`: the previews of a calendar, one manual decision, then the final videos."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Final, Literal, get_args

from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from apixo import VideoRequest
from apixo.video_request import STORED
from blocks import ApixoApi
from flows.batch.calendar_rows import BadRow, Row, RowProblem
from flows.batch.calendars import read_calendar
from flows.batch.contact_sheet import publish, publish_sheet
from flows.batch.limited_flow import limited_flow
from flows.batch.summary import BatchSummary, batch_error
from flows.batch_run import Batch
from flows.forms import Empty, OptionalKey, OptionalText
from flows.generate_batch import (
    SUBMISSIONS_PER_SECOND,
    LenientItem,
    given_key,
    key_of_batch,
    refuse,
    rows_of,
    shown_name,
    title_of,
)
from flows.permission import PAYING_FLOW, rerun_by_person
from flows.preview_then_final import (
    AnswerError,
    answered,
    final_key,
    final_prices,
    final_seconds,
    lasting,
    preview_key,
    shortest_seconds,
)
from flows.resources import PayingResources, Resources
from flows.signals.progress import run_logger
from flows.signals.run_artifacts import known_costs
from flows.signals.run_log import prepare_run_log
from flows.signals.runs import tag_run
from flows.submission import Terms
from flows.wording import counted, utc

VERB: Final = "previews of batch"
UNKNOWN_SHOWN: Final = 5
"""How many unknown ids an error message names."""

AS_LONG: Final = "as long as the calendar says"
BatchDecision = Literal[
    "Make the final videos of 8 s. PAYS.",
    "Make the final videos of 12 s. PAYS.",
    "Make the final videos as long as the calendar says. PAYS.",
    "Stop: no final videos. Pays nothing.",
]
"""The choices as the form shows them. None is the default."""
ALL_8, ALL_12, AS_IN_CALENDAR, NONE = get_args(BatchDecision)


class BatchAnswer(RunInput):
    """What a person decides about the previews of a batch. The form of a paused run."""

    decision: BatchDecision = Field(title="Decision")
    only: str = Field(
        default="",
        title="Only these",
        description="Ids from the sheet, separated by spaces or commas. Leave empty for all previews that wait.",
    )


def _run_name() -> str:
    return f"{VERB} {shown_name(VERB)}"


@limited_flow(name="previews-then-finals", flow_run_name=_run_name, **PAYING_FLOW)
async def previews_then_finals(
    requests: Annotated[list[LenientItem], Field(title="List")] | Empty = None,
    calendar: OptionalText = "",
    key: OptionalKey = "",
    answer_within_hours: Annotated[float, Field(gt=0, le=24 * 14)] = 24.0,
    on_bad_rows: Literal["refuse", "skip"] = "refuse",
    max_spend: Annotated[float, Field(ge=0, allow_inf_nan=False, title="Amount")] | Empty = None,
    sheet: OptionalText = "",
    api: str = "default",
    archive: str = "default",
) -> Any:
    """Makes a short preview of every row of a calendar, waits for one answer, then makes the final videos.

    The run pauses once, with all previews on the contact sheet and a form behind *Resume*: how long the final videos
    are, and which rows get one. A rerun pays for no preview or final video again, and asks only about the rest.

    Args:
        requests: The videos; or give a calendar. Prefect accepts 512 KB: give a calendar for more.
        calendar: A CSV, JSON Lines or Excel file, as for `generate-batch`.
        key: Names these videos forever: `<key>-preview-<id>` and `<key>-final-<id>`. If empty, it is chosen as for
            `generate-batch`.
        answer_within_hours: How long the run waits for an answer. After that it fails; a rerun asks again.
        on_bad_rows: `refuse` submits nothing if any row is invalid, `skip` continues with the others.
        max_spend: The most that all previews and final videos may cost together, at the API block's prices.
        sheet: Which sheet of an Excel workbook. If empty, its only one that is not hidden.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    given = given_key(key, calendar)
    limit = None if max_spend is None else Decimal(str(max_spend))
    async with PayingResources.of_blocks(api, archive) as resources:
        key = given or await key_of_batch(title_of(requests, (VERB,)), resources.ledger, dry_run=False)
        read = partial(read_calendar, archive=resources.archive, sheet=sheet or None, report=run_logger().warning)
        rows = await rows_of(requests, calendar or None, preview_key(key, 1), read)
        await tag_run({tag for row in rows if isinstance(row, Row) for tag in row.item.tags}, name=f"{VERB} {key}")
        shortened = [preview_row(row) for row in rows]
        previews = await _made(preview_key(key, 1), shortened, resources, limit, skips_bad=on_bad_rows == "skip")
        archived = {row.key for row in previews.rows if row.state == "archived"}
        seen = {
            row.item.name(): row
            for row in rows
            if isinstance(row, Row) and f"{preview_key(key, 1)}-{row.item.name()}" in archived
        }
        names = {f"{final_key(key)}-{name}": name for name in seen}
        decided = await resources.ledger.read_all([*names])
        known = {names[of]: final_of(seen[names[of]], found.request) for of, found in decided.items()}
        waiting = {name: row for name, row in seen.items() if name not in known}
    chosen = await _chosen(key, previews, waiting, known, api, archive, answer_within_hours) if waiting else []
    if chosen is None:
        if previews.failed:
            raise batch_error(previews)
        return Completed(message=f"Stopped, as decided: no final videos. Archived: {counted(len(seen), 'preview')}.")
    if known or chosen:
        if limit is not None:
            limit = max(limit - (previews.price or 0) - (previews.spent_before or 0), Decimal(0))
        async with PayingResources.of_blocks(api, archive) as resources:
            finals = await _made(final_key(key), [*known.values(), *chosen], resources, limit)
        if finals.failed:
            raise batch_error(finals)
    if previews.failed:
        raise batch_error(previews)
    return finals if known or chosen else previews


def preview_row(row: Row | BadRow) -> Row | BadRow:
    """The row with the shortest duration, under the row's current name. Pure."""
    if isinstance(row, BadRow):
        return row
    try:
        return row_lasting(row, shortest_seconds(row.item))
    except AnswerError as error:
        return BadRow(line=row.line, id=row.item.id, problems=(RowProblem(field="", message=str(error)),))


def row_lasting(row: Row, seconds: int | None) -> Row:
    """The same video with another duration, under the same name. Pure.

    Raises:
        AnswerError: the model does not support such a video.
    """
    named = row.item.model_copy(update={"id": row.item.name()})
    return Row(line=row.line, item=lasting(named, seconds))


def meaning(answer: BatchAnswer, waiting: Mapping[str, Row], begun: Sequence[str], key: str) -> list[Row] | None:
    """The final videos to make; None: stop. Pure.

    Args:
        waiting: the rows whose previews the user saw, by name.
        begun: names of rows whose final video was submitted before. Naming them changes nothing.

    Raises:
        AnswerError: a name is not on the sheet, or a row's model does not support such a video, or it would be as short
            as its preview.
    """
    if answer.decision == NONE:
        return None
    named = [name.removeprefix(f"{preview_key(key, 1)}-") for name in re.split(r"[\s,;]+", answer.only) if name]
    unknown = [name for name in named if name not in waiting and name not in begun]
    if unknown:
        listed = " or ".join(unknown[:UNKNOWN_SHOWN])
        raise AnswerError(f"No preview on this sheet has the id {listed}.")
    made: list[Row] = []
    for name, row in waiting.items():
        if named and name not in named:
            continue
        try:
            final = row_lasting(row, {ALL_8: 8, ALL_12: 12}.get(answer.decision, row.item.duration))
        except AnswerError as error:
            raise AnswerError(f"{name}: {error}") from error
        if final.item.seconds == shortest_seconds(row.item):
            raise AnswerError(f"{name}: the final video would be as short as its preview. Choose a length.")
        made.append(final)
    return made


async def _made(
    key: str,
    rows: Sequence[Row | BadRow],
    resources: PayingResources,
    max_spend: Decimal | None,
    *,
    skips_bad: bool = False,
) -> BatchSummary:
    terms = Terms(may_submit_again=rerun_by_person, waits=True)
    batch = await Batch.load(key, rows, resources, terms=terms, max_spend=max_spend)
    bad = [row for row in rows if isinstance(row, BadRow)]
    if bad and not skips_bad:
        await refuse(batch, bad, resources)
    await batch.check_balance()
    summary = await batch.run(
        resources, max_in_flight=resources.api.max_in_flight, submissions_per_second=SUBMISSIONS_PER_SECOND
    )
    await publish(summary, resources.store)
    run_logger().info("Batch %s: %s", key, summary.sentence())
    return summary


async def _chosen(
    key: str,
    previews: BatchSummary,
    waiting: Mapping[str, Row],
    known: Mapping[str, Row],
    api: str,
    archive: str,
    hours: float,
) -> list[Row] | None:
    """Asks until there is a usable answer. Returns the rows for final videos; None: stop."""
    # An answer refers to the previews that its sheet showed. If one was added, such as for a row that became due, the
    # question gets a new name.
    shown = hashlib.sha256(" ".join(sorted(waiting)).encode()).hexdigest()[:8]

    async def show(problem: str) -> None:
        async with Resources.of_blocks(api, archive) as resources:
            notes = _question(waiting, len(known), resources.api, hours, problem)
            begun = {f"{previews.key}-{name}" for name in known}
            costs = {f"{previews.key}-{name}": cost_of_one(row, resources.api) for name, row in waiting.items()}
            left = [
                row.model_copy(update={"note": " ".join(filter(None, (row.note, costs.get(row.key))))})
                for row in previews.rows
                if row.key not in begun
            ]
            asking = {"notes": [*notes, *previews.notes], "rows": left}
            await publish_sheet(previews.model_copy(update=asking), resources.store, asks=True)

    means = partial(meaning, waiting=waiting, begun=list(known), key=key)
    chosen = await answered(BatchAnswer, f"previews-{shown}", hours, show, means)
    async with Resources.of_blocks(api, archive) as resources:  # without the question
        await publish_sheet(previews, resources.store)
    return chosen


def _question(waiting: Mapping[str, Row], begun: int, api: ApixoApi, hours: float, problem: str) -> list[str]:
    """The notes above the previews on the sheet."""
    until = utc(datetime.now(UTC) + timedelta(hours=hours))
    return [
        *([f"The last answer could not be used: {problem}"] if problem else []),
        (
            f"Waits for your answer about {counted(len(waiting), 'preview')}. Look at them, then press Resume at the "
            "top of the run (in the V2 UI in its menu ⋮). The form asks how long the final videos should "
            "be, and for the ids if not all are wanted."
        ),
        *([f"{counted(begun, 'final video')} submitted before: not paid again."] if begun else []),
        f"The previews are paid. {cost_of_all(waiting.values(), api)}",
        (f"Until {until}. After that the run fails, and nothing more is paid. Retry asks again, without new previews."),
    ]


def cost_of_one(row: Row, api: ApixoApi) -> str:
    """The cost of a row's final video, as far as it is known. Pure."""
    prices = final_prices(row.item, AS_LONG, api)
    if not prices:
        return f"No final video: {row.item.model} has no length above its preview's."
    known = known_costs(prices, api.currency)
    return f"The final video costs {known}." if known else ""  # a missing price is reported once, above all rows


def cost_of_all(rows: Collection[Row], api: ApixoApi) -> str:
    """The total cost of the final videos of these rows, or which prices are missing. Pure."""
    prices = [
        {length: api.price(row.item.model, seconds) for length, seconds in final_seconds(row.item, AS_LONG).items()}
        for row in rows
    ]
    sums = {
        length: sum(filter(None, (each[length] for each in prices)), Decimal(0))
        for length in ("for 8 s", "for 12 s", AS_LONG)
        if all(each.get(length) is not None for each in prices)
    }
    if sums:
        return f"All final videos together cost {known_costs(sums, api.currency)}, at the API block's prices."
    models = sorted({row.item.model for row, each in zip(rows, prices, strict=True) if None in each.values()})
    if models:
        return f"The cost of all final videos is unknown: the API block has no price for {' and '.join(models)}."
    return "The cost of each final video is next to its preview."


def final_of(row: Row, request: VideoRequest) -> Row:
    """The row with its final video's earlier request, which the next answer does not change. Pure."""
    item = request.model_dump() | {"id": row.item.name()}
    return Row.model_validate({"line": row.line, "item": item}, context=STORED)
