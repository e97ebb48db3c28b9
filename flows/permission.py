"""Who may pay for a failed generation once more: a person who reruns the flow run, and nobody else."""

from collections.abc import Sequence

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.generation import Attempt


async def rerun_by_person(attempt: Attempt) -> bool:
    """Whether this flow run was sent back to work from outside after it had ended, as the UI's Retry button does."""
    del attempt
    run_id = flow_run.id
    if run_id is None:
        return False
    async with get_client() as client:
        return was_sent_back(await client.read_flow_run_states(run_id))


def was_sent_back(states: Sequence[State]) -> bool:
    """Whether the last retry in a run's history came after the run had ended. Pure.

    The engine's own retry goes from Running to AwaitingRetry; a rerun goes there from a final state. Prefect's
    `empirical_policy.retry_type` says the same for the classic UI only: the new one forces the state, which skips the
    rule that writes it.
    """
    history = sorted(states, key=lambda state: state.timestamp)
    last = max((number for number, state in enumerate(history) if state.name == "AwaitingRetry"), default=0)
    return last > 0 and history[last - 1].is_final()
