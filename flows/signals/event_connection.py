"""The one connection over which a run hands over the events that Prefect has to confirm.

A connection for each of them costs Prefect's server and the run several requests, and on a busy machine more than the
time that a confirmation may take.
"""

import asyncio
from contextlib import suppress
from typing import Final

from prefect.events import Event
from prefect.events.clients import EventsClient, get_events_client

NEVER_SECONDS: Final = 1e9
CLOSING_SECONDS: Final = 5.0
"""How long broken connections may take to be closed at the end of a run."""


class EventConnection:
    """Opened by the first event, and anew where it broke. Belongs to one event loop."""

    def __init__(self) -> None:
        self._client: EventsClient | None = None
        self._opening = asyncio.Lock()
        self._closing = set[asyncio.Task[None]]()

    async def send(self, event: Event) -> None:
        """Sends an event and returns once the server has confirmed it; where the connection breaks, once more.

        Many may be sent at the same time. One that was confirmed by a reply that got lost is sent twice: its id tells.

        Raises:
            Exception: whatever Prefect's client raises; the server has not confirmed it.
        """
        for last in (False, True):
            client = await self._opened()
            try:
                await client.emit(event)  # with a checkpoint after each: it returns after the server's pong
            except BaseException as error:
                self._drop(client)  # after a time-out as well: it may never answer again
                if last or not isinstance(error, Exception):
                    raise
            else:
                return

    async def aclose(self) -> None:
        """Closes it. The next event would open it anew."""
        if self._client is not None:
            self._drop(self._client)
        if self._closing:
            _, left = await asyncio.wait(self._closing, timeout=CLOSING_SECONDS)
            for task in left:
                task.cancel()

    async def _opened(self) -> EventsClient:
        async with self._opening:
            if self._client is None:
                # It never connects anew by itself, which it cannot do while several events are under way.
                client = get_events_client(
                    reconnection_attempts=0, checkpoint_every=1, checkpoint_interval=NEVER_SECONDS
                )
                self._client = await client.__aenter__()
            return self._client

    def _drop(self, client: EventsClient) -> None:
        if client is self._client:
            self._client = None
            closing = asyncio.create_task(_close(client), name="close-event-connection")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


async def _close(client: EventsClient) -> None:
    with suppress(Exception):  # it is broken, or not needed any more
        await client.__aexit__(None, None, None)
