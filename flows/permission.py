"""Who may pay for a failed generation once more: a person who reruns the flow run, and nobody else."""

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from flows.generation import Attempt


async def rerun_by_person(attempt: Attempt) -> bool:
    """Whether this flow run was sent back to work from the outside, as the UI's Retry button does.

    Prefect notes on a flow run how its retry came about: `reschedule` when a finished run was scheduled again through
    the API, `in_process` when the engine retried by itself. The server is asked now, for the run at hand was read when
    the process began.
    """
    del attempt
    run_id = flow_run.id
    if run_id is None:
        return False
    async with get_client() as client:
        current = await client.read_flow_run(run_id)
    return current.empirical_policy.retry_type == "reschedule"
