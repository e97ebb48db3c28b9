"""A manual decision in the UI form: it is as safe as `sora resolve`, and pays only for the attempt it names."""

from typing import Any, get_args

import pytest
from prefect.exceptions import ParameterBindError, ParameterTypeError

from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import Generation, State
from flows.record.pipeline_errors import SubmissionRejectedError, UnconfirmedError
from flows.resolution import ResolutionError
from flows.resolve_video import GO_ON, PAY_AGAIN, Decision, resolve_video
from tests.flows.conftest import StoredBlocks
from tests.support import KITE


async def resolve(stored: StoredBlocks, key: str, decision: Any, **parameters: Any) -> Generation:
    """Does what the form does."""
    made: Generation = await resolve_video(
        key=key, decision=decision, api=stored.name, archive=stored.name, **parameters
    )
    return made


async def lost(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> str:
    """Makes an unconfirmed generation. Returns the id of the task that APIXO accepted it as."""
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await stored.generate(KITE, key=key)
    return sandbox.record.charged()[-1].task_id or ""


async def test_continuing_with_a_found_task_archives_its_video_without_paying(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    task_id = await lost(stored, sandbox, key)
    made = await resolve(stored, key, GO_ON, task_id=f" {task_id} ")
    assert (made.state, made.task_id) == (State.ARCHIVED, task_id)
    assert len(sandbox.record.submits()) == 1
    assert (await resolve(stored, key, GO_ON, task_id=task_id)).state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


async def test_a_task_that_apixo_does_not_know_changes_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    await lost(stored, sandbox, key)
    before = await stored.recorded(key)
    with pytest.raises(ResolutionError, match="does not know task"):
        await resolve(stored, key, GO_ON, task_id="task_ffffffffffff")
    assert await stored.recorded(key) == before


async def test_decision_to_pay_again_pays_once_however_often_the_run_is_rerun(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    await lost(stored, sandbox, key)
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await resolve(stored, key, PAY_AGAIN, attempt=1)
    assert len(sandbox.record.submits()) == 2
    for _ in range(2):  # Retry in the UI, or another user who saw the same attempt
        with pytest.raises(ResolutionError, match=r"last attempt of .* is 2.*decided about attempt 1.*changed or paid"):
            await resolve(stored, key, PAY_AGAIN, attempt=1)
    assert len(sandbox.record.submits()) == 2
    made = await resolve(stored, key, PAY_AGAIN, attempt=2, wait=False)
    assert (made.state, made.attempt.number) == (State.SUBMITTED, 3)
    assert len(sandbox.record.submits()) == 3


async def test_a_rejection_after_the_decision_pays_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    await lost(stored, sandbox, key)
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    with pytest.raises(SubmissionRejectedError):
        await resolve(stored, key, PAY_AGAIN, attempt=1)
    assert len(sandbox.record.charged()) == 1


@pytest.mark.parametrize(
    ("decision", "parameters"),
    [
        (GO_ON, {}),
        (GO_ON, {"task_id": "  "}),
        (GO_ON, {"task_id": "task_1", "attempt": 1}),
        (PAY_AGAIN, {}),
        (PAY_AGAIN, {"task_id": "task_1"}),
        (PAY_AGAIN, {"task_id": "task_1", "attempt": 1}),
    ],
)
async def test_incomplete_or_contradictory_form_changes_nothing(
    decision: str, parameters: dict[str, Any], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(ResolutionError, match="Nothing was decided"):
        await resolve(stored, key, decision, **parameters)
    assert sandbox.record.all() == []


async def test_decision_is_required_and_must_be_valid(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    with pytest.raises(ParameterBindError, match="decision"):
        await resolve_video(key=key)  # type: ignore[call-overload]
    with pytest.raises(ParameterTypeError, match="decision"):
        await resolve(stored, key, "yes", attempt=1)
    assert sandbox.record.all() == []


def test_form_states_which_decision_pays() -> None:
    assert get_args(Decision) == (GO_ON, PAY_AGAIN)
    assert "Pays nothing" in GO_ON
    assert "PAYS" in PAY_AGAIN


async def test_unknown_key_raises_error_and_pays_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    with pytest.raises(ResolutionError, match="Nothing was ever submitted"):
        await resolve(stored, key, PAY_AGAIN, attempt=1)
    assert sandbox.record.submits() == []
