"""Waits until the provider has finished the task. One task run, however often it polls."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from apixo import DeadlineError, Succeeded
from flows.record.advice import failed_error
from flows.record.generation import PaidTask, State
from flows.record.ledger import Entry
from flows.resources import Resources
from flows.signals.progress import report_progress, run_logger
from flows.task_end import record_end, wait_for_task


# retries=0: not even a profile's default retries may repeat this step automatically.
@task(name="wait", task_run_name="wait {paid.key}", retries=0, cache_policy=NO_CACHE, persist_result=False)
async def wait(paid: PaidTask, known: Entry, resources: Resources) -> tuple[Entry, Succeeded | None]:
    """Sleeps, then polls until the task ends. Only a final state or the deadline ends the wait, not a transient error.

    Returns:
        The record, and the provider's last answer, which is not stored because result URLs may be signed. The answer is
        None if the ledger already says that the task has succeeded.

    Raises:
        VideoFailedError: the provider reports the task as failed.
        DeadlineError: the task did not end in time. A rerun continues to wait.
        AuthenticationError: the API key is invalid. A rerun with the right one continues.
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
        status = await wait_for_task(paid, found, resources)
    except DeadlineError as error:
        raise DeadlineError(
            f"{paid.key}: {error.message} Run it again with the same key, which pays nothing, or leave it to the "
            "collector.",
            task_id=paid.task_id,
        ) from error
    return await record_end(paid, known, status, resources)
