"""Notifications wake waiting runs, from this process and from others. A lost one only costs time."""

import asyncio
import time

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.local.prefect_server import PrefectServer
from flows.signals.events import emit_task_finished
from flows.signals.subscriber import Subscriber


async def test_notification_ends_the_sleep_of_its_own_key_only() -> None:
    subscriber = Subscriber()
    asyncio.get_running_loop().call_later(0.05, subscriber.notify, "a")
    began = time.monotonic()
    await subscriber.sleep("a", 600)
    assert time.monotonic() - began < 60
    await subscriber.sleep("b", 0.02)
    assert time.monotonic() - began < 60


async def test_early_notification_is_kept_and_used_once() -> None:
    subscriber = Subscriber()
    subscriber.notify("a")
    await asyncio.wait_for(subscriber.sleep("a", 600), 60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(subscriber.sleep("a", 30), 0.05)


async def test_unused_notifications_can_be_taken_once() -> None:
    subscriber = Subscriber()
    subscriber.notify("a")
    subscriber.notify("b")
    await subscriber.sleep("b", 1)
    assert subscriber.take_notified() == {"a"}
    assert subscriber.take_notified() == set()


async def test_sleep_without_notification_uses_given_sleep_and_raises_its_error() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if seconds == 2:
            raise RuntimeError("the clock is broken")

    subscriber = Subscriber()
    await subscriber.sleep("a", 1, sleep)
    with pytest.raises(RuntimeError, match="broken"):
        await subscriber.sleep("a", 2, sleep)
    assert slept == [1, 2]


async def test_cancelled_sleep_leaves_no_tasks_behind() -> None:
    subscriber = Subscriber()
    before = asyncio.all_tasks()
    sleeping = asyncio.create_task(subscriber.sleep("a", 30))
    await asyncio.sleep(0.01)
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


async def test_event_notifies_the_subscriber(prefect_server: PrefectServer, key: str) -> None:
    subscriber = Subscriber()
    subscriber.subscribe()
    subscriber.subscribe()
    try:
        async with asyncio.timeout(60):
            while not subscriber.take_notified() >= {key}:  # nothing reports when it is subscribed
                emit_task_finished(key, task_id="t", api="default", archive="default")
                await subscriber.sleep("never", 0.5)
    finally:
        await subscriber.aclose()


async def test_resubscribing_receives_an_earlier_event(prefect_server: PrefectServer, key: str) -> None:
    emit_task_finished(key, task_id="t", api="default", archive="default")
    await asyncio.sleep(1)  # on its way: already published, but not stored yet
    subscriber = Subscriber()
    try:
        async with asyncio.timeout(60):
            while key not in subscriber.take_notified():
                await subscriber.resubscribe()
                await subscriber.sleep("never", 3)
    finally:
        await subscriber.aclose()


async def test_subscriber_without_a_server_gets_no_notifications(caplog: pytest.LogCaptureFixture) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        subscriber = Subscriber()
        subscriber.subscribe()
        await subscriber.sleep("a", 0.3)
        await subscriber.aclose()
    assert subscriber.take_notified() == set()
