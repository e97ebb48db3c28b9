"""Permission to pay for a failed generation again: only a user who reruns the flow run gives it."""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from flows.record.generation import Generation

PAYING_FLOW: Final[dict[str, Any]] = {"persist_result": False, "log_prints": False, "retries": 0}
"""The options of flows that may pay: nothing reruns them automatically, not even a profile's default retries."""


async def rerun_by_person(failed: Generation, *, run_id: str | None = None) -> str | None:
    """Whether a user restarted a flow run after it had ended, as the UI's Retry button does.

    A restart before the failure is not a decision about it. A run may find such a failure when it starts again: after
    the answer to its question, in a replaced pod, or in the next run of a dead shard.

    Args:
        failed: the generation that may be paid for again.
        run_id: which flow run; None: this one. A shard uses that of its batch.

    Returns:
        The id of the state that shows the restart; None if there is none, or if it has already paid for an attempt.
    """
    run_id = run_id or flow_run.id
    if run_id is None:
        return None
    async with get_client() as client:
        grant = sent_back_by(await client.read_flow_run_states(UUID(str(run_id))))
    if grant is None or grant.timestamp <= failed.updated_at:
        return None
    used = {attempt.granted_by for attempt in failed.attempts}
    return None if str(grant.id) in used else str(grant.id)


def sent_back_by(states: Sequence[State]) -> State | None:
    """The state by which a run was restarted after it had ended, if that was its last retry. Pure.

    The engine's own retry goes from Running to AwaitingRetry, and a worker restarts a crashed run from Crashed: neither
    is a user's decision. Prefect's `empirical_policy.retry_type` does not help: the new UI forces the state, which
    skips the rule that writes it. An automation that restarts failed runs cannot be distinguished from a user.
    """
    history = sorted(states, key=lambda state: state.timestamp)
    last = max((number for number, state in enumerate(history) if state.name == "AwaitingRetry"), default=0)
    if last == 0:
        return None
    before = history[last - 1]
    return history[last] if before.is_final() and not before.is_crashed() else None
