"""The flow `generate-batch`: generates a content calendar, many videos in one run."""

from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Final, Literal, NoReturn

from prefect.runtime import flow_run
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from flows.batch.calendar_rows import BadRow, BatchItem, Row, RowProblem, check_row, mark_duplicates
from flows.batch.calendars import read_calendar
from flows.batch.contact_sheet import publish
from flows.batch.limited_flow import limited_flow
from flows.batch.summary import BatchSummary, bad_row, bad_rows_error, batch_error
from flows.batch_run import Batch
from flows.forms import Empty, OptionalKey, OptionalText
from flows.generate_video import prompt_of
from flows.permission import PAYING_FLOW, rerun_by_person
from flows.record.keys import calendar_key, check_key
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import InvalidKeyError, PipelineError
from flows.record.run_keys import BATCH_NAME_CHARACTERS, candidates, slug, typed_name
from flows.resources import PayingResources, Resources
from flows.shard_runs import run_in_shards
from flows.signals.progress import run_logger
from flows.signals.run_log import prepare_run_log
from flows.signals.runs import root_run_id, tag_run
from flows.submission import Terms

SUBMISSIONS_PER_SECOND: Final = 5.0
"""Measured: Prefect's event queue holds 10,000 messages. A burst of 1,000 generations overflows it, 4 to 5 per second
do not. APIXO also advises against many submissions at once."""
MOST_SHARDS: Final = 100
"""More are useless: the provider accepts 1,000 videos at once."""
BAD_ROWS_LOGGED: Final = 100
"""A junk file may have 5,000. The table shows all of them."""


def _lenient(value: Any, validate: ValidatorFunctionWrapHandler) -> BatchItem | BadRow:
    """Turns an invalid item of a list into a row to report, as in a file."""
    if isinstance(value, dict):
        row = check_row(1, value)
        return row.item if isinstance(row, Row) else row
    try:
        return validate(value)  # type: ignore[no-any-return]
    except ValidationError:
        return BadRow.whole(1, "must be an object with a prompt")


LenientItem = Annotated[BatchItem, WrapValidator(_lenient)]


VERBS: Final = ("generate batch", "dry run of batch")


def given_key(key: str | None, calendar: str | None) -> str | None:
    """The given key, or else one from the calendar's file name; None: neither was given."""
    if key:
        return check_key(key)
    return calendar_key(calendar) if calendar else None


def title_of(requests: Any, verbs: Sequence[str] = VERBS) -> str:
    """The name of a batch without a key: from the run name that a user typed, or else from its first prompt."""
    prompt = prompt_of(requests[0]) if isinstance(requests, list) and requests else ""
    return slug(typed_name(flow_run.name, *verbs) or prompt, most=BATCH_NAME_CHARACTERS, otherwise="batch")


def shown_name(*verbs: str) -> str:
    """The batch's name as shown in the run's name. `verbs` are the first words of such names."""
    parameters = flow_run.parameters
    try:
        key = given_key(parameters.get("key"), parameters.get("calendar"))
    except InvalidKeyError:  # the run itself raises it, with a readable message
        return "without a key"
    return key or title_of(parameters.get("requests"), verbs)


def _run_name() -> str:
    return f"{VERBS[bool(flow_run.parameters.get('dry_run'))]} {shown_name(*VERBS)}"


@limited_flow(name="generate-batch", flow_run_name=_run_name, **PAYING_FLOW)
async def generate_batch(
    requests: Annotated[list[LenientItem], Field(title="List")] | Empty = None,
    calendar: OptionalText = "",
    key: OptionalKey = "",
    wait: bool = True,
    on_bad_rows: Literal["refuse", "skip"] = "refuse",
    dry_run: bool = False,
    max_spend: Annotated[float, Field(ge=0, allow_inf_nan=False, title="Amount")] | Empty = None,
    max_in_flight: Annotated[int, Field(ge=1, title="Number")] | Empty = None,
    submissions_per_second: Annotated[float, Field(gt=0, le=100)] = SUBMISSIONS_PER_SECOND,
    refuse_duplicates: bool = False,
    sheet: OptionalText = "",
    ignore_columns: bool = False,
    shards: Annotated[int, Field(ge=1, le=MOST_SHARDS)] = 1,
    fit_images: bool = False,
    api: str = "default",
    archive: str = "default",
) -> BatchSummary:
    """Generates the videos of a content calendar. Running it again with the same key generates only what is missing.

    Args:
        requests: The videos; or give a calendar. Prefect accepts 512 KB: give a calendar for more.
        calendar: A CSV, JSON Lines or Excel file: a path on the worker's machine, or `s3://bucket/object` in the
            archive's store. Columns: prompt, id, model, duration, aspect_ratio, image_urls, mode, remove_watermark,
            options, tags, fallback_models, not_before.
        key: Names this batch forever; a video's key is `<key>-<id>`. Without one, a calendar has its file's name as
            its key, here, on a schedule and in `sora batch` alike: `calendars/Spring Sale.csv` is `spring-sale`.
            Requests without one are named after their run, if you typed its name, or else after the first prompt: every
            new run pays for all of them; a rerun of it, or of the flow around it, pays for none again.
        wait: If off, the run ends after the last submission, and the collector archives the videos.
        on_bad_rows: `refuse` submits nothing if any row is invalid, `skip` continues with the others.
        dry_run: Checks every row and image, the archive and the API, prices it all, and spends nothing.
        max_spend: The most that all runs of this batch together may pay, at the API block's prices.
        max_in_flight: The most videos in progress at once; if empty, as many as the API block says.
        submissions_per_second: How fast videos are submitted.
        refuse_duplicates: If on, a row fails whose request was submitted under another key, such as that of a renamed
            calendar. If off, the log and the dry run's table only say so.
        sheet: Which sheet of an Excel workbook. If empty, its only one that is not hidden.
        ignore_columns: If on, unknown columns are left out, and the log says so. Those that begin with # always are.
        shards: How many runs of `generate-shard` share the videos, on several machines of the work pool. Each gets its
            part of all limits. With one, this run generates them itself.
        fit_images: If on, images that a calendar names by a path are rotated upright and made small enough.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    given = given_key(key, calendar)
    opened = Resources if dry_run or shards > 1 else PayingResources  # with several shards, each pays for its part
    async with opened.of_blocks(api, archive) as resources:
        key = given or await key_of_batch(title_of(requests), resources.ledger, dry_run=dry_run)
        notes: list[str] = []
        read = partial(
            read_calendar,
            archive=resources.archive,
            sheet=sheet or None,
            ignore_columns=ignore_columns,
            fit_images=fit_images,
            report=notes.append,
        )
        rows = await rows_of(requests, calendar or None, key, read)
        for note in notes:
            run_logger().warning("%s", note)
        tags = {tag for row in rows if isinstance(row, Row) for tag in row.item.tags}
        await tag_run(tags, name=f"{VERBS[dry_run]} {key}")
        bad = [row for row in rows if isinstance(row, BadRow)]
        for row in bad[:BAD_ROWS_LOGGED]:
            run_logger().error("Line %d is invalid. %s", row.line, bad_row(row).problem)
        if len(bad) > BAD_ROWS_LOGGED:
            run_logger().error("%d more lines are invalid: see the run's table.", len(bad) - BAD_ROWS_LOGGED)
        limit = None if max_spend is None else Decimal(str(max_spend))
        terms = Terms(may_submit_again=rerun_by_person, waits=wait, refuse_duplicates=refuse_duplicates)
        batch = await Batch.load(key, rows, resources, terms=terms, max_spend=limit, notes=notes)
        at_once = min(max_in_flight or resources.api.max_in_flight, resources.api.max_in_flight)
        if dry_run:
            summary = await batch.check()
        elif bad and on_bad_rows == "refuse":
            await refuse(batch, bad, resources)
        elif isinstance(resources, PayingResources):
            await batch.check_balance()
            summary = await batch.run(resources, max_in_flight=at_once, submissions_per_second=submissions_per_second)
        else:
            summary = await run_in_shards(
                batch, shards, max_in_flight=at_once, submissions_per_second=submissions_per_second,
                resources=resources, api=api, archive=archive,
            )  # fmt: skip
        await publish(summary, resources.store)
    run_logger().info("Batch %s: %s", key, summary.sentence())
    if summary.failed:
        raise batch_error(summary)
    return summary


async def refuse(batch: Batch, bad: Sequence[BadRow], resources: Resources) -> NoReturn:
    """Publishes a batch that is not started because of these rows, and raises a `BadRowsError`."""
    summary = batch.untouched()
    await publish(summary, resources.store)
    raise bad_rows_error(bad, summary)


async def key_of_batch(title: str, ledger: Ledger, *, dry_run: bool) -> str:
    """The key for a batch that was given none. A dry run records nothing, and does not count as the first start."""
    root = root_run_id()
    if root is None:
        return check_key("")  # outside a run: rejected
    if dry_run:
        return list(candidates(root, title))[1]
    return await ledger.run_keys.key(root, title, batch=True)


async def rows_of(
    requests: Sequence[BatchItem | BadRow] | None,
    calendar: str | None,
    key: str,
    read: Callable[[str], Awaitable[list[Row | BadRow]]],
) -> list[Row | BadRow]:
    """The requested rows, valid or not. A row whose key would be invalid becomes an invalid row."""
    if (requests is None) is (calendar is None):
        raise PipelineError("Give either requests or a calendar. Nothing was submitted.", key=key)
    if calendar is not None:
        rows = await read(calendar)
    else:
        rows = mark_duplicates(
            [
                Row(line=number, item=item) if isinstance(item, BatchItem) else item.model_copy(update={"line": number})
                for number, item in enumerate(requests or [], start=1)
            ]
        )
    return [_with_key(row, key) if isinstance(row, Row) else row for row in rows]


def _with_key(row: Row, batch_key: str) -> Row | BadRow:
    try:
        row.item.key(batch_key)
    except InvalidKeyError as error:
        return BadRow(line=row.line, id=row.item.id, problems=(RowProblem(field="id", message=str(error)),))
    return row
