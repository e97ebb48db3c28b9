"""What a person does about a generation whose payment is unclear, or that failed."""

from apixo import ApixoError, BadRequestError
from flows import generation as transitions
from flows.errors import LedgerError
from flows.generation import Generation, State, TransitionError
from flows.progress import run_logger
from flows.resources import Resources
from flows.steps.submit import settle


class ResolutionError(LedgerError):
    """What was asked for does not fit what the ledger or the provider says."""


async def resolve_as_task(key: str, task_id: str, resources: Resources) -> Generation:
    """Says that a generation was taken as this task, after asking the provider whether it knows the task.

    Raises:
        ResolutionError: the key or the task is unknown, or the generation has another task.
        ApixoError: the provider could not be asked. Nothing was changed.
    """
    found = await _settled(key, resources)
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
    number = found.attempt.number

    def how(current: Generation) -> Generation:
        return transitions.submitted(
            current,
            attempt_number=number,
            task_id=task_id,
            now=resources.now(),
            note="resolved by a person, with this task id",
        )

    try:
        if how(found) == found:  # a finished generation must not be marked as open
            return found
        await resources.ledger.mark_open(key)
        entry = await resources.ledger.change(key, how)
    except TransitionError as error:
        raise ResolutionError(f"{error}. Nothing was changed.", key=key, task_id=task_id) from error
    await resources.ledger.mark_open(key)  # again: whoever closed it meanwhile saw the record as it was before
    return entry.generation


async def allow_resubmission(key: str, resources: Resources) -> Generation:
    """Says that a generation may be submitted once more: a person looked, and it was not taken, or it failed.

    Raises:
        ResolutionError: the key is unknown, or its state does not allow it.
    """
    await _settled(key, resources)
    try:
        entry = await resources.ledger.change(
            key,
            lambda current: transitions.resubmit_allowed(
                current, note="a person allowed another submission", now=resources.now()
            ),
        )
    except TransitionError as error:
        raise ResolutionError(str(error), key=key) from error
    return entry.generation


async def _settled(key: str, resources: Resources) -> Generation:
    """The record, after waiting out a claim that may still get its answer."""
    entry = await resources.ledger.read(key)
    if entry is None:
        raise ResolutionError(f"The ledger has no record of {key}. Nothing was ever submitted under it.", key=key)
    if entry.generation.state is State.CLAIMED:
        return await settle(entry, resources)
    return entry.generation
