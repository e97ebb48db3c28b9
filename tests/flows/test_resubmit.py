"""What may be paid again, and to which attempt a manual decision applies."""

from typing import Any

import pytest

from apixo import VideoRequest
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import Generation, State
from flows.record.pipeline_errors import UnconfirmedError, VideoFailedError
from flows.resolution import ResolutionError, allow_resubmission, load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.submission import Submission, Terms
from tests.flows.generations import fail, recorded, submit
from tests.support import KITE, made_outside


async def _grant_always(_: Generation) -> str:
    return "a person's click"


async def failed_generation(
    key: str, resources: PayingResources, sandbox: SandboxServer, fail_code: str = "OUT_OF_LUCK"
) -> Generation:
    await submit(key, resources)
    return await fail(key, resources, sandbox, fail_code)


async def test_failed_generation_is_submitted_again_only_if_a_user_allows_it(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await failed_generation(key, resources, sandbox)
    with pytest.raises(VideoFailedError, match="--resubmit"):
        await submit(key, resources)
    assert len(sandbox.record.submits()) == 1
    again = (await Submission(key, KITE, resources, Terms(may_submit_again=_grant_always)).run()).generation
    assert again.state is State.SUBMITTED
    assert len(sandbox.record.submits()) == 2
    assert len(again.attempts) == 2


async def test_grant_does_not_apply_to_a_failure_that_came_after_the_run_began(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run wins the claim that the grant was for, and its task fails as well."""
    await failed_generation(key, resources, sandbox)
    pay = resources.payments.run

    async def after_another_run(work: Any, report: Any) -> Any:
        monkeypatch.undo()
        await Submission(key, KITE, resources, Terms(may_submit_again=_grant_always)).run()
        await fail(key, resources, sandbox)
        return await pay(work, report)

    monkeypatch.setattr(resources.payments, "run", after_another_run)
    with pytest.raises(VideoFailedError, match="--resubmit"):
        await Submission(key, KITE, resources, Terms(may_submit_again=_grant_always)).run()
    assert len(sandbox.record.submits()) == 2


@pytest.mark.parametrize("fail_code", ["CONTENT_VIOLATION", "INVALID_IMAGE_URL"])
async def test_a_permanent_failure_is_never_submitted_again(
    fail_code: str, key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await failed_generation(key, resources, sandbox, fail_code)
    with pytest.raises(VideoFailedError) as caught:
        await Submission(key, KITE, resources, Terms(may_submit_again=_grant_always)).run()
    assert caught.value.permanent
    with pytest.raises(ResolutionError, match="new key"):
        await allow_resubmission(await recorded(key, resources), resources)
    assert len(sandbox.record.submits()) == 1


async def test_a_paid_generation_cannot_be_resubmitted(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    await submit(key, resources)
    with pytest.raises(ResolutionError, match="APIXO accepted it"):
        await allow_resubmission(await recorded(key, resources), resources)
    with pytest.raises(ResolutionError, match="no record"):
        await load_generation("never-heard-of", resources.ledger)


async def test_decision_applies_only_to_the_attempt_it_was_about(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="hang", seconds=5))
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await submit(key, resources)
    seen = await recorded(key, resources)  # by two users at once
    await allow_resubmission(seen, resources)
    with pytest.raises(UnconfirmedError):
        await submit(key, resources)
    with pytest.raises(ResolutionError, match="submitted again meanwhile, in attempt 2"):
        await allow_resubmission(seen, resources)
    with pytest.raises(ResolutionError, match="submitted again meanwhile"):
        await resolve_as_task(seen, sandbox.record.charged()[0].task_id or "", resources)
    assert len(sandbox.record.submits()) == 2


async def test_task_of_another_key_is_rejected_and_a_wrong_task_can_be_corrected(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    other = await submit(f"{key}-other", resources)
    wrong_task = await made_outside(resources.api, VideoRequest(prompt="made outside"))
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await submit(key, resources)
    right = sandbox.record.charged()[-1].task_id or ""
    with pytest.raises(ResolutionError, match=f"belongs to {key}-other"):
        await resolve_as_task(await recorded(key, resources), other.task_id or "", resources)
    wrong = await resolve_as_task(await recorded(key, resources), wrong_task, resources)
    assert wrong.task_id == wrong_task
    fixed = await resolve_as_task(await recorded(key, resources), right, resources)
    assert fixed.task_id == right
    assert wrong_task in (fixed.attempt.note or "")
