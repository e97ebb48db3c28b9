"""Which rerun may pay for a failed generation again, decided by the state history of a real Prefect server."""

import os
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.states import AwaitingRetry, Completed, Failed, Pending, Running

from flows.permission import rerun_by_person, sent_back_by
from flows.record.generation import Attempt, Generation, Owner
from flows.record.generation import State as Is
from tests.support import KITE, unique

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def failed(at: datetime = datetime(2020, 1, 1, tzinfo=UTC), granted_by: str | None = None) -> Generation:
    """A generation that failed at this time."""
    owner = Owner(host="h", pid=1)
    attempt = Attempt(number=1, claimed_at=at, claimed_by=owner, lease_seconds=1, granted_by=granted_by)
    return Generation(key="k", state=Is.FAILED, request=KITE, attempts=(attempt,), created_at=at, updated_at=at)


TYPES = {
    "Scheduled": StateType.SCHEDULED,
    "Late": StateType.SCHEDULED,
    "AwaitingRetry": StateType.SCHEDULED,
    "AwaitingConcurrencySlot": StateType.SCHEDULED,
    "Pending": StateType.PENDING,
    "Running": StateType.RUNNING,
    "Retrying": StateType.RUNNING,
    "Failed": StateType.FAILED,
    "Completed": StateType.COMPLETED,
    "Crashed": StateType.CRASHED,
    "Cancelled": StateType.CANCELLED,
    "Paused": StateType.PAUSED,
}
FIRST = "Scheduled Pending Running"
HISTORIES = [
    ("", False),
    (FIRST, False),
    ("Scheduled Late Pending Running", False),
    (f"{FIRST} Failed", False),
    # A manual rerun: from a final state.
    (f"{FIRST} Failed AwaitingRetry Pending Running", True),
    (f"{FIRST} Failed AwaitingRetry", True),
    # A worker restarts a crashed run automatically.
    (f"{FIRST} Crashed AwaitingRetry Late Pending Running", False),
    (f"{FIRST} Crashed Crashed AwaitingRetry Pending Running", False),
    (f"{FIRST} Cancelled AwaitingRetry Pending Running", True),
    (f"{FIRST} Completed AwaitingRetry Pending Running", True),
    (f"{FIRST} Failed AwaitingRetry AwaitingConcurrencySlot Pending Running", True),
    # The engine's own retry: from Running.
    (f"{FIRST} AwaitingRetry Running", False),
    (f"{FIRST} AwaitingRetry Retrying Failed", False),
    (f"{FIRST} Paused Running AwaitingRetry Running", False),
    # Both kinds: the last one counts.
    (f"{FIRST} Failed AwaitingRetry Pending Running AwaitingRetry Running", False),
    (f"{FIRST} AwaitingRetry Running Failed AwaitingRetry Pending Running", True),
    ("AwaitingRetry Pending Running", False),
]


@pytest.mark.parametrize(("history", "by_user"), HISTORIES)
def test_state_history_shows_whether_a_user_retried_the_run(history: str, by_user: bool) -> None:
    states: list[State] = [
        State(type=TYPES[name], name=name, timestamp=NOW + timedelta(seconds=number))
        for number, name in enumerate(history.split())
    ]
    granting = [state for state in states if state.name == "AwaitingRetry"]
    assert sent_back_by(states) == (granting[-1] if by_user else None)
    assert sent_back_by(states[::-1]) == (granting[-1] if by_user else None)


async def test_code_outside_a_flow_run_is_not_a_manual_rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT__FLOW_RUN_ID", raising=False)
    assert not await rerun_by_person(failed())


@pytest.fixture
async def run_id(prefect: PrefectClient, monkeypatch: pytest.MonkeyPatch) -> UUID:
    """A run of a deployment, set as the run of this process. Prefect cannot retry a run without a deployment."""
    flow_id = await prefect.create_flow_from_name(unique("flow"))
    deployment_id = await prefect.create_deployment(flow_id, unique("deployment"))
    run = await prefect.create_flow_run_from_deployment(deployment_id)
    monkeypatch.setitem(os.environ, "PREFECT__FLOW_RUN_ID", str(run.id))
    return run.id


async def set_states(prefect: PrefectClient, run_id: UUID, *states: State, force: bool = False) -> None:
    for state in states:
        result = await prefect.set_flow_run_state(run_id, state, force=force)
        assert result.state is not None
        assert result.state.name == state.name, result.details


async def test_first_run_is_not_a_manual_rerun(prefect: PrefectClient, run_id: UUID) -> None:
    assert not await rerun_by_person(failed())
    await set_states(prefect, run_id, Pending(), Running())
    assert (await prefect.read_flow_run(run_id)).empirical_policy.retry_type is None
    assert not await rerun_by_person(failed())


@pytest.mark.parametrize("force", [False, True], ids=["classic UI", "new UI"])
@pytest.mark.parametrize("end", [Failed, Completed])
async def test_ui_retry_button_is_a_manual_rerun(
    force: bool, end: type[State], prefect: PrefectClient, run_id: UUID
) -> None:
    await set_states(prefect, run_id, Pending(), Running(), end())  # type: ignore[call-arg] # it is a function
    assert not await rerun_by_person(failed())
    await set_states(prefect, run_id, AwaitingRetry(), force=force)
    assert await rerun_by_person(failed())
    await set_states(prefect, run_id, Pending(), Running())
    assert await rerun_by_person(failed())


async def test_one_click_pays_for_one_attempt_only(prefect: PrefectClient, run_id: UUID) -> None:
    await set_states(prefect, run_id, Pending(), Running(), Failed(), AwaitingRetry())
    granted_by = await rerun_by_person(failed())
    assert granted_by is not None
    paid = failed(granted_by=granted_by)
    assert await rerun_by_person(paid) is None
    await set_states(prefect, run_id, Pending(), Running(), Failed(), AwaitingRetry())
    assert await rerun_by_person(paid) not in (None, granted_by)


async def test_click_does_not_apply_to_a_failure_that_came_after_it(prefect: PrefectClient, run_id: UUID) -> None:
    await set_states(prefect, run_id, Pending(), Running(), Failed(), AwaitingRetry(), Pending(), Running())
    assert await rerun_by_person(failed()) is not None
    assert await rerun_by_person(failed(datetime.now(UTC))) is None


async def test_engine_retry_is_not_a_manual_rerun(prefect: PrefectClient, run_id: UUID) -> None:
    await set_states(prefect, run_id, Pending(), Running())
    await set_states(prefect, run_id, AwaitingRetry(), force=True)
    await set_states(prefect, run_id, Running())
    assert not await rerun_by_person(failed())
