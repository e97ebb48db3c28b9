"""Every finished task is published, and the collector is triggered rarely, but always once after the last one."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Completed, Running

from deployments.local.prefect_server import PrefectServer
from deployments.receiver.notifier import Notifier, collector_runs


class PublishedEvents:
    def __init__(self) -> None:
        self.events: list[tuple[str, bool]] = []

    def __call__(self, key: str, *, task_id: str, end: str | None, calls_collector: bool) -> None:
        assert (task_id, end) == (f"task of {key}", None)
        self.events.append((key, calls_collector))


CollectorRuns = Callable[[], Awaitable[bool]]


async def no_collector_runs() -> bool:
    return False


def make_notifier(
    published: PublishedEvents, call_every_seconds: float = 0.2, collector_runs: CollectorRuns = no_collector_runs
) -> Notifier:
    return Notifier(published, call_every_seconds=call_every_seconds, collector_runs=collector_runs)


async def test_single_finished_task_triggers_collector_once_immediately() -> None:
    published = PublishedEvents()
    notifier = make_notifier(published)
    notifier.finished("a", "task of a")
    assert published.events == [("a", True)]
    await asyncio.sleep(0.5)
    assert published.events == [("a", True)]


async def test_burst_publishes_every_event_and_triggers_collector_twice() -> None:
    published = PublishedEvents()
    notifier = make_notifier(published)
    for number in range(100):
        notifier.finished(f"{number}", f"task of {number}")
    assert published.events == [("0", True), *((f"{number}", False) for number in range(1, 100))]
    await asyncio.sleep(0.5)
    assert published.events[100:] == [("99", True)]


async def test_steady_stream_triggers_collector_at_intervals_and_after_last_event() -> None:
    published = PublishedEvents()
    notifier = make_notifier(published)
    for number in range(20):
        notifier.finished(f"{number}", f"task of {number}")
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.5)
    calls = [key for key, calls_collector in published.events if calls_collector]
    assert calls[-1] == "19"
    assert 3 <= len(calls) <= 6
    assert len({key for key, _ in published.events}) == 20


async def test_flush_publishes_the_pending_trigger_once() -> None:
    published = PublishedEvents()
    notifier = make_notifier(published, call_every_seconds=60)
    notifier.finished("a", "task of a")
    notifier.finished("b", "task of b")
    notifier.flush()
    notifier.flush()
    assert published.events == [("a", True), ("b", False), ("b", True)]


async def test_running_collector_is_not_triggered_until_it_ends() -> None:
    """The single trigger afterward covers every task that finished in the meantime."""
    published, has_ended = PublishedEvents(), asyncio.Event()

    async def runs() -> bool:
        return not has_ended.is_set()

    notifier = make_notifier(published, call_every_seconds=0.05, collector_runs=runs)
    for number in range(8):
        notifier.finished(f"{number}", f"task of {number}")
        await asyncio.sleep(0.05)
    assert [key for key, calls_collector in published.events if calls_collector] == ["0"]
    has_ended.set()
    async with asyncio.timeout(60):
        while len([key for key, calls_collector in published.events if calls_collector]) < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert [key for key, calls_collector in published.events if calls_collector] == ["0", "7"]


async def test_endless_collector_run_does_not_block_triggers_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.receiver.notifier.MOST_POSTPONED", 3)
    published = PublishedEvents()

    async def runs() -> bool:
        return True

    notifier = make_notifier(published, call_every_seconds=0.02, collector_runs=runs)
    notifier.finished("a", "task of a")
    notifier.finished("b", "task of b")
    await asyncio.sleep(0.5)
    assert published.events == [("a", True), ("b", False), ("b", True)]


async def test_collector_runs_only_reports_runs_in_progress(prefect_server: PrefectServer) -> None:
    assert not await collector_runs()
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("collect-videos")
        run = await client.create_flow_run_from_deployment(
            await client.create_deployment(flow_id=flow_id, name="for-the-notifier")
        )
        assert not await collector_runs()  # it may be scheduled for tomorrow
        await client.set_flow_run_state(run.id, Running(), force=True)
        assert await collector_runs()
        await client.set_flow_run_state(run.id, Completed(), force=True)
    assert not await collector_runs()
