"""One run of a batch: its rows, their records in the ledger, and how each is generated within the limits."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Final, Self

from aiolimiter import AsyncLimiter

from apixo import InsufficientCreditsError, SoraError
from flows import steps
from flows.balance import check_balance
from flows.batch.brake import AT_ONCE, OutageBrake, Report, free_call
from flows.batch.budget import Budget, BudgetError
from flows.batch.calendar_rows import BadRow, Row, as_submitted, keys_of
from flows.batch.shares import Priced
from flows.batch.stop import Stop
from flows.batch.summary import BatchRow, BatchSummary, RowState, bad_row, link_of, summarize
from flows.checks import check_before_paying
from flows.concurrency import at_most
from flows.generate_video import generate
from flows.paid_call import Accepted, LostRace, Outcome, Rejected, price_needed
from flows.record import moderation
from flows.record.advice import (
    conflict_error,
    duplicate_error,
    duplicate_sentence,
    failed_error,
    unconfirmed_error,
    unknown_model,
)
from flows.record.generation import PAID, Generation, Problem, State
from flows.record.indexes import is_same_video
from flows.record.monthly_spend import Ceilings
from flows.record.payments import paid_attempts, spent_on
from flows.record.pipeline_errors import (
    CeilingError,
    DuplicateRequestError,
    KeyConflictError,
    LedgerError,
    SupersededError,
    UnconfirmedError,
)
from flows.resources import PayingResources, Resources
from flows.signals.batch_progress import BatchProgress
from flows.signals.progress import report_total, run_logger
from flows.steps.retrying import retried
from flows.submission import Terms
from flows.wording import counted

STARTING_AT_ONCE: Final = 16
"""How many rows are validated and submitted at the same time. The others wait here at no cost: a thousand rows that
read the ledger at once would only queue there."""
SHOWN_PROMPT_CHARACTERS: Final = 200
"""How much of a prompt is in the result: enough to recognize the video."""
CHECKS_AT_ONCE: Final = 8
"""How many rows a dry run checks at the same time, with their images."""


class Batch:
    """The rows of one run, and their records in the ledger."""

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
        shards: int = 1,
    ) -> None:
        self.key, self.terms, self.budget = key, terms, budget
        self._rows, self._notes = rows, list(notes)
        self._before, self._resources = before, resources
        self._bad = [bad_row(row) for row in rows if isinstance(row, BadRow)]
        brake = OutageBrake(
            free_call(resources.client),
            outage_seconds=resources.api.submit_outage_seconds,
            at_once=max(AT_ONCE // shards, 1),
            clock=resources.clock,
        )
        self.stop = Stop(key, brake)
        self.due: list[Row] = []
        self.later: list[BatchRow] = []
        today = resources.clock.now().date()
        for row in rows:
            if isinstance(row, Row) and row.item.not_before is not None and row.item.not_before > today:
                self.later.append(self._row(row, "not due", note=f"not before {row.item.not_before}"))
            elif isinstance(row, Row):
                self.due.append(row)

    @classmethod
    async def load(
        cls,
        key: str,
        rows: Sequence[Row | BadRow],
        resources: Resources,
        *,
        terms: Terms,
        max_spend: Decimal | None,
        notes: Sequence[str] = (),
        shards: int = 1,
    ) -> Self:
        """The batch with its rows' records from the ledger, and so with what earlier runs paid.

        Args:
            max_spend: the most that all runs together may pay for these rows; None: no limit.
            shards: how many runs submit rows of this batch at the same time.

        Raises:
            BudgetError: there is a limit, and the price of a model is unknown.
            StoreError: the ledger does not answer.
        """
        known = await resources.ledger.read_all(keys_of(rows, key))
        rows = [as_submitted(row, key, known) for row in rows]
        keys = {row.item.key(key) for row in rows if isinstance(row, Row)}
        before = {found.key: found for found in known.values() if found.key in keys}
        prices = resources.api.price_list
        models = sorted({model for row in rows if isinstance(row, Row) for model in row.item.models})
        unpriced = [model for model in models if model not in prices]
        ceilings = Ceilings(resources.api.max_spend_per_day, resources.api.max_spend_per_month)
        if ceilings and unpriced:
            raise BudgetError(price_needed(", ".join(unpriced)), key=key)
        spent = spent_on(before.values(), prices)
        budget = Budget(prices, models=models, max_spend=max_spend, spent_before=spent)
        return cls(key, rows, before, budget, resources, terms=terms, notes=notes, shards=shards)

    def untouched(self) -> BatchSummary:
        """The summary of a batch that is rejected."""
        return self._summary([self._row(row, "not submitted") for row in self.due])

    async def run(self, paying: PayingResources, *, max_in_flight: int, submissions_per_second: float) -> BatchSummary:
        """Generates every due row, at most `max_in_flight` at once. A failed row does not stop the others."""
        report_total(len(self.due))
        paying.spending.expect(self._needed())
        gate, starting = asyncio.Semaphore(max_in_flight), asyncio.Semaphore(STARTING_AT_ONCE)
        ramp = AsyncLimiter(1, 1 / submissions_per_second)
        run_logger().info(
            "Batch %s: %s due, %d of them known, at most %d at once, %g submissions a second.",
            self.key, counted(len(self.due), "row"), len(self._before), max_in_flight, submissions_per_second,
        )  # fmt: skip
        shown = BatchProgress(self.key, len(self.due), monotonic=self._resources.clock.monotonic)

        async def one(row: Row) -> BatchRow:
            async with gate:
                made = await self._generate(row, paying, ramp, starting)
            await shown.ended(made.state)
            return made

        rows = [asyncio.ensure_future(one(row)) for row in self.due]
        try:
            made = await asyncio.gather(*rows)
            await shown.finish()
        finally:
            # If Prefect ends one row, as in a suspended run, the others must still get the answers to their calls.
            for row in rows:
                row.cancel()
            await asyncio.gather(*rows, return_exceptions=True)
            await self.stop.aclose()
        return self._summary(made)

    async def check_balance(self) -> None:
        """Adds a note if the APIXO account has less than these rows cost.

        Raises:
            SoraError: it has less, and the API block requires enough.
        """
        low = await check_balance(self._resources.client, self._resources.api, self._needed(), batch_key=self.key)
        if low is not None:
            run_logger().warning("%s", low)
            self._notes.append(low)

    def _needed(self) -> Decimal:
        """The cost of the rows that are not paid for yet, as far as their prices are known."""
        return sum((item.cost for item in self.priced()), Decimal(0))

    def priced(self) -> list[Priced]:
        """The due rows with what was paid for each, and what it still costs, as far as prices are known."""
        prices, priced = self._resources.api.price_list, list[Priced]()
        for row in self.due:
            found = self._before.get(row.item.key(self.key))
            spent = spent_on([found], prices)
            unpaid = found is None or found.state not in PAID
            cost = self.budget.price(row.item.seconds, row.item.model) if unpaid else None
            priced.append(Priced(row, spent, cost or Decimal(0)))
        return priced

    async def reload(self) -> Self:
        """The same rows with their current records. Due rows stay due, and no others become due after midnight."""
        again = await self.load(
            self.key, self._rows, self._resources, terms=self.terms, max_spend=self.budget.max_spend, notes=self._notes
        )
        again.due, again.later = self.due, self.later
        return again

    def as_recorded(self, row: Row, problem: str) -> BatchRow:
        """A row that no shard reported, as the ledger has it, with a problem unless it is archived."""
        found = self._before.get(row.item.key(self.key))
        if found is None:
            return self._row(row, "not submitted", problem=problem)
        return self._recorded(row, found, problem="" if found.state is State.ARCHIVED else problem)

    def summary_of(self, due: Sequence[BatchRow], *, blocked: str | None) -> BatchSummary:
        """The summary if other runs have processed the due rows."""
        self.stop.blocked = blocked
        return self._summary(due)

    async def check(self) -> BatchSummary:
        """Checks every row, its images and the API, and prices the rows to be submitted. Spends nothing."""
        report_total(len(self.due))
        findings = await check_before_paying(self._resources)
        self._notes += [f"{finding.name}: {finding.detail}" for finding in findings]
        await self.check_balance()
        return self._summary(await at_most(CHECKS_AT_ONCE, self._check, self.due), dry_run=True)

    async def _generate(
        self, row: Row, resources: PayingResources, ramp: AsyncLimiter, starting: asyncio.Semaphore
    ) -> BatchRow:
        key = row.item.key(self.key)

        @asynccontextmanager
        async def paying(model: str) -> AsyncIterator[Report]:
            self.stop.check(key, row.item.models)
            self.budget.reserve(key, row.item.on(model).seconds, model)
            await ramp.acquire()
            async with self.stop.brake.call(key) as report:
                self.stop.check(key, row.item.models)  # another row may have been rejected while this one waited

                def report_outcome(outcome: Outcome) -> None:
                    if isinstance(outcome, Accepted):
                        self.budget.pay(key)
                    if isinstance(outcome, LostRace):
                        self.budget.lose(key)
                    report(outcome)
                    if isinstance(outcome, Rejected):
                        self.stop.rejected(outcome.entry.generation.attempt, row.item.models)

                yield report_outcome

        terms = replace(
            self.terms, paying=paying, unclaimed=key not in self._before, batch=self.key, gone=self.stop.gone
        )
        try:
            made = await generate(row.item.request(), key, resources, terms, starting=starting)
        except SoraError as error:
            return await self._failed(row, error)
        except Exception as error:  # noqa: BLE001 - a bug in one row must not end the others
            run_logger().exception("%s failed with an unexpected error.", key)
            return await self._failed(row, error)
        if made.state is State.ARCHIVED and not self._was_finished(key):
            self.stop.archived()
        return self._recorded(row, made)

    def _was_finished(self, key: str) -> bool:
        """Whether APIXO had finished the video before this run."""
        before = self._before.get(key)
        return before is not None and before.state in (State.SUCCEEDED, State.ARCHIVED)

    async def _failed(self, row: Row, error: Exception) -> BatchRow:
        key = row.item.key(self.key)
        problem = str(error) or type(error).__name__
        try:
            entry = await self._resources.ledger.read(key)
        except SoraError:
            # A row that may need a manual decision must not look as if nothing was sent.
            state: RowState = "unconfirmed" if isinstance(error, LedgerError | UnconfirmedError) else "not submitted"
            return self._row(row, state, problem=f"{problem} The ledger cannot be read, so check again.")
        found = entry.generation if entry is not None else None
        if isinstance(error, CeilingError):
            self.stop.blocked = self.stop.blocked or str(error).partition(": ")[2]
        unpaid = paid_attempts(found) == paid_attempts(self._before.get(key))
        if unpaid or isinstance(error, CeilingError) or (found is not None and found.state is State.REJECTED):
            self.budget.release(key)
        if found is None:
            return self._row(row, "not submitted", problem=problem)
        before = self._before.get(key)
        known = before is not None and (before.attempt.number, before.state) == (found.attempt.number, found.state)
        if found.state is State.FAILED and not known and isinstance(found.failure(), InsufficientCreditsError):
            rejection = found.attempt.problem or Problem(kind="InsufficientCreditsError", message=problem)
            self.stop.account_rejected(rejection)
        if isinstance(error, BudgetError | CeilingError | DuplicateRequestError | KeyConflictError):
            return self._row(row, "not submitted", problem=problem)
        may_pass = isinstance(error, SupersededError) or (isinstance(error, SoraError) and error.retryable)
        if found.state is State.SUCCEEDED and not may_pass and not self._was_finished(key):
            self.stop.not_archived(problem)
        return self._recorded(row, found, problem=problem)

    async def _check(self, row: Row) -> BatchRow:
        key, request = row.item.key(self.key), row.item.request()
        found = self._before.get(key)
        if found is not None and (known := self._check_known(row, found)) is not None:
            return known
        validate_image = retried(steps.validate_image, self._resources.api.retry_delay_seconds)
        try:
            await validate_image(key, request, self._resources)
            first = await self._resources.ledger.duplicate_of(request, key, note=False)
            if first is not None and self.terms.refuse_duplicates:
                raise duplicate_error(key, first, self._resources.options)
            self.budget.reserve(key, request.seconds, request.model)
        except SoraError as error:
            return self._row(row, "not submitted", problem=str(error))
        note = unknown_model(request) or "" if first is None else f"{duplicate_sentence(key, first)}."
        return self._row(row, "ready", note=note)

    def _check_known(self, row: Row, found: Generation) -> BatchRow | None:
        """The result for a row that would not be submitted because of its record; None: it would be."""
        options = self._resources.options
        if not is_same_video(found.request, row.item.request()):
            return self._row(row, "not submitted", problem=str(conflict_error(found)))
        if found.state is State.UNCONFIRMED:
            return self._recorded(row, found, problem=str(unconfirmed_error(found, options)))
        submitted_again = moderation.may_submit_again(found, self._resources.api.moderation_retries)
        if found.state is State.FAILED and not (found.attempt.resubmit_allowed or submitted_again):
            return self._recorded(row, found, problem=str(failed_error(found, options)))
        return None if found.state in (State.REJECTED, State.FAILED) else self._recorded(row, found)

    def _row(self, row: Row, state: RowState, *, problem: str = "", note: str = "") -> BatchRow:
        return BatchRow(
            line=row.line,
            key=row.item.key(self.key),
            state=state,
            problem=problem,
            note=note,
            prompt=row.item.prompt[:SHOWN_PROMPT_CHARACTERS],
            duration_seconds=row.item.seconds,
            price=self.budget.price(row.item.seconds, row.item.model),
        )

    def _recorded(self, row: Row, generation: Generation, *, problem: str = "") -> BatchRow:
        video = generation.video
        made: BatchRow = self._row(row, generation.state.value, problem=problem, note="; ".join(generation.warnings))
        requested, price = generation.requested, generation.attempt.price  # perhaps a fallback model's
        return made.model_copy(
            update={
                "duration_seconds": requested.seconds,
                "price": self.budget.price(requested.seconds, requested.model) if price is None else price,
                "task_id": generation.task_id,
                "poster_name": generation.poster_name,
                "object_name": video.name if video else None,
                "link": link_of(generation, self._resources.archive),
            }
        )

    def _summary(self, due: Sequence[BatchRow], *, dry_run: bool = False) -> BatchSummary:
        return summarize(
            self.key,
            [*self._bad, *self.later, *due],
            price=self.budget.spent,
            spent_before=self.budget.spent_before if self.budget.counts else None,
            blocked=self.stop.blocked,
            notes=self._notes,
            dry_run=dry_run,
        )
