"""The flow `generate-batch`: a content calendar, many videos in one run."""

import asyncio
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Self

from aiolimiter import AsyncLimiter
from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from apixo import ApixoError, AuthenticationError
from blocks import ApixoApi, VideoArchive
from blocks.errors import StoreError
from flows import steps
from flows.advice import conflict_error, failed_error, unconfirmed_error
from flows.batch_summary import (
    BatchRow,
    BatchSummary,
    RowState,
    bad_row,
    bad_rows_error,
    batch_error,
    link_of,
    publish,
    summarize,
)
from flows.budget import Budget, BudgetError, paid_attempts, spent_on
from flows.calendar_rows import BadRow, BatchItem, Row, RowProblem, check_row, mark_duplicates
from flows.calendars import read_calendar
from flows.errors import InvalidKeyError, KeyConflictError, PipelineError
from flows.generate_video import generate
from flows.generation import Generation, State
from flows.keys import Key, check_key
from flows.media.errors import MediaError
from flows.progress import run_logger, tell_count
from flows.rehearsal import check_api
from flows.resources import Resources, command_options, load_block, open_resources
from flows.steps.retrying import delays_seconds

SUBMISSIONS_PER_SECOND: Final = 5.0
"""Prefect's event queue was measured to hold 10,000 messages: a burst of 1,000 generations at once overflows it, 4 to
5 a second do not. And APIXO advises against many submissions at once."""
BAD_ROWS_LOGGED: Final = 100
"""A file of junk has 5,000. The table has all of them."""
CHECKS_AT_ONCE: Final = 8
"""Images that a dry run looks at at the same time."""


def _lenient(value: Any, validate: ValidatorFunctionWrapHandler) -> BatchItem | BadRow:
    """A bad item of a list becomes a row to report, as it would in a file."""
    if isinstance(value, dict):
        row = check_row(1, value)
        return row.item if isinstance(row, Row) else row
    try:
        return validate(value)  # type: ignore[no-any-return]
    except ValidationError:
        return BadRow(line=1, id=None, problems=(RowProblem(field="", message="must be an object with a prompt"),))


LenientItem = Annotated[BatchItem, WrapValidator(_lenient)]


def _run_name() -> str:
    parameters = flow_run.parameters
    return f"{'rehearse' if parameters.get('dry_run') else 'generate'} batch {parameters.get('key') or flow_run.id}"


# retries=0: not even a profile's default retries may run a flow that pays again by themselves.
@flow(name="generate-batch", flow_run_name=_run_name, persist_result=False, log_prints=False, retries=0)
async def generate_batch(
    requests: list[LenientItem] | None = None,
    calendar: str | None = None,
    key: Key | None = None,
    wait: bool = True,
    on_bad_rows: Literal["refuse", "skip"] = "refuse",
    dry_run: bool = False,
    max_spend: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None,
    max_in_flight: Annotated[int, Field(ge=1)] | None = None,
    submissions_per_second: Annotated[float, Field(gt=0, le=100)] = SUBMISSIONS_PER_SECOND,
    api: str = "default",
    archive: str = "default",
) -> BatchSummary:
    """Generates the videos of a content calendar. Running it again with the same key does only what is missing.

    Args:
        requests: The videos; or give a calendar.
        calendar: A CSV or JSON Lines file: a path on the worker's machine, or `s3://bucket/object` in the archive's
            store. Columns: prompt, id, duration, aspect_ratio, image_urls, mode, remove_watermark, not_before.
        key: Names this batch for ever; a video's key is `<key>-<id>`. Without one, this run's id is the key, and every
            new run pays for all its videos.
        wait: Off ends the run after the last submission. The collector brings the videos home.
        on_bad_rows: `refuse` submits nothing when any row is not understood, `skip` goes on with the others.
        dry_run: Checks every row and image, the archive and the API, prices it all, and spends nothing.
        max_spend: The most that all runs of this batch together may pay, by the API block's `price_per_second`.
        max_in_flight: Most videos under way at once; empty means as many as the API block says.
        submissions_per_second: How fast videos are submitted.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    key = check_key(str(flow_run.id) if key is None else key)
    blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    async with open_resources(*blocks, options=command_options(api, archive)) as resources:
        rows = await _rows(requests, calendar, key, resources)
        bad = [row for row in rows if isinstance(row, BadRow)]
        for row in bad[:BAD_ROWS_LOGGED]:
            run_logger().error("Line %d is not understood. %s", row.line, bad_row(row).problem)
        if len(bad) > BAD_ROWS_LOGGED:
            run_logger().error("%d more are not understood: see the run's table.", len(bad) - BAD_ROWS_LOGGED)
        limit = None if max_spend is None else Decimal(str(max_spend))
        batch = await Batch.look(key, rows, resources, wait=wait, max_spend=limit)
        if dry_run:
            summary = await batch.rehearse()
        elif bad and on_bad_rows == "refuse":
            refused = batch.untouched()
            await publish(refused)
            raise bad_rows_error(bad, refused)
        else:
            summary = await batch.run(
                max_in_flight=min(max_in_flight or resources.api.max_in_flight, resources.api.max_in_flight),
                submissions_per_second=submissions_per_second,
            )
    await publish(summary)
    run_logger().info("Batch %s: %s", key, summary.sentence())
    if summary.failed:
        raise batch_error(summary)
    return summary


async def _rows(
    requests: Sequence[BatchItem | BadRow] | None, calendar: str | None, key: str, resources: Resources
) -> list[Row | BadRow]:
    """What is asked for, each row understood or not. Rows whose key would not be one are not."""
    if (requests is None) is (calendar is None):
        raise PipelineError("Give either requests or a calendar. Nothing was submitted.", key=key)
    if calendar is not None:
        rows = await read_calendar(calendar, resources.archive)
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


class Batch:
    """The rows of one run, and what the ledger knows of them."""

    def __init__(
        self,
        key: str,
        rows: Sequence[Row | BadRow],
        before: Mapping[str, Generation],
        budget: Budget,
        resources: Resources,
        *,
        wait: bool,
    ) -> None:
        self._key, self._wait = key, wait
        self._before, self._budget, self._resources = before, budget, resources
        self._bad = [bad_row(row) for row in rows if isinstance(row, BadRow)]
        self._due: list[Row] = []
        self._later: list[BatchRow] = []
        today = resources.now().date()
        for row in rows:
            if isinstance(row, Row) and row.item.not_before is not None and row.item.not_before > today:
                self._later.append(self._row(row, "not due", note=f"not before {row.item.not_before}"))
            elif isinstance(row, Row):
                self._due.append(row)

    @classmethod
    async def look(
        cls, key: str, rows: Sequence[Row | BadRow], resources: Resources, *, wait: bool, max_spend: Decimal | None
    ) -> Self:
        """The batch with what the ledger knows of its rows, and so with what earlier runs paid.

        Raises:
            BudgetError: there is a limit and no price to count with.
            StoreError: the ledger does not answer.
        """
        keys = [row.item.key(key) for row in rows if isinstance(row, Row)]
        entries = await resources.ledger.read_all(keys)
        before = {entry.generation.key: entry.generation for entry in entries if entry is not None}
        price = resources.api.price_per_second
        budget = Budget(price_per_second=price, max_spend=max_spend, spent_before=spent_on(before.values(), price))
        return cls(key, rows, before, budget, resources, wait=wait)

    def untouched(self) -> BatchSummary:
        """The summary of a batch that is refused."""
        return self._summary([self._row(row, "not submitted") for row in self._due])

    async def run(self, *, max_in_flight: int, submissions_per_second: float) -> BatchSummary:
        """Has every due row generated, at most so many at once. A row that fails does not stop the others."""
        tell_count(len(self._due))
        gate = asyncio.Semaphore(max_in_flight)
        ramp = AsyncLimiter(1, 1 / submissions_per_second)
        run_logger().info(
            "Batch %s: %d due row(s), %d of them known, at most %d at once, %g submissions a second.",
            self._key, len(self._due), len(self._before), max_in_flight, submissions_per_second,
        )  # fmt: skip

        async def one(row: Row) -> BatchRow:
            async with gate:
                return await self._generate(row, ramp)

        return self._summary(await asyncio.gather(*(one(row) for row in self._due)))

    async def rehearse(self) -> BatchSummary:
        """Checks every row, its images and the API, and prices what would be submitted. Spends nothing."""
        tell_count(len(self._due))
        await check_api(self._resources)
        gate = asyncio.Semaphore(CHECKS_AT_ONCE)

        async def one(row: Row) -> BatchRow:
            async with gate:
                return await self._rehearse(row)

        return self._summary(await asyncio.gather(*(one(row) for row in self._due)), dry_run=True)

    async def _generate(self, row: Row, ramp: AsyncLimiter) -> BatchRow:
        key = row.item.key(self._key)

        async def before_paying() -> None:
            self._budget.reserve(key, row.item.duration)
            await ramp.acquire()

        try:
            made = await generate(
                row.item.request(), key, self._resources, wait=self._wait, before_paying=before_paying
            )
        except (ApixoError, StoreError, PipelineError, MediaError) as error:
            return await self._failed(row, error)
        except Exception as error:  # noqa: BLE001 - a bug that one row meets must not take the others with it
            run_logger().exception("%s failed in a way that nobody foresaw.", key)
            return await self._failed(row, error)
        return self._recorded(row, made)

    async def _failed(self, row: Row, error: Exception) -> BatchRow:
        key = row.item.key(self._key)
        problem = str(error) or type(error).__name__
        try:
            entry = await self._resources.ledger.read(key)
        except (StoreError, PipelineError):
            return self._row(row, "not submitted", problem=f"{problem} The ledger cannot be read, so look again.")
        found = entry.generation if entry is not None else None
        if paid_attempts(found) == paid_attempts(self._before.get(key)):
            self._budget.release(key)
        if found is None:
            return self._row(row, "not submitted", problem=problem)
        refusal = found.attempt.problem
        if found.state is State.REJECTED and refusal is not None and refusal.kind == AuthenticationError.__name__:
            self._budget.close("APIXO does not take the API key, so the rest was not tried")
        if isinstance(error, BudgetError | KeyConflictError):
            return self._row(row, "not submitted", problem=problem)
        return self._recorded(row, found, problem=problem)

    async def _rehearse(self, row: Row) -> BatchRow:
        key, request = row.item.key(self._key), row.item.request()
        found = self._before.get(key)
        if found is not None:
            if found.request != request:
                return self._row(row, "not submitted", problem=str(conflict_error(found)))
            options = self._resources.options
            if found.state is State.UNCONFIRMED:
                return self._recorded(row, found, problem=str(unconfirmed_error(found, options)))
            if found.state is State.FAILED and not found.attempt.resubmit_allowed:
                return self._recorded(row, found, problem=str(failed_error(found, options)))
            if found.state not in (State.REJECTED, State.FAILED):
                return self._recorded(row, found)
        validate_image = steps.validate_image.with_options(
            retry_delay_seconds=delays_seconds(self._resources.api.retry_delay_seconds)
        )
        try:
            await validate_image(key, request, self._resources)
            self._budget.reserve(key, request.duration)
        except (StoreError, PipelineError, MediaError) as error:
            return self._row(row, "not submitted", problem=str(error))
        return self._row(row, "ready")

    def _row(self, row: Row, state: RowState, *, problem: str = "", note: str = "") -> BatchRow:
        return BatchRow(
            line=row.line,
            key=row.item.key(self._key),
            state=state,
            problem=problem,
            note=note,
            duration_seconds=row.item.duration,
            price=self._budget.price(row.item.duration),
        )

    def _recorded(self, row: Row, generation: Generation, *, problem: str = "") -> BatchRow:
        video = generation.video
        made: BatchRow = self._row(row, generation.state.value, problem=problem, note="; ".join(generation.warnings))
        return made.model_copy(
            update={
                "task_id": generation.task_id,
                "object_name": video.name if video else None,
                "link": link_of(generation, self._resources.archive),
            }
        )

    def _summary(self, due: Sequence[BatchRow], *, dry_run: bool = False) -> BatchSummary:
        return summarize(
            self._key,
            [*self._bad, *self._later, *due],
            price=self._budget.spent,
            spent_before=self._budget.spent_before if self._budget.price_per_second is not None else None,
            dry_run=dry_run,
        )
