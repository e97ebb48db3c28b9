"""Manual decisions about a generation whose payment is unclear, or that failed."""

from functools import partial

from apixo import ApixoError, BadRequestError, Failed
from flows.clock import Clock
from flows.record import transitions
from flows.record.advice import unconfirmed_error
from flows.record.generation import Generation, State
from flows.record.ledger import Entry, Ledger
from flows.record.pipeline_errors import LedgerError, TransitionError
from flows.resources import Resources
from flows.signals.progress import run_logger
from flows.submission import reconcile, wait_for_answer


class ResolutionError(LedgerError):
    """The decision contradicts the ledger or the provider."""


async def load_generation(key: str, ledger: Ledger) -> Generation:
    """The record that a decision is about.

    Raises:
        ResolutionError: the key is unknown.
    """
    entry = await ledger.read(key)
    if entry is None:
        raise ResolutionError(f"The ledger has no record of {key}. Nothing was ever submitted under it.", key=key)
    return entry.generation


async def resolve_as_task(seen: Generation, task_id: str, resources: Resources) -> Generation:
    """Records that a generation was accepted as this task, after checking that the provider knows the task.

    If a claim has no answer, this first waits until its lease is over: its owner may still name the task itself. A task
    that was given up is resumed, unless the provider reports it as failed.

    Args:
        seen: the record that the decision is about.
        task_id: the id from the provider's account, the log or the event.

    Raises:
        ResolutionError: the task is unknown, has failed, belongs to another key, or the record has changed meanwhile.
    """
    key, number = seen.key, seen.attempt.number
    resolution_error = partial(ResolutionError, key=key, task_id=task_id)
    entry = await _answered(key, resources.ledger, resources.clock)
    if seen.task_id is None and entry.generation.task_id not in (None, task_id):
        raise resolution_error(
            f"{key} was answered meanwhile: APIXO accepted it as task {entry.generation.task_id}. Nothing was changed."
        )
    try:
        status = await resources.client.status(task_id, model=entry.generation.attempts[number - 1].model)
    except BadRequestError as error:
        raise resolution_error(f"APIXO does not know task {task_id}: {error.message} Nothing was changed.") from error
    except ApixoError as error:
        raise resolution_error(
            f"APIXO could not be polled for task {task_id}: {error.message} Nothing was changed; try again later."
        ) from error
    run_logger().info("APIXO knows task %s (%s).", task_id, status.state)
    if isinstance(status, Failed) and entry.generation.state is State.FAILED and entry.generation.task_id == task_id:
        raise resolution_error(
            f"APIXO reports task {task_id} as failed: there is nothing to continue. Nothing was changed, and nothing "
            "paid."
        )
    how = partial(transitions.resolved, attempt_number=number, task_id=task_id, now=resources.clock.now())
    try:
        if how(entry.generation) == entry.generation:
            return entry.generation
        owner = await resources.ledger.tasks.bind(
            task_id, key, number, named_by="person", naming=entry.generation.next_naming
        )
        if owner.key != key:
            raise resolution_error(f"Task {task_id} belongs to {owner.key}. Nothing was changed.")
        return (await resources.ledger.change(key, how, known=entry)).generation
    except TransitionError as error:
        current = await resources.ledger.read(key)
        if current is not None and task_id not in current.generation.task_ids:
            await resources.ledger.tasks.release(task_id, key, named=current.generation.tasks_named)
        raise resolution_error(f"{error}. Nothing was changed.") from error


async def allow_resubmission(seen: Generation, resources: Resources) -> Generation:
    """Records that a generation may be submitted again: a user checked that it was rejected, or it failed.

    Args:
        seen: the record that the decision is about. The decision applies only to its last attempt.

    Raises:
        ResolutionError: the record has changed meanwhile, or its state does not allow it.
        UnconfirmedError: its claim was still waiting for an answer when the user looked at the account. Check the
            account again, then decide.
    """
    answered = (await _answered(seen.key, resources.ledger, resources.clock)).generation
    if seen.state is State.CLAIMED and answered.state is State.UNCONFIRMED:
        raise unconfirmed_error(answered, resources.options)
    note, now = "a person allowed another submission", resources.clock.now()
    allowed = partial(transitions.resubmit_allowed, attempt_number=seen.attempt.number, note=note, now=now)
    try:
        return (await resources.ledger.change(seen.key, allowed)).generation
    except TransitionError as error:
        raise ResolutionError(str(error), key=seen.key) from error


async def _answered(key: str, ledger: Ledger, clock: Clock) -> Entry:
    """The record after a claim's answer or the end of its lease, with its task if the store knows one."""
    entry = await ledger.existing(key)
    match entry.generation.state:
        case State.CLAIMED:
            run_logger().info(
                "%s may still be in progress: its process has up to %.0f s for the answer.",
                key, entry.generation.attempt.lease_seconds,
            )  # fmt: skip
            return await wait_for_answer(entry, ledger, clock)
        case State.UNCONFIRMED:
            return await reconcile(entry, ledger, clock)
    return entry
