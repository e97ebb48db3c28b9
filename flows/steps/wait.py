"""Waits until the provider has finished the task. One task run, however often it asks."""

from typing import Final

from prefect import task
from prefect.cache_policies import NO_CACHE

from apixo import DeadlineError, Failed, Succeeded, wait_for_end
from flows import generation as transitions
from flows.advice import failed_error
from flows.announcements import announce
from flows.errors import LedgerError
from flows.events import emit
from flows.generation import Generation, State
from flows.progress import run_logger, tell
from flows.resources import Resources

CALLBACK_PATIENCE: Final = 2.0
"""How many times longer the first question waits for a callback: twice APIXO's 180 s are the 6 minutes that it says a
video takes at most. Nobody asks before then, for the callback comes earlier; if it is lost, polling begins."""


# retries=0: not even a profile's default retries may repeat this step by themselves.
@task(name="wait", task_run_name="wait {key}", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def wait(key: str, resources: Resources) -> Succeeded | None:
    """Sleeps, then asks until the task ends. None: the ledger already says that it has ended well.

    A transient answer never ends the wait, only a final state or the deadline does. The status is returned rather than
    stored: result URLs may be signed.

    Raises:
        VideoFailedError: the provider reports the task as failed.
        DeadlineError: not finished in time. A rerun goes on waiting.
        AuthenticationError: the API key does not hold (any more). A rerun with the right one goes on.
    """
    logger = run_logger()
    entry = await resources.ledger.read(key)
    if entry is None or entry.generation.task_id is None:
        raise LedgerError(f"{key} has no task to wait for.", key=key)
    found = entry.generation
    if found.state in (State.SUCCEEDED, State.ARCHIVED):
        logger.info("%s was finished before: the ledger says %s.", key, found.state)
        tell(key, "wait", "done before", done=True)
        return None
    if found.state is State.FAILED:
        raise failed_error(found, resources.options)
    try:
        status = await _end_of(found, found.task_id or "", resources)
    except DeadlineError as error:
        raise DeadlineError(
            f"{key}: {error.message} Run it again with the same key, which pays nothing, or leave it to the collector.",
            task_id=found.task_id,
        ) from error
    return await settle_status(key, status, resources)


async def settle_status(key: str, status: Succeeded | Failed, resources: Resources) -> Succeeded:
    """Writes a task's end into the ledger.

    Raises:
        VideoFailedError: the end was a failure.
    """
    if isinstance(status, Failed):
        failed = status
        entry = await resources.ledger.change(key, lambda now: transitions.failed(now, failed, now=resources.now()))
        if entry.generation.state is State.FAILED:
            await announce(entry.generation, resources, found=False)
            raise failed_error(entry.generation, resources.options)
        raise LedgerError(f"{key} is {entry.generation.state}, but APIXO says failed.", key=key, task_id=status.task_id)
    succeeded = status
    await resources.ledger.mark_open(key)  # it may have been closed: some providers say failed first and success later
    entry = await resources.ledger.change(key, lambda now: transitions.succeeded(now, succeeded, now=resources.now()))
    run_logger().info("APIXO finished task %s of %s.", status.task_id, key)
    emit("succeeded", entry.generation)
    tell(key, "wait", "finished", fraction=1.0, done=True)
    return status


async def _end_of(found: Generation, task_id: str, resources: Resources) -> Succeeded | Failed:
    api, key = resources.api, found.key
    # Time that passed before this run counts, by the wall clock: a rerun need not sit through the initial wait again.
    passed = (resources.now() - (found.attempt.submitted_at or resources.now())).total_seconds()
    patience = CALLBACK_PATIENCE if api.callback_url else 1.0
    initial_wait_seconds = max(patience * api.initial_wait_seconds - max(passed, 0.0), 0.0)
    run_logger().info(
        "Waiting for task %s of %s: first question in %.0f s%s, then every %g s, for at most %g s.",
        task_id, key, initial_wait_seconds, " or when its callback comes" if api.callback_url else "",
        api.poll_interval_seconds, api.deadline_seconds,
    )  # fmt: skip
    tell(key, "wait", "waiting")

    def report(answer: str, waited_seconds: float) -> None:
        tell(key, "wait", f"{answer[:60]}, {waited_seconds:.0f} s", fraction=waited_seconds / api.deadline_seconds)

    return await wait_for_end(
        lambda: resources.client.status_once(task_id),
        task_id=task_id,
        initial_wait_seconds=initial_wait_seconds,
        poll_interval_seconds=api.poll_interval_seconds,
        deadline_seconds=api.deadline_seconds,
        report=report,
        sleep=lambda seconds: resources.doorbell.sleep(key, seconds, resources.sleep),
        monotonic=resources.monotonic,
        chance=resources.chance,
    )
