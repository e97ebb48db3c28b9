"""Wakes whoever waits for a task that has ended, as the event `apixo.task.finished` tells.

The callback receiver emits that event; any process that is connected to the same Prefect server hears it. A ring is
only a reason to ask now rather than later: one that is lost costs time, and polling goes on all the same.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventFilter, EventNameFilter

from flows.signals.events import TASK_FINISHED
from flows.signals.progress import run_logger

RECONNECT_SECONDS: Final = 5.0
"""The pause before listening again after the connection to the Prefect server broke for good."""


class Subscriber:
    """The rings of all generations, for the waiters of one flow run. Deaf until `subscribe` is called."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}
        self._listening: asyncio.Task[None] | None = None

    def subscribe(self) -> None:
        """Begins to listen to the Prefect server, in the background. Repeating it changes nothing."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen(), name="subscriber")

    async def resubscribe(self) -> None:
        """Begins anew. Prefect then replays the last minute.

        What was published just before the first connection, and stored just after it, is heard only so: Prefect stores
        events every 5 s, and replays what is stored.
        """
        await self.aclose()
        self.subscribe()

    async def aclose(self) -> None:
        """Stops listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait({self._listening})
            self._listening = None

    def notify(self, key: str) -> None:
        """Wakes who waits for this key, now or later: a ring that nobody waits for yet is kept."""
        self._event(key).set()

    async def sleep(self, key: str, seconds: float, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Sleeps, less long when the key rings, and uses that ring up."""
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
        """The keys that have rung and that nobody waited for. Uses these rings up."""
        keys = {key for key, event in self._events.items() if event.is_set()}
        for key in keys:
            self._events[key].clear()
        return keys

    def _event(self, key: str) -> asyncio.Event:
        return self._events.setdefault(key, asyncio.Event())

    async def _listen(self) -> None:
        told = False
        while True:
            try:
                await self._hear()
            except Exception as error:  # noqa: BLE001 - whatever goes wrong with a hint costs time only
                if not told:
                    run_logger().warning(
                        "Callbacks are not heard for now (%s: %s). Polling goes on.", type(error).__name__, error
                    )
                told = True
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _hear(self) -> None:
        wanted = EventFilter(event=EventNameFilter(name=[TASK_FINISHED]))
        # Prefect replays the last minute when it connects, so a ring during a short outage is not lost.
        async with get_events_subscriber(filter=wanted, reconnect_on_clean_close=True) as subscriber:
            async for event in subscriber:
                key = event.payload.get("key")
                if isinstance(key, str):
                    self.notify(key)
