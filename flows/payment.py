"""One paid call and the writing down of its answer."""

import logging
from collections.abc import Callable
from typing import Final

from apixo import ApixoClient, ApixoError, NotSentError, ProvablyUnpaidError, VideoRequest, may_resubmit
from blocks.errors import StoreError
from flows import generation as transitions
from flows.advice import unconfirmed_error
from flows.errors import LedgerError
from flows.events import emit
from flows.generation import Generation, Problem
from flows.ledger import Entry, Ledger
from flows.payer import Stopped
from flows.resources import Resources

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

FRESH_SECONDS: Final = 2.0
"""A claim older than this is looked at once more before the request is sent."""
FIRST_PATIENCE_SECONDS: Final = 3.0
"""How long the ledger may be away after the provider's yes before that is said aloud."""


class Payment:
    """One POST and the writing down of its answer. Runs on the payer's loop, to its end, whatever ends the run."""

    def __init__(
        self,
        claimed: Entry,
        request: VideoRequest,
        callback_url: str | None,
        age_seconds: Callable[[], float],
        resources: Resources,
        log: Log,
    ) -> None:
        self._claimed = claimed
        self._number = claimed.generation.attempt.number
        self._key = claimed.generation.key
        self._request = request
        self._callback_url = callback_url
        self._age_seconds = age_seconds
        self._api = resources.api
        self._now = resources.now
        self._options = resources.options
        self._log = log

    async def make(self, client: ApixoClient, ledger: Ledger, stopped: Stopped) -> None:
        """Sends the request once, and does not end before its answer is written down, or said aloud."""

        async def still_ours() -> None:
            if stopped.is_set:
                raise NotSentError("The run was ended before the request was sent. Nothing was sent.")
            # This process may have been frozen, the machine asleep, or the store slow. Then others may have given the
            # claim up, and a person may have resubmitted.
            age_seconds = self._age_seconds()
            if age_seconds > self._api.lease_seconds / 2 or (
                age_seconds > FRESH_SECONDS and await self._lost_its_claim(ledger)
            ):
                raise NotSentError("The claim grew too old before the request could be sent. Nothing was sent.")

        try:
            task_id = await client.submit_once(
                self._request, callback_url=self._callback_url, before_sending=still_ours
            )
        except ProvablyUnpaidError as error:
            self._log.warning("%s was not taken: %s", self._key, error)
            problem = _problem(error)
            await ledger.change(
                self._key,
                lambda current: transitions.rejected(
                    current, attempt_number=self._number, problem=problem, now=self._now()
                ),
            )
        except BaseException as error:
            healed = await self._write_unconfirmed(ledger, error)
            if not (healed and isinstance(error, ApixoError)):
                raise
        else:
            await self._write_submitted(ledger, task_id)

    async def _lost_its_claim(self, ledger: Ledger) -> bool:
        try:
            current = await ledger.read(self._key)
        except StoreError as error:
            raise NotSentError(
                f"The claim could not be looked at before sending ({error}). Nothing was sent."
            ) from error
        return current is None or current.generation.nonce != self._claimed.generation.nonce

    async def _write_submitted(self, ledger: Ledger, task_id: str) -> None:
        def how(current: Generation) -> Generation:
            return transitions.submitted(current, attempt_number=self._number, task_id=task_id, now=self._now())

        # First where the store cannot get in the way: with the task id in the log or the event a person can finish the
        # generation even if the write below never succeeds.
        command = f"sora resolve {self._key} --task-id {task_id}{self._options}"
        self._log.info("APIXO took %s as task %s.", self._key, task_id)
        emit("submitted", how(self._claimed.generation))
        try:
            try:
                entry = await ledger.change(self._key, how, patience_seconds=FIRST_PATIENCE_SECONDS)
            except StoreError as error:
                self._log.error(
                    "APIXO took %s as task %s, and the ledger cannot be written (%s). It is tried for %.0f s more. "
                    "If this run ends before, run: %s", self._key, task_id, error, self._api.deadline_seconds, command,
                )  # fmt: skip
                entry = await ledger.change(self._key, how, patience_seconds=self._api.deadline_seconds)
        except Exception as error:
            raise LedgerError(
                f"APIXO took {self._key} as task {task_id}, but the ledger could not be written: {error} "
                f"Once that is mended, run: {command}",
                key=self._key,
                task_id=task_id,
            ) from error
        if entry.generation.task_id != task_id:
            self._log.error(
                "%s was resubmitted by a person before APIXO's answer to attempt %d came: task %s is paid as well. "
                "Its id is in the ledger.", self._key, self._number, task_id,
            )  # fmt: skip

    async def _write_unconfirmed(self, ledger: Ledger, error: BaseException) -> bool:
        """Writes that nobody can know, and says so. True: somebody knows, for the callback came before us."""
        problem = _problem(error)

        def how(current: Generation) -> Generation:
            return transitions.unconfirmed(current, attempt_number=self._number, problem=problem, now=self._now())

        told = unconfirmed_error(how(self._claimed.generation), self._options)
        self._log.error("%s", told)  # at once, and also where the write below fails or the run is being ended
        try:
            entry = await ledger.change(self._key, how)
        except StoreError as store_error:
            raise told from store_error  # the claim stays without an answer, which means the same
        task_id = entry.generation.attempts[self._number - 1].task_id
        if task_id is not None:
            self._log.warning("%s was taken after all, as task %s: the ledger was told meanwhile.", self._key, task_id)
            return True
        emit("unconfirmed", entry.generation)
        if isinstance(error, ApixoError):
            raise told from error
        return False


def _problem(error: BaseException) -> Problem:
    return Problem(
        kind=type(error).__name__,
        code=str(getattr(error, "code", None) or ""),
        message=str(error) or "the run was stopped while it waited for the answer",
        retryable=may_resubmit(error),
        retry_after_seconds=error.retry_after_seconds if isinstance(error, ApixoError) else None,
    )
