"""The thread in which paid calls run, so that the end of a flow run does not interrupt them.

Prefect ends a run with SIGTERM, a user with Ctrl-C. Both are raised inside the event loop, and `asyncio.run` cancels
all tasks of that loop. A paid call interrupted there would leave an unknown payment. So it has its own loop, thread and
connections, and the run waits for it even while it is being ended.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from concurrent.futures import InvalidStateError as AlreadyDone
from contextlib import suppress
from typing import Any, Final, TypeVar

from apixo import ApixoClient
from blocks import ApixoApi, VideoArchive
from blocks.object_store import ObjectStore
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import PipelineError

T = TypeVar("T")

STOP_SECONDS: Final = 10.0
"""How long closing may take. No paid call is in progress then: its caller waits for its end."""


class PaymentThreadDiedError(PipelineError):
    """The payment thread ended while a paid call was in progress. Only the ledger may know whether it was paid."""


Work = Callable[[ApixoClient, Ledger, threading.Event], Coroutine[Any, Any, T]]
"""A paid call. It gets the client that can submit, a ledger, and an event that is set when its run is being ended."""


class PaymentThread:
    """A thread with an event loop, the only client that can submit, and a ledger.

    Only flows that may pay have one: the collector and the callback receiver do not.
    """

    def __init__(self, api: ApixoApi, archive: VideoArchive) -> None:
        self._api, self._archive = api, archive
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="payment", daemon=True)
        self._tools: tuple[ApixoClient, ObjectStore, Ledger] | None = None
        self._under_way: set[Future[Any]] = set()
        self._lock = threading.Lock()
        self._closing = self._dead = False

    async def run(self, work: Work[T], report: Callable[[T], None] = lambda _: None) -> T:
        """Runs a paid call to its end. If cancelled meanwhile, it prevents a send that is still pending, then raises.

        Args:
            report: gets the outcome in any case, even if the run is being cancelled.

        Raises:
            PaymentThreadDiedError: the thread is gone, so it is unknown how the call ended.
        """
        stopping = threading.Event()

        async def with_tools() -> T:
            client, ledger = self._opened()
            return await work(client, ledger, stopping)

        # A future, not a task: cancelling all tasks of the run's loop does not touch it.
        running = asyncio.wrap_future(self._start(with_tools()))
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError as error:
                cancelled = error
                stopping.set()
        ended_by = running.exception()
        if ended_by is None:
            report(running.result())
        if cancelled is not None:
            raise cancelled from ended_by
        if isinstance(ended_by, SystemExit | KeyboardInterrupt):  # it must not end the run as well
            raise _died() from ended_by
        return running.result()

    async def aclose(self) -> None:
        """Closes the connections and ends the thread."""
        if self._thread.is_alive():
            with suppress(PaymentThreadDiedError, TimeoutError):
                closing = self._start(self._close())
                self._closing = True
                await asyncio.to_thread(closing.result, STOP_SECONDS)
            with suppress(RuntimeError):  # the loop of a thread that died is closed
                self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if not self._loop.is_running():
            self._loop.close()

    def _start(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        with self._lock:
            if self._dead:
                work.close()
                raise _died()
            if not self._thread.is_alive():
                self._thread.start()
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
            self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        return future

    def _run(self) -> None:
        """Runs the loop until it is closed. A SystemExit or KeyboardInterrupt ends one call at most, not the loop."""
        died = _died()
        try:
            while not self._closing:
                with suppress(SystemExit, KeyboardInterrupt):  # raised in one task and passed to its waiter
                    self._loop.run_forever()
        except BaseException as error:  # noqa: BLE001 - passed to the waiters
            died.__cause__ = error
        with self._lock:
            self._dead = True
        for future in list(self._under_way):  # notify the waiters at once
            with suppress(AlreadyDone):
                future.set_exception(died)

    def _opened(self) -> tuple[ApixoClient, Ledger]:
        """The client and the ledger, created on first use: a rerun of a paid generation needs neither."""
        if self._tools is None:
            store = self._archive.store()
            # Each call has waited for its turn before its claim: see `StatusClient.wait_for_turn`.
            self._tools = self._api.client(requests_per_minute=None), store, Ledger(store)
        return self._tools[0], self._tools[2]

    async def _close(self) -> None:
        if self._tools is not None:
            await self._tools[0].aclose()
            await self._tools[1].aclose()


def _died() -> PaymentThreadDiedError:
    return PaymentThreadDiedError(
        "The payment thread of this process has died. Run it again: what was paid is in the ledger, or becomes "
        "unconfirmed there."
    )
