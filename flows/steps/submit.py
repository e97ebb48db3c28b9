"""The paid call: claims the key, sends one POST, writes down what came back.

The order is what the first promise stands on. The claim is in the ledger before the POST, and only the claim's winner
sends it. While the claim stands without an answer, nobody else sends anything. A crash anywhere leaves no claim, a
provable no, a task id, or a claim that turns `unconfirmed`. Only after the first two is anything sent again by itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from apixo import ApixoError, NotSentError, ProvablyUnpaidError, VideoRequest, may_resubmit, retry_delay
from apixo.constants import MAX_TRIES
from blocks.errors import StoreError
from flows import generation as transitions
from flows.errors import KeyConflictError, LedgerError, SubmissionRejectedError, UnconfirmedError, VideoFailedError
from flows.events import emit
from flows.generation import Attempt, Generation, Problem, State, TransitionError
from flows.ledger import Entry
from flows.progress import run_logger, tell
from flows.resources import Resources

T = TypeVar("T")

LOOK_SECONDS: Final = 0.5
"""How often a run that joined another's claim looks for its answer. A read of the ledger takes a few milliseconds."""

Permission = Callable[[Attempt], Awaitable[bool]]
"""Asked whether a generation whose last attempt failed may be submitted once more."""


async def _never(attempt: Attempt) -> bool:
    del attempt
    return False


@task(name="submit", task_run_name="submit {key}", cache_policy=NO_CACHE, persist_result=False)
async def submit(
    key: str, request: VideoRequest, resources: Resources, may_submit_again: Permission = _never
) -> Generation:
    """Has the provider take the request, once per key. Prefect never retries it; it repeats only provable noes itself.

    Args:
        key: one key is one video.
        request: the same for every run of this key.
        resources: the API and the ledger.
        may_submit_again: whether a failed generation may be paid for a second time. A person's rerun may.

    Raises:
        KeyConflictError: the key belongs to another request.
        SubmissionRejectedError: the provider said no, or could not be reached. Nothing was paid.
        UnconfirmedError: no clear answer came, now or in an earlier run. It may have been paid.
        VideoFailedError: the provider took it before, and failed.
        StoreError: the ledger cannot be written, so nothing was submitted.
    """
    return await Submission(key, request, resources, may_submit_again).run()


class Submission:
    """One run's way to a submitted generation: its own, or another run's that it joins."""

    def __init__(self, key: str, request: VideoRequest, resources: Resources, may_submit_again: Permission) -> None:
        self._key = key
        self._request = request
        self._resources = resources
        self._ledger = resources.ledger
        self._may_submit_again = may_submit_again
        self._attempts_before: int | None = None
        self._log = run_logger()

    async def run(self) -> Generation:
        """Looks at the record, acts on what it says, and looks again until it says that the task is submitted."""
        while True:
            entry = await self._ledger.read(self._key)
            if self._attempts_before is None:
                self._attempts_before = _finished_attempts(entry)
            if entry is None:
                await self._claim_and_pay(None)
                continue
            found = entry.generation
            if found.request != self._request:
                raise KeyConflictError(
                    f"The key {self._key} belongs to another request (claimed {found.created_at:%Y-%m-%d %H:%M} UTC: "
                    f"{found.request.prompt[:80]!r}). One key is one video: use a new key for a new request.",
                    key=self._key,
                )
            match found.state:
                case State.SUBMITTED | State.SUCCEEDED | State.ARCHIVED:
                    return self._submitted(found)
                case State.CLAIMED:
                    await self._join(entry)
                case State.UNCONFIRMED:
                    raise unconfirmed_error(found)
                case State.REJECTED:
                    await self._after_rejection(entry)
                case State.FAILED:
                    await self._after_failure(entry)

    def _submitted(self, found: Generation) -> Generation:
        if self._attempts_before == len(found.attempts):
            self._log.info("%s was submitted before, as task %s. Nothing is sent.", self._key, found.task_id)
        tell(self._key, "submit", f"task {found.task_id}", done=True)
        return found

    async def _after_rejection(self, entry: Entry) -> None:
        """A rejection from before this run is no obstacle. One that happened meanwhile counts as a try of ours."""
        attempt = entry.generation.attempt
        problem = attempt.problem
        tries = attempt.number - (self._attempts_before or 0)
        if tries > 0 and problem is not None:
            if not problem.retryable or tries >= MAX_TRIES:
                await self._ledger.close(self._key)
                raise SubmissionRejectedError(
                    f"{self._key} was not submitted, after {tries} {'try' if tries == 1 else 'tries'}: "
                    f"{problem.message}",
                    key=self._key,
                )
            tell(self._key, "submit", f"refused ({problem.code or problem.kind}), trying again")
            pause = retry_delay(
                tries,
                retry_after_seconds=problem.retry_after_seconds,
                first_seconds=self._resources.api.retry_delay_seconds,
                chance=self._resources.chance,
            )
            self._log.warning(
                "%s was not taken (%s); nothing was paid. Next try in %.1f s.", self._key, problem.message, pause
            )
            await self._resources.sleep(pause)
        await self._claim_and_pay(entry)

    async def _after_failure(self, entry: Entry) -> None:
        found = entry.generation
        before = found.attempt.number == self._attempts_before
        allowed = found.attempt.resubmit_allowed or (before and await self._may_submit_again(found.attempt))
        if found.permanently_failed or not allowed:
            raise failed_error(found)
        self._log.warning(
            "%s failed in attempt %d. A person wants it submitted once more.", self._key, found.attempt.number
        )
        await self._claim_and_pay(entry)

    async def _join(self, entry: Entry) -> None:
        """Waits for the answer to another's claim. Where none comes, its owner is dead and the payment unclear."""
        claim = entry.generation.attempt
        self._log.info(
            "%s is being submitted by process %d on %s; waiting up to %.0f s for its answer.", self._key,
            claim.claimed_by.pid, claim.claimed_by.host, claim.lease_seconds,
        )  # fmt: skip
        tell(self._key, "submit", f"waiting for process {claim.claimed_by.pid} on {claim.claimed_by.host}")
        await settle(entry, self._resources)

    async def _claim_and_pay(self, over: Entry | None) -> None:
        resources = self._resources
        callback_url = resources.api.callback_url_for(self._key)
        started = resources.monotonic()
        lease_seconds = resources.api.lease_seconds
        claimed = await self._ledger.claim(
            transitions.claim(
                over.generation if over else None,
                key=self._key,
                request=self._request,
                owner=resources.owner(),
                lease_seconds=lease_seconds,
                now=resources.now(),
            ),
            over=over,
        )
        if claimed is None:
            return  # someone else was faster: look again

        def claim_is_fresh() -> None:
            if resources.monotonic() - started > lease_seconds / 2:
                # This process was frozen, or the store very slow. Others may have given the claim up by now, and a
                # person may have resubmitted.
                raise NotSentError("The claim grew too old before the request could be sent. Nothing was sent.")

        tell(self._key, "submit", "sending the request")
        await _to_its_end(self._pay(claimed.generation, callback_url, claim_is_fresh))

    async def _pay(self, claimed: Generation, callback_url: str | None, before_sending: Callable[[], None]) -> None:
        """The POST and the writing down of its answer. Runs to its end even when the run is cancelled meanwhile."""
        number = claimed.attempt.number
        try:
            task_id = await self._resources.client.submit_once(
                self._request, callback_url=callback_url, before_sending=before_sending
            )
        except ProvablyUnpaidError as error:
            problem = _problem(error)
            self._log.warning("%s was not taken: %s", self._key, error)
            await self._ledger.change(
                self._key,
                lambda current: transitions.rejected(
                    current, attempt_number=number, problem=problem, now=self._resources.now()
                ),
            )
        except BaseException as error:
            await self._write_unconfirmed(number, error)
            raise
        else:
            await self._write_submitted(claimed, task_id)

    async def _write_submitted(self, claimed: Generation, task_id: str) -> None:
        number = claimed.attempt.number

        def how(current: Generation) -> Generation:
            return transitions.submitted(current, attempt_number=number, task_id=task_id, now=self._resources.now())

        # First where the store cannot get in the way: with the task id in the log or the event a person can finish the
        # generation even if the write below never succeeds.
        self._log.info("APIXO took %s as task %s.", self._key, task_id)
        emit("submitted", how(claimed))
        try:
            entry = await self._ledger.change(self._key, how, patience_seconds=self._resources.api.deadline_seconds)
        except (StoreError, LedgerError, TransitionError) as error:
            raise LedgerError(
                f"APIXO took {self._key} as task {task_id}, but the ledger could not be written: {error} "
                f"Once the store is back, run: sora resolve {self._key} --task-id {task_id}",
                key=self._key,
                task_id=task_id,
            ) from error
        if entry.generation.attempt.number != number:
            self._log.error(
                "%s was resubmitted by a person before APIXO's answer to attempt %d came: task %s is paid as well. "
                "Its id is in the ledger.", self._key, number, task_id,
            )  # fmt: skip

    async def _write_unconfirmed(self, number: int, error: BaseException) -> None:
        entry = await self._ledger.change(
            self._key,
            lambda now: transitions.unconfirmed(
                now, attempt_number=number, problem=_problem(error), now=self._resources.now()
            ),
        )
        emit("unconfirmed", entry.generation)
        if isinstance(error, ApixoError):
            raise unconfirmed_error(entry.generation) from error


async def settle(entry: Entry, resources: Resources) -> Generation:
    """Waits until a claim has an answer; after its lease it becomes `unconfirmed`. Returns the record as it then is.

    The lease is measured by our own clock from the moment we saw the claim: clocks of machines differ.
    """
    claimed = entry.generation
    deadline = resources.monotonic() + claimed.attempt.lease_seconds
    while resources.monotonic() < deadline:
        await resources.sleep(min(LOOK_SECONDS, max(deadline - resources.monotonic(), 0.01)))
        current = await resources.ledger.read(claimed.key)
        if current is None or current.generation.state is not State.CLAIMED or current.etag != entry.etag:
            return current.generation if current else claimed
    problem = Problem(
        kind="OwnerDied",
        message=(
            f"process {claimed.attempt.claimed_by.pid} on {claimed.attempt.claimed_by.host} claimed it at "
            f"{claimed.attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC and never wrote an answer, so it may have died before "
            "or after the request was sent"
        ),
    )
    settled = await resources.ledger.change(
        claimed.key,
        lambda now: transitions.unconfirmed(
            now, attempt_number=claimed.attempt.number, problem=problem, now=resources.now()
        ),
    )
    if settled.generation.state is State.UNCONFIRMED:
        emit("unconfirmed", settled.generation)
    return settled.generation


def unconfirmed_error(generation: Generation) -> UnconfirmedError:
    """What a person has to know to resolve it."""
    key, attempt = generation.key, generation.attempt
    why = attempt.problem.message if attempt.problem else "no answer was written"
    return UnconfirmedError(
        f"Nobody can know yet whether {key} was paid: {why} (attempt {attempt.number}, claimed "
        f"{attempt.claimed_at:%Y-%m-%d %H:%M:%S} UTC). It is not sent again by itself. "
        "If a callback comes, it heals. Otherwise look at your APIXO account for a task of that time, then run "
        f"`sora resolve {key} --task-id TASK_ID` if there is one, or `sora resolve {key} --resubmit` if there is none.",
        key=key,
    )


def failed_error(generation: Generation) -> VideoFailedError:
    """What the provider said, and whether trying again makes sense."""
    failure = generation.failure()
    again = f"run `sora resolve {generation.key} --resubmit`, or rerun its deployment's run in the Prefect UI"
    advice = "" if failure.permanent else f" To pay for another try, {again}."
    return VideoFailedError(
        f"{generation.key}: {failure}{advice}",
        key=generation.key,
        task_id=generation.task_id,
        fail_code=failure.fail_code,
        permanent=failure.permanent,
    )


def _finished_attempts(entry: Entry | None) -> int:
    """How many attempts were over when this run looked first. One under way then counts as made during this run."""
    if entry is None:
        return 0
    return len(entry.generation.attempts) - (entry.generation.state is State.CLAIMED)


def _problem(error: BaseException) -> Problem:
    return Problem(
        kind=type(error).__name__,
        code=str(getattr(error, "code", None) or ""),
        message=str(error) or "the run was stopped while it waited for the answer",
        retryable=may_resubmit(error),
        retry_after_seconds=error.retry_after_seconds if isinstance(error, ApixoError) else None,
    )


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits work that must not be cut in the middle. A cancellation is passed on after the work has ended."""
    running = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not running.cancelled():
            running.exception()  # seen: it is in the ledger
        raise cancelled
    return running.result()
