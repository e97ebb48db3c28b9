"""Every end of a task is told, and the collector is called seldom, but always once more after the last."""

import asyncio
from typing import Any

from deployments.receiver.notifier import Notifier


class Told:
    def __init__(self) -> None:
        self.events: list[tuple[str, bool]] = []

    def __call__(self, key: str, *, task_id: str, calls_collector: bool) -> None:
        assert task_id == f"task of {key}"
        self.events.append((key, calls_collector))


def notifier(told: Told, **options: Any) -> Notifier:
    return Notifier(told, **({"call_every_seconds": 0.2} | options))


async def test_a_single_end_calls_the_collector_at_once_and_only_once() -> None:
    told = Told()
    bell = notifier(told)
    bell.finished("a", "task of a")
    assert told.events == [("a", True)]
    await asyncio.sleep(0.5)
    assert told.events == [("a", True)]


async def test_a_burst_is_reported_one_by_one_and_calls_the_collector_twice() -> None:
    told = Told()
    bell = notifier(told)
    for number in range(100):
        bell.finished(f"{number}", f"task of {number}")
    assert told.events == [("0", True), *((f"{number}", False) for number in range(1, 100))]
    await asyncio.sleep(0.5)
    assert told.events[100:] == [("99", True)]


async def test_a_stream_calls_the_collector_at_its_pace_and_after_its_end() -> None:
    told = Told()
    bell = notifier(told)
    for number in range(20):
        bell.finished(f"{number}", f"task of {number}")
        await asyncio.sleep(0.03)
    await asyncio.sleep(0.5)
    calls = [key for key, calls_collector in told.events if calls_collector]
    assert calls[-1] == "19"
    assert 3 <= len(calls) <= 6
    assert len({key for key, _ in told.events}) == 20


async def test_what_is_left_is_reported_when_it_closes() -> None:
    told = Told()
    bell = notifier(told, call_every_seconds=60)
    bell.finished("a", "task of a")
    bell.finished("b", "task of b")
    bell.flush()
    bell.flush()
    assert told.events == [("a", True), ("b", False), ("b", True)]
