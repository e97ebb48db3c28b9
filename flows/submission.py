"""Submits a request to the provider, once per key: reads the record, and pays if no run has paid yet.

The order of steps in `flows.paid_call` guarantees that nothing is paid twice. While a claim is unanswered, no other
process sends anything.
"""

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

from apixo import VideoRequest, retry_delay
from apixo.constants import MAX_TRIES
from flows.clock import Clock
from flows.paid_call import Accepted, LostRace, Outcome, PaidCall, Unclear
from flows.record import moderation, transitions
from flows.record.advice import conflict_error, duplicate_error, duplicate_sentence, failed_error, unconfirmed_error
from flows.record.fallback import is_gone, next_model
from flows.record.generation import Generation, Problem, State
from flows.record.indexes import is_same_video
from flows.record.ledger import RETRY_TIMEOUT_SECONDS, Entry, Ledger
from flows.record.pipeline_errors import LedgerError, SubmissionRejectedError
from flows.resources import PayingResources
from flows.signals.events import emit, publish_end
from flows.signals.progress import report_progress, run_logger
from flows.task_end import recheck_failure
from flows.wording import utc

CHECK_SECONDS: Final = 0.5
"""How often a run that waits for another run's claim checks for its answer. A read of the ledger takes milliseconds."""

DUPLICATES_AGAIN_SECONDS: Final = 60.0
"""After a longer wait for a limit, duplicates are checked again: an unclaimed key counts as first only for a while."""

Permission = Callable[[Generation], Awaitable[str | None]]
"""Returns the id of the permission to resubmit a generation whose last attempt failed, or None if there is none."""

Paying = Callable[[str], AbstractAsyncContextManager[Callable[[Outcome], None]]]
"""Entered with the model before each claim, and left after the answer, which is reported to it. Entering may take long;
if it raises, the request is neither claimed nor sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms of a run's submissions.

    Attributes:
        may_submit_again: whether a failed generation may be paid for again, as by a user's rerun. None: never.
        paying: wraps each claim and its answer, such as to keep a batch within its budget. The default does nothing.
        waits: whether this run then waits for the end. It is recorded for the collector.
        refuse_duplicates: whether a request that was submitted under another key is an error.
        batch: the key of the video's batch, for the record.
        gone: models that were found unavailable for other videos of this run. It may grow meanwhile.
        unclaimed: whether the run already knows that the key has no record. This saves a read; if a record has been
            created since, the claim fails.
    """

    may_submit_again: Permission | None = None
    paying: Paying = lambda _: nullcontext(lambda _: None)
    waits: bool = False
    refuse_duplicates: bool = False
    gone: Collection[str] = ()
    unclaimed: bool = False
    batch: str | None = None


class Submission:
    """Brings one key to the state submitted: by its own paid call, or by waiting for another run's."""

    def __init__(self, key: str, request: VideoRequest, resources: PayingResources, terms: Terms | None = None) -> None:
        self._key = key
        self._request = request
        self._resources = resources
        self._ledger = resources.ledger
        self._terms = terms or Terms()
        self._attempts_before = 0
        self._checked_for_duplicates_at = 0.0
        self._unreadable_since: float | None = None
        self._log = run_logger()

    async def run(self) -> Entry:
        """Reads the record and acts on it until the task is submitted."""
        entry = None if self._terms.unclaimed else await self._ledger.read(self._key)
        self._attempts_before = _finished_attempts(entry)
        while True:
            if entry is None:
                await self._check_for_duplicates()
                entry = await self._pay(None)
                continue
            found = entry.generation
            if not is_same_video(found.request, self._request):
                raise conflict_error(found)
            match found.state:
                case State.SUBMITTED | State.SUCCEEDED | State.ARCHIVED:
                    return self._submitted(entry)
                case State.CLAIMED:
                    entry = await self._join(entry)
                case State.UNCONFIRMED:
                    unclear, entry = entry, await reconcile(entry, self._ledger, self._resources.clock)
                    if entry is unclear:
                        raise unconfirmed_error(found, self._resources.options)
                case State.REJECTED:
                    entry = await self._after_rejection(entry)
                case State.FAILED:
                    entry = await self._after_failure(entry)

    def _submitted(self, entry: Entry) -> Entry:
        found = entry.generation
        if self._attempts_before == len(found.attempts):
            self._log.info("%s was submitted before, as task %s. Nothing is sent.", self._key, found.task_id)
        report_progress(self._key, "submit", f"task {found.task_id}", done=True)
        return entry

    async def _check_for_duplicates(self) -> None:
        """Before anything is paid under a new key, reports another key with the same request, or raises an error."""
        self._checked_for_duplicates_at = self._resources.clock.monotonic()
        first = await self._ledger.duplicate_of(self._request, self._key, note=True)
        if first is None:
            return
        if self._terms.refuse_duplicates:
            raise duplicate_error(self._key, first, self._resources.options)
        self._log.warning("%s.", duplicate_sentence(self._key, first))

    async def _after_rejection(self, entry: Entry) -> Entry | None:
        """Submits again. Rejections from before this run do not count; those since then count as tries of this run."""
        attempt = entry.generation.attempt
        problem = attempt.problem
        fresh = entry.generation.attempts[self._attempts_before :]
        tries = sum(item.model == attempt.model for item in fresh)
        if tries > 0 and problem is not None:
            fallback = next_model(self._request, fresh, self._terms.gone) if is_gone(problem) else None
            if fallback is not None:
                report_progress(self._key, "submit", f"{attempt.model} is not available, trying {fallback}")
                self._log.warning(
                    "%s was rejected, because APIXO does not offer %s (%s); nothing was paid. Its fallback model %s is "
                    "tried.", self._key, attempt.model, problem.message, fallback,
                )  # fmt: skip
                return await self._pay(entry, model=fallback)
            if not problem.retryable or tries >= MAX_TRIES:
                await self._ledger.close(entry.generation)
                raise SubmissionRejectedError(
                    f"{self._key} was not submitted, after {len(fresh)} {'try' if len(fresh) == 1 else 'tries'}: "
                    f"{problem.message}{f' The model was {attempt.model}.' if is_gone(problem) else ''}",
                    key=self._key,
                )
            report_progress(self._key, "submit", f"rejected ({problem.code or problem.kind}), trying again")
            pause = retry_delay(
                tries,
                retry_after_seconds=problem.retry_after_seconds,
                first_seconds=self._resources.api.retry_delay_seconds,
                rng=self._resources.clock.rng,
            )
            self._log.warning(
                "%s was rejected (%s); nothing was paid. Next try in %.1f s.", self._key, problem.message, pause
            )
            await self._resources.clock.sleep(pause)
            return await self._pay(entry, model=attempt.model if attempt.model in self._request.models else None)
        # What allowed this may be long past: an earlier attempt's failed task may have succeeded since.
        polled = await recheck_failure(entry, self._resources)
        if polled is not entry:
            return polled
        if not entry.generation.may_be_paid:
            await self._check_for_duplicates()  # the same video may have been paid for under another key since
        return await self._pay(entry)

    async def _after_failure(self, entry: Entry) -> Entry | None:
        found = entry.generation
        retries = self._resources.api.moderation_retries
        may_be_mistaken = moderation.may_submit_again(found, retries)
        granted_by = None
        if may_be_mistaken or not (found.permanently_failed or found.attempt.resubmit_allowed):
            before = found.attempt.number == self._attempts_before
            if before and self._terms.may_submit_again is not None:
                granted_by = await self._terms.may_submit_again(found)
        if not may_be_mistaken and (found.permanently_failed or not (found.attempt.resubmit_allowed or granted_by)):
            await publish_end(found, self._ledger, self._resources.archive, self._resources.events)
            raise failed_error(found, self._resources.options)
        polled = await recheck_failure(entry, self._resources)
        if polled is not entry:
            return polled
        if may_be_mistaken:
            note = moderation.reason(found, retries)
            self._log.warning("%s: %s. It is paid again.", self._key, note)
            # This uses up a user's rerun. Otherwise it would pay again when a worker restarts the run.
            return await self._pay(entry, granted_by=granted_by or moderation.GRANTED_BY, note=note)
        self._log.warning(
            "%s failed in attempt %d. Resubmitting after a manual decision.", self._key, found.attempt.number
        )
        return await self._pay(entry, granted_by=granted_by)

    async def _join(self, entry: Entry) -> Entry:
        """Waits for the answer to another run's claim. If none comes, its owner is dead and the payment unclear."""
        claim = entry.generation.attempt
        self._log.info(
            "%s is being submitted by process %d on %s; waiting up to %.0f s for its answer.", self._key,
            claim.claimed_by.pid, claim.claimed_by.host, claim.lease_seconds,
        )  # fmt: skip
        report_progress(self._key, "submit", f"waiting for process {claim.claimed_by.pid} on {claim.claimed_by.host}")
        return await wait_for_answer(entry, self._ledger, self._resources.clock)

    async def _pay(
        self, over: Entry | None, *, granted_by: str | None = None, model: str | None = None, note: str | None = None
    ) -> Entry | None:
        """Waits for all limits, then makes one paid call. Returns the resulting record; None if there is none."""
        outcome: Outcome | None = None
        while outcome is None:
            requested = model or next_model(self._request, (), self._terms.gone) or self._request.model
            async with self._terms.paying(requested) as report:
                if model is None and requested in self._terms.gone and next_model(self._request, (), self._terms.gone):
                    continue  # it was found unavailable while this one waited for its turn
                outcome = await self._call(over, granted_by, requested, note)
                report(outcome)
        if isinstance(outcome, LostRace):
            found = await self._ledger.read(self._key)
            if found is None and not outcome.expired:
                await self._wait_for_record()
            return found
        if isinstance(outcome, Unclear):
            raise outcome.error from outcome.cause
        return outcome.entry

    async def _wait_for_record(self) -> None:
        """Pauses if the store contradicts itself: it rejects a new record as existing, but a read finds none.

        Raises:
            LedgerError: it has done so for too long.
        """
        now = self._resources.clock.monotonic()
        self._unreadable_since = self._unreadable_since or now
        if now - self._unreadable_since > RETRY_TIMEOUT_SECONDS:
            raise LedgerError(
                f"{self._key} was not submitted: the store refuses to create its record, as if there were one, and "
                "answers that there is none. Does a cache or a replica in front of the store answer? Connect to the "
                "store itself. Nothing was sent.",
                key=self._key,
            )
        await self._resources.clock.sleep(CHECK_SECONDS)

    async def _call(self, over: Entry | None, granted_by: str | None, model: str, note: str | None) -> Outcome:
        resources = self._resources
        await resources.client.wait_for_turn()
        if over is None and resources.clock.monotonic() - self._checked_for_duplicates_at > DUPLICATES_AGAIN_SECONDS:
            await self._check_for_duplicates()
        report_progress(self._key, "submit", "sending the request")
        requested, number = self._request.on(model), len(over.generation.attempts) + 1 if over else 1
        price = resources.api.price(model, requested.seconds)
        async with resources.spending.reserved(self._key, model, price) as reserved:
            call = PaidCall(
                key=self._key,
                request=self._request,
                sent=requested.model_copy(
                    update={"image_urls": list(map(resources.image_url_for, requested.image_urls))}
                ),
                terms={
                    "model": model,
                    "price": price,
                    "currency": resources.api.currency,
                    "reservation": reserved.name,
                    "batch": self._terms.batch,
                    "note": note,
                    "granted_by": granted_by,
                    "waited_for": self._terms.waits,
                },
                claim_before=reserved.valid_until,
                over=over,
                owner=resources.owner(),
                callback_url=resources.api.callback_url_for(self._key, number),
                lease_seconds=resources.api.lease_seconds,
                options=resources.options,
                log=self._log,
                clock=resources.clock,
            )

            def report(outcome: Outcome) -> None:
                reserved.outcome = outcome
                self._report(outcome)

            return await resources.payments.run(call.make, report)

    def _report(self, outcome: Outcome) -> None:
        """Logs and publishes an outcome, which is already recorded."""
        match outcome:
            case Accepted(entry, task_id, reply_was_lost=True):
                self._log.warning(
                    "%s was accepted after all, as task %s: the reply was lost, and the ledger now has the "
                    "task.", self._key, task_id,
                )  # fmt: skip
            case Accepted(entry, task_id):
                self._log.info("APIXO accepted %s as task %s.", self._key, task_id)
                emit("submitted", entry.generation, task_id=task_id)
                if entry.generation.task_id != task_id:
                    self._log.error(
                        "%s continues with task %s after a manual decision; task %s is paid as well. Its "
                        "id is in the ledger.", self._key, entry.generation.task_id, task_id,
                    )  # fmt: skip
            case Unclear(entry, error):
                self._log.error("%s", error)
                if entry is not None and entry.generation.state is State.UNCONFIRMED:
                    emit("unconfirmed", entry.generation)


async def wait_for_answer(entry: Entry, ledger: Ledger, clock: Clock) -> Entry:
    """Waits until a claim has an answer. After its lease it becomes `unconfirmed`, unless the store knows its task.

    The lease is measured by our own clock from the moment we saw the claim, because clocks of machines differ.

    Returns:
        The resulting record.
    """
    claimed = entry.generation
    number = claimed.attempt.number
    deadline = clock.monotonic() + claimed.attempt.lease_seconds
    while clock.monotonic() < deadline:
        await clock.sleep(min(CHECK_SECONDS, max(deadline - clock.monotonic(), 0.01)))
        current = await ledger.existing(claimed.key)
        if current.generation.state is not State.CLAIMED or current.etag != entry.etag:
            return current
    found = await reconcile(entry, ledger, clock)
    if found is not entry:
        return found
    problem = Problem(
        kind="OwnerDied",
        message=(
            f"process {claimed.attempt.claimed_by.pid} on {claimed.attempt.claimed_by.host} claimed it at "
            f"{utc(claimed.attempt.claimed_at)} and recorded no answer, so it may have died before "
            "or after the request was sent"
        ),
    )
    unanswered = partial(transitions.unconfirmed, attempt_number=number, problem=problem, now=clock.now())
    given_up = await ledger.change(claimed.key, unanswered, known=entry)
    if given_up.generation.state is State.UNCONFIRMED:
        emit("unconfirmed", given_up.generation)
    return given_up


async def reconcile(entry: Entry, ledger: Ledger, clock: Clock) -> Entry:
    """Adds the task that the store knows to an attempt without an answer: its process died before the record named it.

    Returns:
        The resulting record; the same entry object if nothing has changed.
    """
    unanswered = entry.generation
    noted = await ledger.tasks.noted_for(unanswered)
    if noted is None:
        return entry
    task_id, owner = noted
    note = "its process died after it had recorded the task"
    named = partial(transitions.submitted, task_id=task_id, named_by=owner.named_by, note=note, now=clock.now())
    found = await ledger.change(owner.key, partial(named, attempt_number=owner.attempt_number), known=entry)
    if found.etag == entry.etag:
        return entry
    run_logger().warning("%s was accepted as task %s: its process died before the record said so.", owner.key, task_id)
    emit("submitted", found.generation, task_id=task_id)
    return found


def _finished_attempts(entry: Entry | None) -> int:
    """How many attempts had ended when this run began. An attempt in progress then counts as made during this run."""
    if entry is None:
        return 0
    return len(entry.generation.attempts) - (entry.generation.state is State.CLAIMED)
