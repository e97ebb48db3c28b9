"""What a person does about a generation whose payment is unclear, or that failed."""

from apixo import ApixoError, BadRequestError
from flows import generation as transitions
from flows.advice import unconfirmed_error
from flows.errors import LedgerError
from flows.generation import Generation, State, TransitionError
from flows.progress import run_logger
from flows.resources import Resources
from flows.steps.submit import settle


class ResolutionError(LedgerError):
    """What was asked for does not fit what the ledger or the provider says."""


async def look(key: str, resources: Resources) -> Generation:
    """The record that a person decides about.

    Raises:
        ResolutionError: the key is unknown, or its claim has only now been given up: look again, then decide.
    """
    entry = await resources.ledger.read(key)
    if entry is None:
        raise ResolutionError(f"The ledger has no record of {key}. Nothing was ever submitted under it.", key=key)
    if entry.generation.state is State.CLAIMED:
        settled = await settle(entry, resources)
        if settled.state is State.UNCONFIRMED:
            # What the person saw in the account before is older than this claim's end.
            raise unconfirmed_error(settled, resources.options)
        return settled
    return entry.generation


async def resolve_as_task(seen: Generation, task_id: str, resources: Resources) -> Generation:
    """Says that a generation was taken as this task, after asking the provider whether it knows the task.

    Args:
        seen: the record the person decided about.
        task_id: as the provider's account, the log or the event names it.
        resources: the API and the ledger.

    Raises:
        ResolutionError: the task is unknown, belongs to another key, or the record has changed meanwhile.
    """
    key, number = seen.key, seen.attempt.number
    try:
        status = await resources.client.status(task_id)
    except BadRequestError as error:
        raise ResolutionError(
            f"APIXO does not know task {task_id}: {error.message} Nothing was changed.", key=key, task_id=task_id
        ) from error
    except ApixoError as error:
        raise ResolutionError(
            f"APIXO could not be asked for task {task_id}: {error.message} Nothing was changed; try again later.",
            key=key,
            task_id=task_id,
        ) from error
    run_logger().info("APIXO knows task %s (%s).", task_id, status.state)
    other = await resources.ledger.key_of_task(task_id, but=key)
    if other is not None:
        raise ResolutionError(f"Task {task_id} is that of {other}. Nothing was changed.", key=key, task_id=task_id)

    def how(current: Generation) -> Generation:
        return transitions.resolved(current, attempt_number=number, task_id=task_id, now=resources.now())

    try:
        if how(seen) == seen:  # a finished generation must not be marked as open
            return seen
        await resources.ledger.mark_open(key)
        entry = await resources.ledger.change(key, how)
    except TransitionError as error:
        raise ResolutionError(f"{error}. Nothing was changed.", key=key, task_id=task_id) from error
    await resources.ledger.mark_open(key)  # again: whoever closed it meanwhile saw the record as it was before
    return entry.generation


async def allow_resubmission(seen: Generation, resources: Resources) -> Generation:
    """Says that a generation may be submitted once more: a person looked, and it was not taken, or it failed.

    Args:
        seen: the record the person decided about. The decision counts for its last attempt only.
        resources: the ledger.

    Raises:
        ResolutionError: the record has changed meanwhile, or its state does not allow it.
    """
    try:
        entry = await resources.ledger.change(
            seen.key,
            lambda current: transitions.resubmit_allowed(
                current,
                attempt_number=seen.attempt.number,
                note="a person allowed another submission",
                now=resources.now(),
            ),
        )
    except TransitionError as error:
        raise ResolutionError(str(error), key=seen.key) from error
    return entry.generation
