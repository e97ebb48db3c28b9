"""Simulated processes that pause before each effect on the outside world, and a scheduler that resumes them one by one.

Each actor runs the pipeline's own code. It pauses at every request to MinIO, every call to the provider and every
sleep. The state machine chooses which actor takes its next step, and what becomes of that one request. So a single
thread can produce any schedule of processes on several machines, and can repeat it exactly.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from blocks import VideoArchive
from blocks.object_store import ListedObject, ObjectStore
from blocks.s3_uploads import Attributes, Uploads
from blocks.store_errors import StoreUnavailableError

if TYPE_CHECKING:
    from obstore import PutMode

T = TypeVar("T")

START: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
CURRENT_ACTOR: ContextVar["Actor"] = ContextVar("CURRENT_ACTOR")
"""The actor whose code is running, for code that is not passed any resources, such as the delivery of events."""
WRITTEN_BYTES: ContextVar[bytes] = ContextVar("WRITTEN_BYTES")
"""The content of the write that is on its way to the store."""
STEP_TIMEOUT_SECONDS: Final = 20.0
"""Real seconds within which an actor must reach its next step. If it takes longer, the simulation itself is stuck."""


class Delivery(StrEnum):
    """What becomes of a request to the store."""

    OK = "delivered"
    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"


@dataclass(eq=False, slots=True)
class PendingStep:
    """The step at which an actor is paused.

    Attributes:
        what: what the actor does next: `GET ledger/a.json`, `sleep`, `post`, `event`, …
        due_seconds: the simulated time at which a sleep is over; for any other step, the time at which it was reached.
        resume: resolves when the scheduler lets the actor take this step.
    """

    what: str
    due_seconds: float
    resume: asyncio.Future[Delivery]


@dataclass
class Scheduler:
    """The simulated time, and what all actors share.

    Attributes:
        written: called with the name and content of each object that MinIO has stored, and the actor that wrote it.
            The content is None if the object was deleted.
        seconds: true time since the start. The clocks of the actors may differ from it.
        outage_until_seconds: no request reaches MinIO before this time.
        steps: how many steps were taken by all actors together.
        closing: the simulation has ended: no actor reaches the outside any more.
        modified: when each object was last written, in simulated time.
    """

    written: Callable[[str, bytes | None, "Actor"], None]
    seconds: float = 0.0
    outage_until_seconds: float = 0.0
    steps: int = 0
    closing: bool = False
    modified: dict[str, datetime] = field(default_factory=dict)

    def now(self) -> datetime:
        """The true time."""
        return START + timedelta(seconds=self.seconds)


@dataclass(eq=False)
class Actor:
    """One process on one machine.

    Attributes:
        name: for messages.
        clock_offset_seconds: how far its wall clock is ahead of the true time.
        uptime_seconds: what its monotonic clock showed at the start.
        answer: how the provider will answer its next paid call; None: it accepts it.
        killed: it never takes another step.
        canceled: Prefect has ended its run.
        published: the ends whose events have reached Prefect, from any actor.
        clock_was_set: its wall clock no longer shows how much time has passed.
        was_suspended: nor does its monotonic clock.
        closing: it has removed the open marker, and has not yet checked whether that was right.
        last: the last step it took.
        unsure: it may have written a record: the reply was lost, and it has not continued since.
        dropped_unmarked: its payment thread died while the run was `unmarked`.
        paid_calls: what its payment thread is running, or has run.
        polled: the last state of each task that it has polled; None: the provider did not know the task.
    """

    name: str
    scheduler: Scheduler
    clock_offset_seconds: float = 0.0
    uptime_seconds: float = 0.0
    answer: str | None = None
    killed: bool = False
    canceled: bool = False
    published: set[Any] = field(default_factory=set)
    clock_was_set: bool = False
    was_suspended: bool = False
    closing: bool = False
    last: str = ""
    unsure: bool = False
    dropped_unmarked: bool = False
    pending: deque[PendingStep] = field(default_factory=deque)
    task: asyncio.Task[Any] | None = None
    paid_calls: list[asyncio.Task[Any]] = field(default_factory=list)
    polled: dict[str, str | None] = field(default_factory=dict)
    _in_flight: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> datetime:
        """Its wall clock."""
        return START + timedelta(seconds=self.scheduler.seconds + self.clock_offset_seconds)

    def monotonic(self) -> float:
        """Its monotonic clock."""
        return self.scheduler.seconds + self.uptime_seconds

    def set_clock(self, offset_seconds: float) -> None:
        """Changes its wall clock, unless it was suspended: then neither clock would show how much time has passed."""
        if not self.was_suspended:
            self.clock_offset_seconds, self.clock_was_set = offset_seconds, True

    def suspend_machine(self, seconds: float) -> None:
        """Time passes for all other actors and for its wall clock, while its monotonic clock stands still."""
        if not self.clock_was_set:
            self.scheduler.seconds += seconds
            self.uptime_seconds -= seconds
            self.was_suspended = True

    async def sleep(self, seconds: float) -> None:
        """A sleep. When the actor is resumed, this much time has passed for everyone."""
        await self.pause_before("sleep", seconds=max(seconds, 0.0))

    async def pause_before(self, what: str, *, seconds: float = 0.0) -> Delivery:
        """Waits until the scheduler lets the actor take this step."""
        if self.scheduler.closing:
            raise asyncio.CancelledError
        step = PendingStep(what, self.scheduler.seconds + seconds, asyncio.get_running_loop().create_future())
        self.pending.append(step)
        self._changed.set()
        return await step.resume

    def count_in_flight(self, change: int) -> None:
        """One more, or one fewer, of its requests is in flight."""
        self._in_flight += change
        self._changed.set()

    @property
    def done(self) -> bool:
        """Whether it has finished."""
        return self.task is not None and self.task.done()

    @property
    def runnable(self) -> bool:
        """Whether it is alive and has something left to do."""
        return not self.killed and not self.done

    @property
    def died(self) -> bool:
        """Whether it was killed or canceled before it finished by itself."""
        return self.canceled or (self.killed and not self.done)

    @property
    def next(self) -> str:
        """The step it takes when it is resumed."""
        return self.pending[0].what if self.pending else ""

    @property
    def unmarked(self) -> bool:
        """Whether it wrote a record, or may have, and is about to put back the open marker."""
        if self.unsure:
            return self.next.startswith(("PUT open/", "GET ledger/", "sleep"))
        return self.next.startswith("PUT open/") and self.last.startswith("PUT ledger/")

    async def start(self, work: Coroutine[Any, Any, Any]) -> None:
        """Starts it and waits until it pauses for the first time."""
        CURRENT_ACTOR.set(self)
        self.task = asyncio.create_task(work, name=self.name)
        self.task.add_done_callback(lambda _: self._changed.set())
        await self._until_paused()

    async def step(self, delivery: Delivery = Delivery.OK) -> None:
        """Lets it take one step, and waits until it pauses again or finishes."""
        step = self.pending.popleft()
        self.last = step.what
        self.closing = step.what.startswith("DELETE open/") or (
            self.closing and step.what.startswith(("GET ledger/", "PUT open/", "sleep"))
        )
        if not (self.unsure and step.what.startswith(("GET ledger/", "sleep"))):
            self.unsure = step.what.startswith("PUT ledger/") and delivery is Delivery.REPLY_LOST
        self.scheduler.steps += 1
        self.scheduler.seconds = max(self.scheduler.seconds, step.due_seconds)
        step.resume.set_result(delivery)
        await self._until_paused()

    async def cancel(self) -> None:
        """Cancels it, as Prefect does when it ends a run, and waits until it pauses again or finishes."""
        assert self.task is not None
        self.task.cancel()
        for _ in range(5):  # a sleep is a separate task, which is canceled a moment later
            await asyncio.sleep(0)
        self.pending = deque(step for step in self.pending if not step.resume.done())
        await self._until_paused()

    async def drop_paid_call(self) -> None:
        """Its payment thread is gone, with every step it was about to take. The run was only waiting for it."""
        self.dropped_unmarked |= self.unmarked
        self.pending.clear()
        await self._until_paused()

    async def _until_paused(self) -> None:
        async with asyncio.timeout(STEP_TIMEOUT_SECONDS):
            while not self.done and (self._in_flight or not self.pending):
                self._changed.clear()
                await self._changed.wait()


class SimulatedStore(ObjectStore):
    """A machine's connection to MinIO: the current actor pauses before every request."""

    def __init__(self, archive: VideoArchive) -> None:
        super().__init__(archive.connection(), archive.bucket)
        self._turns = asyncio.Semaphore(10_000)  # an actor that is killed never gives its turn back

    def move_to(self, bucket: str) -> None:
        """Uses another bucket from now on."""
        self.bucket, self._obstore = bucket, self._connection.obstore_client(bucket)
        self._uploads = Uploads(self._connection, bucket, self._minio)

    async def create_file(self, name: str, path: Path, **how: Any) -> bool:
        WRITTEN_BYTES.set(await asyncio.to_thread(path.read_bytes))
        return await super().create_file(name, path, **how)

    async def replace_file(self, name: str, path: Path, **how: Any) -> None:
        WRITTEN_BYTES.set(await asyncio.to_thread(path.read_bytes))
        await super().replace_file(name, path, **how)

    async def listed(self, prefix: str) -> list[ListedObject]:
        """MinIO's own times are real, so they are replaced by simulated ones."""
        modified = CURRENT_ACTOR.get().scheduler.modified
        return [replace(item, modified=modified[item.name]) for item in await super().listed(prefix)]

    async def _put(
        self, name: str, data: bytes, content_type: str, mode: "PutMode", attributes: Attributes | None = None
    ) -> str:
        WRITTEN_BYTES.set(data)
        return await super()._put(name, data, content_type, mode, attributes)

    async def _call(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        actor = CURRENT_ACTOR.get()
        scheduler = actor.scheduler
        delivery = await actor.pause_before(f"{method} {name}")
        if delivery is Delivery.REQUEST_LOST or scheduler.seconds < scheduler.outage_until_seconds:
            raise StoreUnavailableError("The request was lost on its way.")
        actor.count_in_flight(+1)
        try:
            result = await call()
        finally:
            actor.count_in_flight(-1)
        if method in ("PUT", "DELETE"):
            scheduler.modified[name] = scheduler.now()
            scheduler.written(name, WRITTEN_BYTES.get() if method == "PUT" else None, actor)
        if delivery is Delivery.REPLY_LOST:
            raise StoreUnavailableError("The reply was lost on its way.")
        return result


async def close(scheduler: Scheduler, actors: list[Actor]) -> None:
    """Ends the simulation: the next step of any remaining actor fails without having reached anything."""
    scheduler.closing = True
    tasks = [task for actor in actors for task in (actor.task, *actor.paid_calls) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
