"""What the end of a task means for the record."""

from apixo import Failed, Succeeded
from flows.record import transitions
from flows.record.advice import failed_error
from flows.record.errors import LedgerError, SupersededError
from flows.record.generation import PaidTask, State
from flows.record.ledger import Entry
from flows.resources import Resources
from flows.signals.events import emit
from flows.signals.progress import report_progress, run_logger
from flows.signals.terminal_event import publish_end


async def record_end(
    paid: PaidTask, known: Entry, status: Succeeded | Failed, resources: Resources
) -> tuple[Entry, Succeeded]:
    """Writes a task's end into the ledger. Returns the record and the good end.

    The record may go on with another task by now. Where the provider took this one as well, its video is wanted all
    the same: it was paid for.

    Raises:
        VideoFailedError: the end was a failure.
        SupersededError: the generation has another task now, and this one was named by mistake, or failed.
    """
    key = paid.key
    if isinstance(status, Failed):
        failed = status
        entry = await resources.ledger.change(
            key, lambda now: transitions.failed(now, failed, now=resources.now()), known=known
        )
        if entry.generation.state is State.FAILED:
            await publish_end(entry.generation, resources.ledger, resources.archive, found=False)
            raise failed_error(entry.generation, resources.options)
        raise LedgerError(f"{key} is {entry.generation.state}, but APIXO says failed.", key=key, task_id=paid.task_id)
    succeeded = status
    try:
        entry = await resources.ledger.change(
            key, lambda now: transitions.succeeded(now, succeeded, now=resources.now()), known=known
        )
    except SupersededError:
        current = await resources.ledger.read(key)
        if current is None or not transitions.is_superseded(current.generation, paid.task_id):
            raise
        run_logger().warning(
            "%s goes on with task %s. Task %s was paid for as well and is finished: its video is archived beside.", key,
            current.generation.task_id, paid.task_id,
        )  # fmt: skip
        return current, succeeded
    run_logger().info("APIXO finished task %s of %s.", paid.task_id, key)
    emit("succeeded", entry.generation)
    report_progress(key, "wait", "finished", fraction=1.0, done=True)
    return entry, succeeded
