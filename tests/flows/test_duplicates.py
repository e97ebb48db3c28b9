"""The same request under one key or several: what is continued, rejected or paid, however the runs race."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from prefect import flow

from deployments.sandbox import Fault, SandboxServer
from flows.batch.calendar_rows import BatchItem
from flows.generate_batch import generate_batch
from flows.generate_video import generate_video
from flows.paid_call import Outcome
from flows.record.indexes import request_name
from flows.record.ledger import Entry
from flows.record.pipeline_errors import DuplicateRequestError, LedgerError, SubmissionRejectedError
from flows.resources import PayingResources
from flows.submission import Submission, Terms
from tests.flows.conftest import StoredBlocks
from tests.flows.generations import SUBMARINE
from tests.support import KITE


async def test_unreadable_request_index_raises_error_and_pays_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    name = request_name(SUBMARINE)
    await resources.store.put(name, b"")
    try:
        with pytest.raises(LedgerError, match=name):
            await Submission(key, SUBMARINE, resources).run()
    finally:
        await resources.store.remove(name)
    assert sandbox.record.submits() == []


@pytest.mark.parametrize("nested", [False, True])
async def test_retry_of_a_parent_flow_continues_the_video_it_paid_for(
    nested: bool, stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    keys: list[str] = []

    @flow(persist_result=False)
    async def middle() -> str:
        return (await generate_video(KITE, api=stored.name, archive=stored.name)).key

    @flow(retries=1, persist_result=False)
    async def parent() -> None:
        made = await (middle() if nested else middle.fn())
        keys.append(made)
        if len(keys) == 1:
            raise RuntimeError("something after it fails")

    await parent()
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert len(sandbox.record.charged()) == 1


async def test_only_equal_requests_in_one_parent_flow_share_a_video(
    stored: StoredBlocks, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    @flow(persist_result=False)
    async def parent() -> list[str]:
        made = [await generate_video(each, api=stored.name, archive=stored.name) for each in (KITE, KITE, SUBMARINE)]
        return [item.key for item in made]

    first, again, other = await parent()
    assert first == again != other
    assert len(sandbox.record.charged()) == 2
    assert "An equal request in the same outermost run is the same video" in caplog.text


async def test_retry_of_a_parent_flow_continues_the_batch_it_paid_for(
    stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    tries = 0

    @flow(retries=1, persist_result=False)
    async def parent() -> None:
        nonlocal tries
        tries += 1
        items = [BatchItem(prompt="one"), BatchItem(prompt="two", id="two")]
        await generate_batch(items, api=stored.name, archive=stored.name)
        if tries == 1:
            raise RuntimeError("something after it fails")

    await parent()
    assert tries == 2
    assert len(sandbox.record.charged()) == 2


async def test_duplicate_request_is_logged_or_with_refuse_duplicates_rejected(
    key: str, resources: PayingResources, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    await Submission(key, KITE, resources).run()
    with pytest.raises(DuplicateRequestError, match=f"the same video as {key}.*nothing was sent"):
        await Submission(f"{key}-renamed", KITE, resources, Terms(refuse_duplicates=True)).run()
    assert len(sandbox.record.submits()) == 1
    assert await resources.ledger.open_keys() == [key]
    await Submission(f"{key}-wanted", KITE, resources).run()
    assert f"{key}-wanted requests the same video as {key}" in caplog.text
    assert len(sandbox.record.submits()) == 2


async def test_rejected_key_is_checked_for_duplicates_again_on_its_rerun(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """The same video may have been paid for under another key since."""
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    with pytest.raises(SubmissionRejectedError):
        await Submission(key, KITE, resources, Terms(refuse_duplicates=True)).run()
    await Submission(f"{key}-second", KITE, resources, Terms(refuse_duplicates=True)).run()
    with pytest.raises(DuplicateRequestError, match=f"the same video as {key}-second.*nothing was sent"):
        await Submission(key, KITE, resources, Terms(refuse_duplicates=True)).run()
    assert len(sandbox.record.charged()) == 1


async def test_racing_duplicates_with_refuse_duplicates_are_paid_once(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    terms = Terms(refuse_duplicates=True)
    results = await asyncio.gather(
        *(Submission(f"{key}-{number}", KITE, resources, terms).run() for number in range(12)), return_exceptions=True
    )
    assert sum(isinstance(result, Entry) for result in results) == 1
    assert sum(isinstance(result, DuplicateRequestError) for result in results) == 11
    assert len(sandbox.record.submits()) == 1


async def test_duplicate_is_rejected_if_it_was_paid_under_another_key_during_a_long_wait(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting, gate = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def limit(_: str) -> AsyncIterator[Callable[[Outcome], None]]:
        is_waiting.set()
        await gate.wait()
        yield lambda _: None

    slow = asyncio.create_task(Submission(key, KITE, resources, Terms(refuse_duplicates=True, paying=limit)).run())
    await is_waiting.wait()
    monkeypatch.setattr(resources.ledger.requests, "_now", lambda: datetime.now(UTC) + timedelta(hours=1))
    await Submission(f"{key}-renamed", KITE, resources, Terms(refuse_duplicates=True)).run()
    monkeypatch.setattr(resources.clock, "monotonic", lambda: time.monotonic() + 3600)
    gate.set()
    with pytest.raises(DuplicateRequestError):
        await slow
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("minutes", [-25, 25])
async def test_allowed_clock_skew_does_not_hide_a_duplicate(
    minutes: int, key: str, resources: PayingResources, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await resources.ledger.duplicate_of(KITE, key, note=True) is None
    monkeypatch.setattr(resources.ledger.requests, "_now", lambda: datetime.now(UTC) + timedelta(minutes=minutes))
    assert await resources.ledger.duplicate_of(KITE, f"{key}-renamed", note=True) == key


async def test_nothing_is_claimed_while_waiting_for_a_limit(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    gate = asyncio.Event()

    @asynccontextmanager
    async def budget(_: str) -> AsyncIterator[Callable[[Outcome], None]]:
        await gate.wait()
        yield lambda _: None

    waiting = asyncio.create_task(Submission(key, KITE, resources, Terms(paying=budget)).run())
    await asyncio.sleep(0.3)
    assert await resources.ledger.read(key) is None
    gate.set()
    await waiting
    assert len(sandbox.record.submits()) == 1
