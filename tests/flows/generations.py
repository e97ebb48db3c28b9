"""Generations in the states that tests begin with."""

import asyncio
from datetime import UTC, datetime

import pytest
from prefect import flow

from apixo import Failed, VideoRequest
from deployments.sandbox import Fault, SandboxServer
from flows.collect_videos import Collected, collect
from flows.record import transitions
from flows.record.generation import Generation, Owner
from flows.record.pipeline_errors import UnconfirmedError
from flows.resolution import allow_resubmission, load_generation
from flows.resources import PayingResources
from flows.submission import Submission, Terms
from tests.flows.record.changes import claimed
from tests.support import KITE

SUBMARINE = VideoRequest(prompt="Quite another picture: a black submarine", duration=4)
"""A request that is clearly different from `KITE`."""


async def submit(
    key: str, resources: PayingResources, request: VideoRequest = KITE, terms: Terms | None = None
) -> Generation:
    return (await Submission(key, request, resources, terms or Terms()).run()).generation


async def recorded(key: str, resources: PayingResources) -> Generation:
    return (await resources.ledger.existing(key)).generation


def set_clock(resources: PayingResources, moment: datetime) -> None:
    """From now on, it is this moment for all steps and the ledger."""
    resources.clock.now = lambda: moment


async def abandoned_claim(key: str, resources: PayingResources, *, lease_seconds: float = 0.3) -> Generation:
    """A claim whose owner has died."""
    owner, now = Owner(host="elsewhere", pid=1), datetime.now(UTC)
    abandoned = claimed(key=key, owner=owner, lease_seconds=lease_seconds, now=now)
    entry = await resources.ledger.claim(abandoned, over=None)
    assert entry is not None
    return entry.generation


async def lost(key: str, resources: PayingResources, sandbox: SandboxServer) -> str:
    """Makes an unconfirmed generation. Returns the id of the task that APIXO accepted it as."""
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await submit(key, resources)
    return sandbox.record.charged()[-1].task_id or ""


async def charged(sandbox: SandboxServer, *, seconds: float = 60) -> str:
    """Waits until the provider has accepted a task. Returns its id."""
    async with asyncio.timeout(seconds):
        while not sandbox.record.charged():
            await asyncio.sleep(0.01)
    return sandbox.record.charged()[-1].task_id or ""


async def allow(key: str, resources: PayingResources) -> Generation:
    """Does what `sora resolve --resubmit` does."""
    return await allow_resubmission(await load_generation(key, resources.ledger), resources)


async def granted_by_click(failed: Generation) -> str | None:
    """Lets a failed generation be paid for once more, as a click on Retry does."""
    return None if "a click" in {attempt.granted_by for attempt in failed.attempts} else "a click"


async def fail(
    key: str, resources: PayingResources, sandbox: SandboxServer, fail_code: str = "OUT_OF_LUCK"
) -> Generation:
    """Lets its task fail, at the provider and in the record."""
    task_id = (await recorded(key, resources)).task_id or ""
    task = sandbox.tasks.get(task_id)
    assert task is not None
    task.end(fail_code, "no")
    status = Failed(task_id=task_id, state="failed", fail_code=fail_code, fail_message="no")
    entry = await resources.ledger.change(key, lambda now: transitions.failed(now, status, now=datetime.now(UTC)))
    return entry.generation


async def finished(sandbox: SandboxServer) -> None:
    """Waits until the provider has no unfinished task."""
    async with asyncio.timeout(60):
        while sandbox.tasks.unfinished:
            await asyncio.sleep(0.05)


async def run_collector(resources: PayingResources) -> list[Collected]:
    """Runs the collector once."""

    @flow(name="collect-in-a-test")
    async def run() -> list[Collected]:
        return await collect(None, resources)

    return await run()


def closed_before_each_change(key: str, resources: PayingResources) -> None:
    """From now on, another process removes the open marker right before each change of the record."""
    change = resources.ledger.change

    async def close_first(*arguments: object, **options: object) -> object:
        await resources.ledger.close(await recorded(key, resources))
        return await change(*arguments, **options)  # type: ignore[arg-type]

    resources.ledger.change = close_first  # type: ignore[method-assign, assignment]
