"""The flow `generate-batch`: a content calendar, many videos in one run."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import Annotated, Any, Final, Literal, Self

from aiolimiter import AsyncLimiter
from prefect.runtime import flow_run
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from apixo import InsufficientCreditsError, SoraError
from apixo.errors import ACCOUNT_ERRORS
from blocks import ApixoApi, VideoArchive
from flows import steps
from flows.batch.brake import OutageBrake, Report, free_call
from flows.batch.budget import Budget, BudgetError, paid_attempts, spent_on
from flows.batch.calendar_rows import BadRow, BatchItem, Row, RowProblem, check_row, mark_duplicates
from flows.batch.calendars import read_calendar
from flows.batch.earlier_keys import as_submitted, keys_of
from flows.batch.limited_flow import limited_flow
from flows.batch.summary import (
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
from flows.checks import check_before_paying
from flows.generate_video import generate
from flows.permission import rerun_by_person
from flows.record.advice import (
    conflict_error,
    duplicate_error,
    duplicate_sentence,
    failed_error,
    unconfirmed_error,
    unknown_model,
)
from flows.record.errors import (
    DuplicateRequestError,
    InvalidKeyError,
    KeyConflictError,
    LedgerError,
    PipelineError,
    SubmissionRejectedError,
    UnconfirmedError,
)
from flows.record.fallback import is_gone
from flows.record.generation import Generation, Problem, State
from flows.record.indexes import is_same_video
from flows.record.keys import Key, calendar_key, check_key, root_run_id
from flows.resources import Resources, command_options, load_block, open_resources
from flows.signals.events import emit_blocked
from flows.signals.output import protect_log_handlers
from flows.signals.progress import report_total, run_logger
from flows.signals.run_log import log_reasons_once
from flows.signals.run_tags import tag_run
from flows.steps.retrying import retried
from flows.submission import Terms

SUBMISSIONS_PER_SECOND: Final = 5.0
"""Prefect's event queue was measured to hold 10,000 messages: a burst of 1,000 generations at once overflows it, 4 to
5 a second do not. And APIXO advises against many submissions at once."""
BAD_ROWS_LOGGED: Final = 100
"""A file of junk has 5,000. The table has all of them."""
STARTING_AT_ONCE: Final = 16
"""Rows that are being validated and submitted at the same time. The others wait in line and cost nothing: a thousand
that all read the ledger at once would only queue there."""
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


ReadCalendar = Callable[[str, VideoArchive], Awaitable[list[Row | BadRow]]]
LenientItem = Annotated[BatchItem, WrapValidator(_lenient)]


def _batch_key(key: str | None, calendar: str | None) -> str:
    """As given, else the calendar's file name, else the id of the outermost flow run."""
    if key is None and calendar:
        return calendar_key(calendar)
    return check_key(root_run_id() or "" if key is None else key)


def _run_name() -> str:
    parameters = flow_run.parameters
    try:
        key = _batch_key(parameters.get("key"), parameters.get("calendar"))
    except InvalidKeyError:  # the run itself raises it, with a message that can be read
        key = str(flow_run.id)
    return f"{'dry run of' if parameters.get('dry_run') else 'generate'} batch {key}"


# retries=0: not even a profile's default retries may run a flow that pays again by themselves.
@limited_flow(name="generate-batch", flow_run_name=_run_name, persist_result=False, log_prints=False, retries=0)
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
    refuse_duplicates: bool = False,
    sheet: str | None = None,
    ignore_columns: bool = False,
    api: str = "default",
    archive: str = "default",
) -> BatchSummary:
    """Generates the videos of a content calendar. Running it again with the same key does only what is missing.

    Args:
        requests: The videos; or give a calendar. Prefect takes 512 KB: give a calendar for more.
        calendar: A CSV, JSON Lines or Excel file: a path on the worker's machine, or `s3://bucket/object` in the
            archive's store. Columns: prompt, id, model, duration, aspect_ratio, image_urls, mode, remove_watermark,
            options, tags, fallback_models, not_before.
        key: Names this batch for ever; a video's key is `<key>-<id>`. Without one, a calendar has its file's name as
            its key, here, on a schedule and in `sora batch` alike: `calendars/Spring Sale.csv` is `spring-sale`.
            Requests without one have the id of this flow run, or of the outermost one around it, as their key: every
            new run pays for all of them, a retry for none again.
        wait: Off ends the run after the last submission. The collector archives the videos.
        on_bad_rows: `refuse` submits nothing when any row is not understood, `skip` goes on with the others.
        dry_run: Checks every row and image, the archive and the API, prices it all, and spends nothing.
        max_spend: The most that all runs of this batch together may pay, by the prices of the API block.
        max_in_flight: Most videos under way at once; empty means as many as the API block says.
        submissions_per_second: How fast videos are submitted.
        refuse_duplicates: On fails a row whose request was submitted under another key, such as that of a renamed
            calendar. Off only says so in the log and in the dry run's table.
        sheet: Which sheet of an Excel workbook. Empty means its only one that is not hidden.
        ignore_columns: On leaves out columns that do not exist, and says so. Those that begin with # always are.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    protect_log_handlers()
    log_reasons_once()
    key = _batch_key(key, calendar)
    blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    async with open_resources(*blocks, pays=not dry_run, options=command_options(api, archive)) as resources:
        notes: list[str] = []
        read = partial(read_calendar, sheet=sheet or None, ignore_columns=ignore_columns, report=notes.append)
        rows = await _rows(requests, calendar, key, resources, read)
        for note in notes:
            run_logger().warning("%s", note)
        await tag_run(tag for row in rows if isinstance(row, Row) for tag in row.item.tags)
        bad = [row for row in rows if isinstance(row, BadRow)]
        for row in bad[:BAD_ROWS_LOGGED]:
            run_logger().error("Line %d is not understood. %s", row.line, bad_row(row).problem)
        if len(bad) > BAD_ROWS_LOGGED:
            run_logger().error("%d more are not understood: see the run's table.", len(bad) - BAD_ROWS_LOGGED)
        limit = None if max_spend is None else Decimal(str(max_spend))
        terms = Terms(may_submit_again=rerun_by_person, waits=wait, refuse_duplicates=refuse_duplicates)
        batch = await Batch.look(key, rows, resources, terms=terms, max_spend=limit, notes=notes)
        if dry_run:
            summary = await batch.check()
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
    requests: Sequence[BatchItem | BadRow] | None,
    calendar: str | None,
    key: str,
    resources: Resources,
    read: ReadCalendar,
) -> list[Row | BadRow]:
    """What is asked for, each row understood or not. Rows whose key would not be one are not."""
    if (requests is None) is (calendar is None):
        raise PipelineError("Give either requests or a calendar. Nothing was submitted.", key=key)
    if calendar is not None:
        rows = await read(calendar, resources.archive)
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
        terms: Terms,
        notes: Sequence[str] = (),
    ) -> None:
        self._key, self._terms, self._notes = key, terms, notes
        self._before, self._budget, self._resources = before, budget, resources
        self._bad = [bad_row(row) for row in rows if isinstance(row, BadRow)]
        self._blocked: str | None = None
        self._brake = OutageBrake(
            free_call(resources.client),
            outage_seconds=resources.api.submit_outage_seconds,
            sleep=resources.sleep,
            monotonic=resources.monotonic,
        )
        self._gone: dict[tuple[str, ...], str] = {}
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
        cls,
        key: str,
        rows: Sequence[Row | BadRow],
        resources: Resources,
        *,
        terms: Terms,
        max_spend: Decimal | None,
        notes: Sequence[str] = (),
    ) -> Self:
        """The batch with what the ledger knows of its rows, and so with what earlier runs paid.

        Raises:
            BudgetError: there is a limit and no price to count with.
            StoreError: the ledger does not answer.
        """
        entries = await resources.ledger.read_all(keys_of(rows, key))
        known = {entry.generation.key: entry.generation for entry in entries if entry is not None}
        rows = [as_submitted(row, key, known) for row in rows]
        keys = {row.item.key(key) for row in rows if isinstance(row, Row)}
        before = {found.key: found for found in known.values() if found.key in keys}
        price, prices = resources.api.price_per_second, resources.api.prices
        budget = Budget(
            price_per_second=price,
            prices=prices,
            models=sorted({model for row in rows if isinstance(row, Row) for model in row.item.models}),
            max_spend=max_spend,
            spent_before=spent_on(before.values(), price, prices),
        )
        return cls(key, rows, before, budget, resources, terms=terms, notes=notes)

    def untouched(self) -> BatchSummary:
        """The summary of a batch that is refused."""
        return self._summary([self._row(row, "not submitted") for row in self._due])

    async def run(self, *, max_in_flight: int, submissions_per_second: float) -> BatchSummary:
        """Has every due row generated, at most so many at once. A row that fails does not stop the others."""
        report_total(len(self._due))
        gate, starting = asyncio.Semaphore(max_in_flight), asyncio.Semaphore(STARTING_AT_ONCE)
        ramp = AsyncLimiter(1, 1 / submissions_per_second)
        run_logger().info(
            "Batch %s: %d due row(s), %d of them known, at most %d at once, %g submissions a second.",
            self._key, len(self._due), len(self._before), max_in_flight, submissions_per_second,
        )  # fmt: skip

        async def one(row: Row) -> BatchRow:
            async with gate:
                return await self._generate(row, ramp, starting)

        try:
            made = await asyncio.gather(*(one(row) for row in self._due))
        finally:
            await self._brake.aclose()
        if self._brake.closed is not None and self._blocked is None:
            self._blocked = f"{self._brake.closed}."
            emit_blocked(self._key, Problem(kind="ProviderOutage", message=self._blocked))
        return self._summary(made)

    async def check(self) -> BatchSummary:
        """Checks every row, its images and the API, and prices what would be submitted. Spends nothing."""
        report_total(len(self._due))
        resources = self._resources
        await check_before_paying(resources.client, resources.store, resources.web, resources.api)
        gate = asyncio.Semaphore(CHECKS_AT_ONCE)

        async def one(row: Row) -> BatchRow:
            async with gate:
                return await self._check(row)

        return self._summary(await asyncio.gather(*(one(row) for row in self._due)), dry_run=True)

    async def _generate(self, row: Row, ramp: AsyncLimiter, starting: asyncio.Semaphore) -> BatchRow:
        key = row.item.key(self._key)

        @asynccontextmanager
        async def paying(model: str) -> AsyncIterator[Report]:
            if (why := self._gone.get(row.item.models)) is not None:
                raise BudgetError(f"{key} was not submitted: {why}.", key=key)
            self._budget.reserve(key, row.item.on(model).seconds, model)
            await ramp.acquire()
            async with self._brake.call(key) as report:
                yield report

        terms = replace(self._terms, paying=paying, unclaimed=key not in self._before)
        try:
            made = await generate(row.item.request(), key, self._resources, terms, starting=starting)
        except SoraError as error:
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
        except SoraError:
            # What a person may have to look into must not look as if nothing had been sent.
            state: RowState = "unconfirmed" if isinstance(error, LedgerError | UnconfirmedError) else "not submitted"
            return self._row(row, state, problem=f"{problem} The ledger cannot be read, so look again.")
        found = entry.generation if entry is not None else None
        if paid_attempts(found) == paid_attempts(self._before.get(key)):
            self._budget.release(key)
        if found is None:
            return self._row(row, "not submitted", problem=problem)
        refusal = found.attempt.problem
        blocked = found.state is State.REJECTED and refusal is not None and refusal.kind in ACCOUNT_ERRORS
        empty = found.state is State.FAILED and isinstance(found.failure(), InsufficientCreditsError)
        if is_gone(refusal) and refusal is not None:
            if isinstance(error, SubmissionRejectedError):  # now, and of the last of its models
                self._say_gone(row.item.models, refusal)
        elif (blocked or empty) and refusal is not None and self._budget.closed is None:
            self._budget.close(f"the rest of the batch would be refused as well ({refusal.message})")
            self._blocked = refusal.message
            emit_blocked(self._key, refusal)
        if isinstance(error, BudgetError | DuplicateRequestError | KeyConflictError):
            return self._row(row, "not submitted", problem=problem)
        return self._recorded(row, found, problem=problem)

    def _say_gone(self, models: tuple[str, ...], refusal: Problem) -> None:
        """Has no further row submitted that has no other model than these, which APIXO does not offer."""
        if models in self._gone:
            return
        why = f"APIXO does not offer {', '.join(models)}, so the other rows of it would be refused as well"
        self._gone[models] = f"{why} ({refusal.message})"
        self._blocked = self._blocked or f"{why}. {refusal.message}"
        emit_blocked(self._key, refusal)

    async def _check(self, row: Row) -> BatchRow:
        key, request = row.item.key(self._key), row.item.request()
        found = self._before.get(key)
        known = None if found is None else self._check_known(row, found)
        if known is not None:
            return known
        validate_image = retried(steps.validate_image, self._resources.api.retry_delay_seconds)
        try:
            await validate_image(key, request, self._resources)
            self._budget.reserve(key, request.seconds, request.model)
            first = await self._resources.ledger.duplicate_of(request, key, note=False)
        except SoraError as error:
            return self._row(row, "not submitted", problem=str(error))
        unknown = unknown_model(request)
        if first is None:
            return self._row(row, "ready", note=unknown or "")
        if self._terms.refuse_duplicates:
            self._budget.release(key)
            return self._row(row, "not submitted", problem=str(duplicate_error(key, first)))
        return self._row(row, "ready", note=f"{duplicate_sentence(key, first)}.")

    def _check_known(self, row: Row, found: Generation) -> BatchRow | None:
        """A row that would not be submitted, since its key is known; None: it would be."""
        options = self._resources.options
        if not is_same_video(found.request, row.item.request()):
            return self._row(row, "not submitted", problem=str(conflict_error(found)))
        if found.state is State.UNCONFIRMED:
            return self._recorded(row, found, problem=str(unconfirmed_error(found, options)))
        if found.state is State.FAILED and not found.attempt.resubmit_allowed:
            return self._recorded(row, found, problem=str(failed_error(found, options)))
        return None if found.state in (State.REJECTED, State.FAILED) else self._recorded(row, found)

    def _row(self, row: Row, state: RowState, *, problem: str = "", note: str = "") -> BatchRow:
        return BatchRow(
            line=row.line,
            key=row.item.key(self._key),
            state=state,
            problem=problem,
            note=note,
            duration_seconds=row.item.seconds,
            price=self._budget.price(row.item.seconds, row.item.model),
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
            spent_before=self._budget.spent_before if self._budget.counts else None,
            blocked=self._blocked,
            notes=self._notes,
            dry_run=dry_run,
        )
