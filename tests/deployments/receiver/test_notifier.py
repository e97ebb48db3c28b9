"""Every end of a task is reported, and the collector is called seldom, but always once more after the last."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Completed, Running

from deployments.local.prefect_server import PrefectServer
from deployments.receiver.notifier import Notifier, collector_runs


class Reported:
    def __init__(self) -> None:
        self.events: list[tuple[str, bool]] = []

    def __call__(self, key: str, *, task_id: str, end: str | None, calls_collector: bool) -> None:
        assert (task_id, end) == (f"task of {key}", None)
        self.events.append((key, calls_collector))


Asks = Callable[[], Awaitable[bool]]


async def nobody_runs() -> bool:
    return False


def notifier(reported: Reported, call_every_seconds: float = 0.2, collector_runs: Asks = nobody_runs) -> Notifier:
    return Notifier(reported, call_every_seconds=call_every_seconds, collector_runs=collector_runs)


async def test_a_single_end_calls_the_collector_at_once_and_only_once() -> None:
    reported = Reported()
    notify = notifier(reported)
    notify.finished("a", "task of a")
    assert reported.events == [("a", True)]
    await asyncio.sleep(0.5)
    assert reported.events == [("a", True)]


async def test_a_burst_is_reported_one_by_one_and_calls_the_collector_twice() -> None:
    reported = Reported()
    notify = notifier(reported)
    for number in range(100):
        notify.finished(f"{number}", f"task of {number}")
    assert reported.events == [("0", True), *((f"{number}", False) for number in range(1, 100))]
    await asyncio.sleep(0.5)
    assert reported.events[100:] == [("99", True)]


async def test_a_stream_calls_the_collector_at_its_pace_and_after_its_end() -> None:
    reported = Reported()
    notify = notifier(reported)
    for number in range(20):
        notify.finished(f"{number}", f"task of {number}")
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.5)
    calls = [key for key, calls_collector in reported.events if calls_collector]
    assert calls[-1] == "19"
    assert 3 <= len(calls) <= 6
    assert len({key for key, _ in reported.events}) == 20


async def test_what_is_left_is_reported_when_it_closes() -> None:
    reported = Reported()
    notify = notifier(reported, call_every_seconds=60)
    notify.finished("a", "task of a")
    notify.finished("b", "task of b")
    notify.flush()
    notify.flush()
    assert reported.events == [("a", True), ("b", False), ("b", True)]


async def test_while_a_collector_runs_it_is_not_called_and_then_once() -> None:
    """That one hears of all that ends meanwhile."""
    reported, has_ended = Reported(), asyncio.Event()

    async def runs() -> bool:
        return not has_ended.is_set()

    notify = notifier(reported, call_every_seconds=0.05, collector_runs=runs)
    for number in range(8):
        notify.finished(f"{number}", f"task of {number}")
        await asyncio.sleep(0.05)
    assert [key for key, calls_collector in reported.events if calls_collector] == ["0"]
    has_ended.set()
    async with asyncio.timeout(60):
        while len([key for key, calls_collector in reported.events if calls_collector]) < 2:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    assert [key for key, calls_collector in reported.events if calls_collector] == ["0", "7"]


async def test_a_run_that_never_ends_keeps_nobody_from_being_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.receiver.notifier.MOST_POSTPONED", 3)
    reported = Reported()

    async def runs() -> bool:
        return True

    notify = notifier(reported, call_every_seconds=0.02, collector_runs=runs)
    notify.finished("a", "task of a")
    notify.finished("b", "task of b")
    await asyncio.sleep(0.5)
    assert reported.events == [("a", True), ("b", False), ("b", True)]


async def test_prefect_is_asked_whether_one_runs(prefect_server: PrefectServer) -> None:
    assert not await collector_runs()
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("collect-videos")
        run = await client.create_flow_run_from_deployment(
            await client.create_deployment(flow_id=flow_id, name="for-the-notifier")
        )
        assert not await collector_runs()  # it may be for tomorrow
        await client.set_flow_run_state(run.id, Running(), force=True)
        assert await collector_runs()
        await client.set_flow_run_state(run.id, Completed(), force=True)
    assert not await collector_runs()
