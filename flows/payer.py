"""Where the paid call runs: out of the reach of whatever ends a flow run.

Prefect ends a run by SIGTERM, a person by Ctrl-C: both are raised inside the event loop, and `asyncio.run` then cancels
every task of that loop. A paid call cut there would leave a payment that nobody knows of. So it has a loop of its own,
in a thread of its own, with connections of its own, and the run waits for it even while it is being ended.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from apixo import ApixoClient
from blocks import ApixoApi, VideoArchive
from flows.ledger import Ledger

T = TypeVar("T")

STOP_SECONDS: Final = 10.0
"""How long closing may take. No paid call is under way then: whoever started one waits for its end."""


class Stopped:
    """Whether the run that waits for a paid call is being ended."""

    def __init__(self) -> None:
        self.is_set = False


class Payer:
    """A thread with an event loop, an API client and a ledger.

    Args:
        api, archive: the blocks that client and ledger are made from.
    """

    def __init__(self, api: ApixoApi, archive: VideoArchive) -> None:
        self._api, self._archive = api, archive
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="payer", daemon=True)
        self._tools: tuple[ApixoClient, Ledger] | None = None
        self._close: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def run(self, work: Callable[[ApixoClient, Ledger, Stopped], Coroutine[Any, Any, T]]) -> T:
        """Runs the work to its end. A cancellation meanwhile is told to the work, and passed on after its end."""
        if not self._thread.is_alive():
            self._thread.start()
        stopped = Stopped()

        async def with_tools() -> T:
            client, ledger = self._opened()
            return await work(client, ledger, stopped)

        # A future, not a task: cancelling all tasks of the run's loop does not touch it.
        running = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(with_tools(), self._loop))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError as error:
                cancelled, stopped.is_set = error, True
        if cancelled is not None:
            running.exception()  # seen: what happened is in the ledger and in the log
            raise cancelled
        return running.result()

    async def aclose(self) -> None:
        """Closes the connections and ends the thread."""
        if self._thread.is_alive():
            if self._close is not None:
                closing = asyncio.run_coroutine_threadsafe(self._close(), self._loop)
                await asyncio.to_thread(closing.result, STOP_SECONDS)
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if not self._loop.is_running():
            self._loop.close()

    def _opened(self) -> tuple[ApixoClient, Ledger]:
        """The tools, made on first use: a rerun of a generation that is paid needs none."""
        if self._tools is None:
            client, store = self._api.client(), self._archive.store()

            async def close() -> None:
                await client.aclose()
                await store.aclose()

            self._tools, self._close = (client, Ledger(store)), close
        return self._tools
