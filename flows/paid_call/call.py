"""One paid call: its claim, its POST, its answer, and the record of the answer."""

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

from apixo import ApixoClient, ApixoError, NotSentError, ProvablyUnpaidError, VideoRequest, may_resubmit
from blocks.store_errors import StoreError
from flows.clock import Clock
from flows.record import transitions
from flows.record.advice import task_of_another_key, unconfirmed_error
from flows.record.generation import Generation, Owner, Problem
from flows.record.ledger import Entry, Ledger
from flows.record.pipeline_errors import LedgerError, PipelineError, UnconfirmedError
from flows.signals.events import emit

T = TypeVar("T")

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

FRESH_SECONDS: Final = 2.0
"""A claim older than this is checked again before the request is sent."""
ANSWER_RETRY_TIMEOUT_SECONDS: Final = 3600.0
"""How long to retry recording the provider's answer, even if the store rejects it: keys may be rotated, a quota raised,
a store may recover. Only the end of the process ends it earlier."""
PAUSE_SECONDS: Final = 2.0
"""The pause before such a retry."""
ALARM_SECONDS: Final = 1.0
"""How long recording the provider's answer may take before the log and an event also contain the task id."""


@dataclass(frozen=True, slots=True)
class LostRace:
    """Another process claimed the key first, or the reservation has `expired`. Nothing was sent."""

    expired: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider accepted the request, and this is recorded.

    Attributes:
        entry: the record. It may continue with another task, after a manual decision in the meantime.
        task_id: the task that this call paid for.
        reply_was_lost: whether the task is known not from the reply but from its callback or a user.
    """

    entry: Entry
    task_id: str
    reply_was_lost: bool = False


@dataclass(frozen=True, slots=True)
class Rejected:
    """Provably unpaid. The record's state may be another one, if an earlier attempt was answered late."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Unclear:
    """It is unknown whether it was paid.

    Attributes:
        entry: the record; None if it could not be written: the claim without an answer means the same.
        error: the error for the caller, with what to do.
        cause: what happened. Anything but an `ApixoError` is a bug, or the end of the process.
    """

    entry: Entry | None
    error: UnconfirmedError
    cause: BaseException


Outcome = LostRace | Accepted | Rejected | Unclear


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidCall:
    """What one paid call needs. `make` runs to its end in the payment thread, even if the run is being ended.

    Attributes:
        key, request: the video, as recorded.
        sent: the request as sent: with the requested model or a fallback model, and with the image URLs for the
            provider. These may be signed, so they are used nowhere else.
        terms: further fields of the attempt.
        claim_before: when its reservation expires; None: never.
        over: the record that the claim replaces; None: there is none.
        owner: this process, as the claim names it.
        callback_url: where the provider reports the end; None: nowhere.
        lease_seconds: how long other processes leave the claim alone.
        options: the options with which a `sora` command in a message finds the same blocks.
        log: for answers that cannot be recorded at once.
    """

    key: str
    request: VideoRequest
    sent: VideoRequest = field(repr=False)
    terms: transitions.ClaimTerms
    claim_before: datetime | None
    over: Entry | None
    owner: Owner
    callback_url: str | None
    lease_seconds: float
    options: str
    log: Log
    clock: Clock

    async def make(self, client: ApixoClient, ledger: Ledger, stopping: threading.Event) -> Outcome:
        """Claims, sends once, and does not end before the answer is recorded or logged.

        Raises:
            StoreError: the claim, or a rejection, could not be written. Nothing was paid.
            LedgerError: the provider accepted it, and the ledger could not be written for an hour.
            PipelineError: the run is being ended. Nothing was claimed or sent.
        """
        if stopping.is_set():
            raise PipelineError(f"The run was ended before {self.key} was claimed. Nothing was sent.", key=self.key)
        started, started_at = self.clock.monotonic(), self.clock.now()
        if self.claim_before is not None and started_at >= self.claim_before:
            return LostRace(expired=True)
        claimed = await ledger.claim(
            transitions.claim(
                self.over.generation if self.over else None,
                key=self.key,
                request=self.request,
                owner=self.owner,
                lease_seconds=self.lease_seconds,
                now=started_at,
                **self.terms,
            ),
            over=self.over,
        )
        if claimed is None:
            return LostRace()

        async def still_ours() -> None:
            if stopping.is_set():
                raise NotSentError("The run was ended before the request was sent. Nothing was sent.")

            # This process may have been suspended, the machine asleep, or the store slow. Another process may have
            # given up the claim since, and a user may have resubmitted. The monotonic clock stops while a machine
            # sleeps, and the wall clock may be changed, so the larger age counts.
            def age_seconds() -> float:
                return max(self.clock.monotonic() - started, (self.clock.now() - started_at).total_seconds())

            lost = age_seconds() > FRESH_SECONDS and await self._lost_its_claim(claimed, ledger)
            if lost or age_seconds() > self.lease_seconds / 2:  # the age again: the check may have taken long
                raise NotSentError("The claim grew too old before the request could be sent. Nothing was sent.")

        try:
            task_id = await client.submit_once(
                self.sent,
                callback_url=self.callback_url,
                idempotency_key=f"{self.key}/{claimed.generation.attempt.number}",  # no key contains a slash
                before_sending=still_ours,
            )
        except ProvablyUnpaidError as error:
            return await self._write_rejected(claimed, error, ledger)
        except BaseException as error:  # noqa: BLE001 - also a cancellation: the request may have been sent
            return await self._write_unconfirmed(claimed, _problem(error), error, ledger)
        return await self._write_accepted(claimed, task_id, ledger)

    async def _lost_its_claim(self, claimed: Entry, ledger: Ledger) -> bool:
        try:
            current = await ledger.read(self.key)
        except StoreError as error:
            raise NotSentError(f"The claim could not be checked before sending ({error}). Nothing was sent.") from error
        return current is None or current.generation.nonce != claimed.generation.nonce

    async def _write_accepted(self, claimed: Entry, task_id: str, ledger: Ledger) -> Outcome:
        number = claimed.generation.attempt.number

        def how(current: Generation) -> Generation:
            return transitions.submitted(current, attempt_number=number, task_id=task_id, now=self.clock.now())

        async def write() -> Outcome:
            owner = await ledger.tasks.bind(task_id, self.key, number, naming=claimed.generation.next_naming)
            if owner.key != self.key:
                problem = task_of_another_key(task_id, owner.key, self.options)
                return await self._write_unconfirmed(claimed, problem, LedgerError(problem.message), ledger)
            return Accepted(await ledger.change(self.key, how, known=claimed), task_id)

        command = f"sora resolve {self.key} --task-id {task_id}{self.options}"

        def alarm() -> None:
            self.log.error(
                "APIXO accepted %s as task %s, but the ledger is not written yet. Retrying for %.0f s. If this "
                "run ends before that, run: %s", self.key, task_id, ANSWER_RETRY_TIMEOUT_SECONDS, command,
            )  # fmt: skip
            emit("submitted", how(claimed.generation))

        try:
            return await _until_written(write, alarm)
        except Exception as error:
            raise LedgerError(
                f"APIXO accepted {self.key} as task {task_id}, but the ledger could not be written: {error} "
                f"Once that is fixed, run: {command}",
                key=self.key,
                task_id=task_id,
            ) from error

    async def _write_rejected(self, claimed: Entry, error: ProvablyUnpaidError, ledger: Ledger) -> Rejected:
        """An unrecorded rejection would look like an unknown payment, so this is retried for a long time."""
        number, problem = claimed.generation.attempt.number, _problem(error)

        def how(current: Generation) -> Generation:
            return transitions.rejected(current, attempt_number=number, problem=problem, now=self.clock.now())

        def alarm() -> None:
            self.log.error(
                "APIXO rejected %s (%s), but the ledger is not written yet. Retrying for %.0f s. If this "
                "run ends before that, run: sora resolve %s --resubmit%s", self.key, error,
                ANSWER_RETRY_TIMEOUT_SECONDS, self.key, self.options,
            )  # fmt: skip

        async def write() -> Rejected:
            return Rejected(await ledger.change(self.key, how, known=claimed))

        return await _until_written(write, alarm)

    async def _write_unconfirmed(
        self, claimed: Entry, problem: Problem, cause: BaseException, ledger: Ledger
    ) -> Accepted | Unclear:
        """Records that the payment is unclear, unless the task is already known, as from its callback."""
        number = claimed.generation.attempt.number

        def how(current: Generation) -> Generation:
            return transitions.unconfirmed(current, attempt_number=number, problem=problem, now=self.clock.now())

        error = unconfirmed_error(how(claimed.generation), self.options)
        try:
            async with _alarm_if_slow(lambda: self.log.error("%s", error)):
                entry = await ledger.change(self.key, how, known=claimed)
        except (StoreError, LedgerError):
            return Unclear(None, error, cause)  # the claim stays without an answer, which means the same
        task_id = entry.generation.attempts[number - 1].task_id
        if task_id is not None and isinstance(cause, ApixoError):
            return Accepted(entry, task_id, reply_was_lost=True)
        return Unclear(entry, error, cause)


async def _until_written(write: Callable[[], Awaitable[T]], alarm: Callable[[], None]) -> T:
    """Records the answer, and retries after each error of the store. The first error triggers the alarm at once."""
    started = time.monotonic()
    async with _alarm_if_slow(alarm) as sound:
        while True:
            try:
                return await write()
            except Exception as error:
                sound()  # always: if the waiting run is cancelled, the error is not seen
                if not isinstance(error, StoreError) or time.monotonic() - started > ANSWER_RETRY_TIMEOUT_SECONDS:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)


@contextlib.asynccontextmanager
async def _alarm_if_slow(alarm: Callable[[], None]) -> AsyncIterator[Callable[[], None]]:
    """Calls the alarm, once, when the block has taken a second or when it calls the yielded function.

    The alarm runs in its own thread, because logging and events may block or raise.
    """
    sounded = False

    def quietly() -> None:
        with contextlib.suppress(BaseException):  # even the SystemExit of a broken console
            alarm()

    def start() -> None:
        nonlocal sounded
        if sounded:
            return
        context = contextvars.copy_context()  # log and emit in the context of the flow run
        thread = threading.Thread(target=context.run, args=(quietly,), name="payment-alarm", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread left in a container: recording continues without an alarm
            thread.start()
            sounded = True

    timer = asyncio.get_running_loop().call_later(ALARM_SECONDS, start)
    try:
        yield start
    finally:
        timer.cancel()


def _problem(error: BaseException) -> Problem:
    return Problem(
        kind=type(error).__name__,
        code=str(getattr(error, "code", None) or ""),
        message=str(error) or "the run was stopped while it waited for the answer",
        retryable=may_resubmit(error),
        retry_after_seconds=error.retry_after_seconds if isinstance(error, ApixoError) else None,
    )
