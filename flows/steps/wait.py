"""Waits until the provider has finished the task. One task run, however often it asks."""

from typing import Final

from prefect import task
from prefect.cache_policies import NO_CACHE

from apixo import DeadlineError, Failed, Succeeded, wait_for_end
from flows.record.advice import failed_error
from flows.record.generation import Generation, PaidTask, State
from flows.record.ledger import Entry
from flows.resources import Resources
from flows.signals.progress import report_progress, run_logger
from flows.task_end import record_end

CALLBACK_PATIENCE: Final = 2.0
"""How many times longer the first question waits for a callback: twice APIXO's 180 s are the 6 minutes that it says a
video takes at most. Nobody asks before then, for the callback comes earlier; if it is lost, polling begins."""


# retries=0: not even a profile's default retries may repeat this step by themselves.
@task(name="wait", task_run_name="wait {paid.key}", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def wait(paid: PaidTask, known: Entry, resources: Resources) -> tuple[Entry, Succeeded | None]:
    """Sleeps, then asks until the task ends. Only a final state or the deadline ends the wait, no transient answer.

    Args:
        paid: the task.
        known: the record as it was seen last.
        resources: the API and the ledger.

    Returns:
        The record, and what the provider said: result URLs may be signed, so they are not stored. None: the ledger
        already says that the task has ended well.

    Raises:
        VideoFailedError: the provider reports the task as failed.
        DeadlineError: not finished in time. A rerun goes on waiting.
        AuthenticationError: the API key does not hold (any more). A rerun with the right one goes on.
        SupersededError: the generation has another task now, and this one was named by mistake.
    """
    found = known.generation
    if found.state in (State.SUCCEEDED, State.ARCHIVED):
        run_logger().info("%s was finished before: the ledger says %s.", paid.key, found.state)
        report_progress(paid.key, "wait", "done before", done=True)
        return known, None
    if found.state is State.FAILED:
        raise failed_error(found, resources.options)
    try:
        status = await _end_of(found, paid, resources)
    except DeadlineError as error:
        raise DeadlineError(
            f"{paid.key}: {error.message} Run it again with the same key, which pays nothing, or leave it to the "
            "collector.",
            task_id=paid.task_id,
        ) from error
    return await record_end(paid, known, status, resources)


async def _end_of(found: Generation, paid: PaidTask, resources: Resources) -> Succeeded | Failed:
    api, key, task_id = resources.api, paid.key, paid.task_id
    # Time that passed before this run counts, by the wall clock: a rerun need not sit through the initial wait again.
    passed = (resources.now() - (found.attempt.submitted_at or resources.now())).total_seconds()
    patience = CALLBACK_PATIENCE if api.callback_url else 1.0
    initial_wait_seconds = max(patience * api.initial_wait_seconds - max(passed, 0.0), 0.0)
    run_logger().info(
        "Waiting for task %s of %s: first question in %.0f s%s, then every %g s, for at most %g s.",
        task_id, key, initial_wait_seconds, " or when its callback comes" if api.callback_url else "",
        api.poll_interval_seconds, api.deadline_seconds,
    )  # fmt: skip
    report_progress(key, "wait", "waiting")

    def report(answer: str, waited_seconds: float) -> None:
        report_progress(
            key, "wait", f"{answer[:60]}, {waited_seconds:.0f} s", fraction=waited_seconds / api.deadline_seconds
        )

    return await wait_for_end(
        lambda: resources.client.status_once(task_id),
        task_id=task_id,
        initial_wait_seconds=initial_wait_seconds,
        poll_interval_seconds=api.poll_interval_seconds,
        deadline_seconds=api.deadline_seconds,
        report=report,
        sleep=lambda seconds: resources.subscriber.sleep(key, seconds, resources.sleep),
        monotonic=resources.monotonic,
        rng=resources.rng,
    )
