"""Wakes a waiting run when its task has ended, by subscribing to the event `apixo.task.finished`.

The callback receiver emits that event, and any process connected to the same Prefect server receives it. It only lets
the run continue sooner: a lost event costs time, and polling continues anyway.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter

from flows.signals.events import TASK_FINISHED
from flows.signals.progress import run_logger

RECONNECT_SECONDS: Final = 5.0
"""The pause before subscribing again after the connection to the Prefect server could not be restored."""


class Subscriber:
    """Notifies the waiting coroutines of one flow run. Nothing arrives until `subscribe` is called."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}
        self._ends: dict[str, str] = {}
        self._receiving: asyncio.Task[None] | None = None

    def subscribe(self) -> None:
        """Subscribes to the Prefect server's events, in the background. Repeating it changes nothing."""
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._stay_subscribed(), name="task-finished-events")

    async def resubscribe(self) -> None:
        """Subscribes again. Prefect then replays the last minute.

        An event that was published just before the first connection, but stored just after it, arrives only this way:
        Prefect stores events every 5 s, and replays only stored ones.
        """
        await self.aclose()
        self.subscribe()

    async def aclose(self) -> None:
        """Ends the subscription."""
        if self._receiving is not None:
            self._receiving.cancel()
            await asyncio.wait({self._receiving})
            self._receiving = None

    def notify(self, key: str, end: str | None = None) -> None:
        """Wakes the waiter for this key. A notification without a waiter is kept.

        Args:
            end: how its task ended, encrypted, if the event contains that.
        """
        if end is not None:
            self._ends[key] = end
        self._event(key).set()

    def take_end(self, key: str) -> str | None:
        """How the task of this key ended, encrypted, from the last notification. Returned only once."""
        return self._ends.pop(key, None)

    async def sleep(self, key: str, seconds: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Sleeps until the time is over or the key is notified, and clears that notification."""
        event = self._event(key)
        sleeping = asyncio.ensure_future(sleep(seconds))
        notified = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({sleeping, notified}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            notified.cancel()
        if sleeping.done() and not sleeping.cancelled():
            sleeping.result()
        event.clear()

    def take_notified(self) -> set[str]:
        """The keys that were notified without a waiter. Clears these notifications."""
        keys = {key for key, event in self._events.items() if event.is_set()}
        for key in keys:
            self._events[key].clear()
        return keys

    def _event(self, key: str) -> asyncio.Event:
        return self._events.setdefault(key, asyncio.Event())

    async def _stay_subscribed(self) -> None:
        warned = False
        while True:
            try:
                await self._receive()
            except Exception as error:  # noqa: BLE001 - a missing notification costs time only
                if not warned:
                    run_logger().warning(
                        "Not subscribed to callbacks for now (%s: %s). Polling continues.", type(error).__name__, error
                    )
                warned = True
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _receive(self) -> None:
        wanted = EventFilter(event=EventNameFilter(name=[TASK_FINISHED]))
        # Prefect replays the last minute when it connects, so an event during a short outage is not lost.
        async with get_events_subscriber(filter=wanted, reconnect_on_clean_close=True) as subscriber:
            async for event in subscriber:
                key, end = event.payload.get("key"), event.payload.get("end")
                if isinstance(key, str):
                    self.notify(key, end if isinstance(end, str) else None)
