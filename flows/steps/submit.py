"""The paid call: claims the key, sends one POST, writes down what came back.

The order is what the first promise stands on. The claim is in the ledger before the POST, and only the claim's winner
sends it. While the claim stands without an answer, nobody else sends anything. A crash anywhere leaves no claim, a
provable no, a task id, or a claim that turns `unconfirmed`. Only after the first two is anything sent again by itself.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from prefect import task
from prefect.cache_policies import NO_CACHE

from apixo import VideoRequest, retry_delay
from apixo.constants import MAX_TRIES
from flows import generation as transitions
from flows.advice import conflict_error, failed_error, unconfirmed_error
from flows.announcements import announce
from flows.errors import SubmissionRejectedError
from flows.events import emit
from flows.generation import Attempt, Generation, Problem, State
from flows.ledger import Entry
from flows.payment import Payment
from flows.progress import run_logger, tell
from flows.resources import Resources

LOOK_SECONDS: Final = 0.5
"""How often a run that joined another's claim looks for its answer. A read of the ledger takes a few milliseconds."""

Permission = Callable[[Sequence[Attempt]], Awaitable[str | None]]
"""Asked whether a generation whose last attempt failed may be submitted once more: by what, or None."""

BeforePaying = Callable[[], Awaitable[None]]
"""Called before each claim. It may take its time; what it raises keeps the request from being claimed and sent."""


async def at_once() -> None:
    """Nothing stands before the paid call."""


async def _never(attempts: Sequence[Attempt]) -> None:
    del attempts


# retries=0: not even a profile's default retries may repeat this step by themselves.
@task(name="submit", task_run_name="submit {key}", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def submit(
    key: str,
    request: VideoRequest,
    resources: Resources,
    may_submit_again: Permission = _never,
    before_paying: BeforePaying = at_once,
    waits: bool = False,
) -> Generation:
    """Has the provider take the request, once per key. Prefect never retries it; it repeats only provable noes itself.

    Args:
        key: one key is one video.
        request: the same for every run of this key.
        resources: the API and the ledger.
        may_submit_again: whether a failed generation may be paid for a second time. A person's rerun may.
        before_paying: called before each claim, such as to keep a batch within its budget.
        waits: whether this run goes on to wait for the end. The record says so, for the collector.

    Raises:
        KeyConflictError: the key belongs to another request.
        SubmissionRejectedError: the provider said no, or could not be reached. Nothing was paid.
        UnconfirmedError: no clear answer came, now or in an earlier run. It may have been paid.
        VideoFailedError: the provider took it before, and failed.
        StoreError: the ledger cannot be written, so nothing was submitted.
    """
    return await Submission(key, request, resources, may_submit_again, before_paying, waits=waits).run()


class Submission:
    """One run's way to a submitted generation: its own, or another run's that it joins."""

    def __init__(
        self,
        key: str,
        request: VideoRequest,
        resources: Resources,
        may_submit_again: Permission,
        before_paying: BeforePaying = at_once,
        *,
        waits: bool = False,
    ) -> None:
        self._key = key
        self._request = request
        self._resources = resources
        self._ledger = resources.ledger
        self._may_submit_again = may_submit_again
        self._before_paying = before_paying
        self._waits = waits
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
                raise conflict_error(found)
            match found.state:
                case State.SUBMITTED | State.SUCCEEDED | State.ARCHIVED:
                    return self._submitted(found)
                case State.CLAIMED:
                    await self._join(entry)
                case State.UNCONFIRMED:
                    raise unconfirmed_error(found, self._resources.options)
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
                await self._ledger.close(entry.generation)
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
        granted_by = None
        if not found.permanently_failed and not found.attempt.resubmit_allowed:
            before = found.attempt.number == self._attempts_before
            granted_by = await self._may_submit_again(found.attempts) if before else None
        if found.permanently_failed or not (found.attempt.resubmit_allowed or granted_by):
            await announce(found, self._resources)
            raise failed_error(found, self._resources.options)
        self._log.warning(
            "%s failed in attempt %d. A person wants it submitted once more.", self._key, found.attempt.number
        )
        await self._claim_and_pay(entry, granted_by=granted_by)

    async def _join(self, entry: Entry) -> None:
        """Waits for the answer to another's claim. Where none comes, its owner is dead and the payment unclear."""
        claim = entry.generation.attempt
        self._log.info(
            "%s is being submitted by process %d on %s; waiting up to %.0f s for its answer.", self._key,
            claim.claimed_by.pid, claim.claimed_by.host, claim.lease_seconds,
        )  # fmt: skip
        tell(self._key, "submit", f"waiting for process {claim.claimed_by.pid} on {claim.claimed_by.host}")
        await settle(entry, self._resources)

    async def _claim_and_pay(self, over: Entry | None, *, granted_by: str | None = None) -> None:
        resources = self._resources
        await self._before_paying()
        number = len(over.generation.attempts) + 1 if over else 1
        callback_url = resources.api.callback_url_for(self._key, number)
        started, started_at = resources.monotonic(), resources.now()
        claimed = await self._ledger.claim(
            transitions.claim(
                over.generation if over else None,
                key=self._key,
                request=self._request,
                owner=resources.owner(),
                lease_seconds=resources.api.lease_seconds,
                now=started_at,
                granted_by=granted_by,
                waited_for=self._waits,
            ),
            over=over,
        )
        if claimed is None:
            return  # someone else was faster: look again

        def age_seconds() -> float:
            # The monotonic clock stops while a machine sleeps, the wall clock may be set: the larger counts.
            return max(resources.monotonic() - started, (resources.now() - started_at).total_seconds())

        tell(self._key, "submit", "sending the request")
        payment = Payment(claimed, self._request, callback_url, age_seconds, resources, self._log)
        await resources.payer.run(payment.make)


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


def _finished_attempts(entry: Entry | None) -> int:
    """How many attempts were over when this run looked first. One under way then counts as made during this run."""
    if entry is None:
        return 0
    return len(entry.generation.attempts) - (entry.generation.state is State.CLAIMED)
