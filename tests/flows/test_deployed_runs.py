"""Deployed runs that are suspended, wait without a process, end, and are retried, with a real Prefect server."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_async
from prefect.flow_runs import aresume_flow_run
from prefect.states import AwaitingRetry, Suspended

from blocks import ApixoApi
from deployments.sandbox import Fault, SandboxServer
from flows.generate_batch import generate_batch
from flows.preview_then_final import FINAL_8, preview_then_final
from flows.previews_then_finals import ALL_8, previews_then_finals
from flows.record.generation import State
from flows.record.ledger import Ledger
from tests.flows.conftest import StoredBlocks
from tests.flows.test_preview_then_final import answer, lengths
from tests.support import make_api, unique
from tests.support.waiting import until


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    """Has a long submit timeout, so that slow answers arrive in time on a slow machine, too."""
    return make_api(sandbox, submit_timeout_seconds=20)


class Deployed:
    """A run of a deployment. `start` does what a worker would do, in this process."""

    def __init__(self, prefect: PrefectClient, flow: Flow[Any, Any], run: FlowRun) -> None:
        self.prefect, self.flow, self.run = prefect, flow, run

    @classmethod
    async def create(cls, prefect: PrefectClient, flow: Flow[Any, Any], **parameters: Any) -> "Deployed":
        flow_id = await prefect.create_flow(flow)
        deployment_id = await prefect.create_deployment(flow_id, unique("previews"), enforce_parameter_schema=False)
        run = await prefect.create_flow_run_from_deployment(deployment_id, parameters=parameters)
        return cls(prefect, flow, run)

    async def start(self) -> FlowRun:
        found = await self.prefect.read_flow_run(self.run.id)
        with suppress(Pause):  # ends the process of a run that waits
            await run_flow_async(self.flow, flow_run=found, parameters=found.parameters, return_type="state")
        return await self.prefect.read_flow_run(self.run.id)

    async def wait_until_final(self) -> None:
        async def is_final() -> bool:
            found = await self.prefect.read_flow_run(self.run.id)
            return found.state is not None and found.state.is_final()

        await until(is_final, what="the end of the run")

    async def retry_in_ui(self, *, force: bool) -> None:
        """Does what the UI's Retry button does."""
        await self.prefect.set_flow_run_state(self.run.id, AwaitingRetry(), force=force)


def state_of(run: FlowRun) -> str:
    return run.state.name if run.state and run.state.name else ""


async def test_preview_that_failed_after_a_retry_is_not_paid_again_when_the_run_resumes(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, prefect: PrefectClient
) -> None:
    rows = [{"id": name, "prompt": name, "duration": 8} for name in ("dunes", "unlucky")]
    blocks = {"api": stored.name, "archive": stored.name}
    deployed = await Deployed.create(prefect, previews_then_finals, requests=rows, key=key, **blocks)
    stored.api.base_url = "http://127.0.0.1:9"  # cannot be reached: nothing is sent
    await stored.api.save(stored.name, overwrite=True)
    assert state_of(await deployed.start()) == "Failed"
    stored.api.base_url = sandbox.base_url
    await stored.api.save(stored.name, overwrite=True)
    await deployed.retry_in_ui(force=False)
    sandbox.faults.add(Fault(call="status", kind="failed", prompt_contains="unlucky"))
    waiting = await deployed.start()
    assert state_of(waiting) == "Suspended"
    assert lengths(sandbox) == [4, 4]
    await answer(waiting, decision=ALL_8)
    assert state_of(await deployed.start()) == "Failed"  # it reports the failed preview
    assert lengths(sandbox) == [4, 4, 8]
    await deployed.retry_in_ui(force=False)  # now the user knows about it
    await deployed.start()
    assert lengths(sandbox) == [4, 4, 8, 4]


@pytest.mark.parametrize("force", [False, True], ids=["classic UI", "new UI"])
async def test_retry_shows_the_form_again_after_it_was_not_answered(
    force: bool, stored: StoredBlocks, sandbox: SandboxServer, key: str, prefect: PrefectClient
) -> None:
    deployed = await Deployed.create(
        prefect, preview_then_final, request={"prompt": "Dunes"}, key=key, answer_within_hours=1 / 3600,
        api=stored.name, archive=stored.name,
    )  # fmt: skip
    assert state_of(await deployed.start()) == "Suspended"
    await deployed.wait_until_final()
    await prefect.update_flow_run(deployed.run.id, parameters=deployed.run.parameters | {"answer_within_hours": 1})
    await deployed.retry_in_ui(force=force)
    waiting = await deployed.start()
    assert state_of(waiting) == "Suspended"
    await answer(waiting, decision=FINAL_8)
    assert state_of(await deployed.start()) == "Completed"
    assert lengths(sandbox) == [4, 8]


async def test_batch_suspended_during_a_paid_call_records_the_answer(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, prefect: PrefectClient
) -> None:
    rows = [{"id": name, "prompt": name} for name in ("first", "second", "third", "fourth")]
    sandbox.faults.add(
        Fault(call="submit", kind="slow", seconds=0.5, prompt_contains="first"),
        Fault(call="submit", kind="slow", seconds=1.2, prompt_contains="second"),
    )
    blocks = {"api": stored.name, "archive": stored.name}
    deployed = await Deployed.create(
        prefect, generate_batch, requests=rows, key=key, submissions_per_second=3, **blocks
    )

    async def suspend() -> None:
        async def under_way() -> bool:
            return len(sandbox.record.submits()) == 2

        await until(under_way, what="the second paid call", pause=0.02)
        await prefect.set_flow_run_state(deployed.run.id, Suspended(timeout_seconds=600))

    suspending = asyncio.create_task(suspend())
    assert state_of(await deployed.start()) == "Suspended"
    await suspending
    async with aclosing(stored.archive.store()) as store:
        records = await Ledger(store).read_all([f"{key}-{row['id']}" for row in rows])
    assert {found.state for found in records.values()} <= {State.SUBMITTED, State.SUCCEEDED, State.ARCHIVED}
    assert {found.task_id for found in records.values()} == {item.task_id for item in sandbox.record.charged()}
    await aresume_flow_run(deployed.run.id)
    assert state_of(await deployed.start()) == "Completed"
    assert len(sandbox.record.submits()) == len(rows)
