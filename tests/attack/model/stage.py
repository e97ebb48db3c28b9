"""Actors that halt before all they do to the outside, and go on only when they are told to.

Each actor runs the pipeline's own code. At every request to MinIO, every call of the provider and every pause it halts.
Whoever directs the stage chooses who goes on, and what becomes of that one request. So one thread plays any order in
which processes on several machines can do things, and plays it again the same way.
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
from blocks.errors import StoreUnavailableError
from blocks.object_store import ListedObject, ObjectStore
from blocks.s3_uploads import Attributes, Uploads

if TYPE_CHECKING:
    from obstore import PutMode

T = TypeVar("T")

BEGINNING: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ACTING: ContextVar["Actor"] = ContextVar("ACTING")
"""Whose code runs; for what gets no resources passed, such as the delivery of events."""
SENDING: ContextVar[bytes] = ContextVar("SENDING")
"""The bytes of the write that is on its way to the store."""
PATIENCE_SECONDS: Final = 20.0
"""Real seconds within which an actor has to come to its next halt. Longer means that the stage itself is stuck."""


class Fate(StrEnum):
    """What becomes of a request to the store."""

    GOES_WELL = "goes well"
    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"


@dataclass(eq=False, slots=True)
class Halt:
    """Where an actor stands.

    Attributes:
        what: what it does next: `GET ledger/a.json`, `sleep`, `post`, `event`, …
        due_seconds: the stage's time at which a pause is over; nothing else has one.
        release: lets it go on.
    """

    what: str
    due_seconds: float
    release: asyncio.Future[Fate]


@dataclass
class Stage:
    """Time, and what all actors share.

    Attributes:
        written: called with the name and bytes of each object that MinIO has taken, and by whom. None: it is removed.
        seconds: since the beginning, as no clock of an actor shows it.
        away_until_seconds: before this time no request reaches MinIO.
        steps: how often anybody went on.
        closing: the play is over: nobody reaches the outside any more.
        modified: when each object was last written, in the play's time.
    """

    written: Callable[[str, bytes | None, "Actor"], None]
    seconds: float = 0.0
    away_until_seconds: float = 0.0
    steps: int = 0
    closing: bool = False
    modified: dict[str, datetime] = field(default_factory=dict)

    def now(self) -> datetime:
        """The true time."""
        return BEGINNING + timedelta(seconds=self.seconds)


@dataclass(eq=False)
class Actor:
    """One process on one machine.

    Attributes:
        name: for messages.
        ahead_seconds: how far its wall clock is ahead of the true time.
        uptime_seconds: what its monotonic clock showed at the beginning.
        answer: what the provider will say to its next paid call; None: it takes it.
        dead: killed: it never goes on.
        ended: its run was ended by Prefect.
        reported: the ends that Prefect has heard of, from anybody.
        clock_was_set: its wall clock does not show any more how much time has passed.
        slept: its monotonic clock does not either.
        closing: it has removed the open marker, and has not yet looked whether it may stay away.
        last: what it did last.
        paid_calls: what its payment thread runs, or ran.
    """

    name: str
    stage: Stage
    ahead_seconds: float = 0.0
    uptime_seconds: float = 0.0
    answer: str | None = None
    dead: bool = False
    ended: bool = False
    reported: set[Any] = field(default_factory=set)
    clock_was_set: bool = False
    slept: bool = False
    closing: bool = False
    last: str = ""
    waiting: deque[Halt] = field(default_factory=deque)
    task: asyncio.Task[Any] | None = None
    paid_calls: list[asyncio.Task[Any]] = field(default_factory=list)
    _flying: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def now(self) -> datetime:
        """Its wall clock."""
        return BEGINNING + timedelta(seconds=self.stage.seconds + self.ahead_seconds)

    def monotonic(self) -> float:
        """Its monotonic clock."""
        return self.stage.seconds + self.uptime_seconds

    def set_clock(self, ahead_seconds: float) -> None:
        """Somebody sets its wall clock. Not after a sleep: then nothing would tell it how much time has passed."""
        if not self.slept:
            self.ahead_seconds, self.clock_was_set = ahead_seconds, True

    def machine_sleeps(self, seconds: float) -> None:
        """Time passes for all others, and for its wall clock. Its monotonic clock stands still."""
        if not self.clock_was_set:
            self.stage.seconds += seconds
            self.uptime_seconds -= seconds
            self.slept = True

    async def sleep(self, seconds: float) -> None:
        """A pause. Going on after it means that this much time has passed for everybody."""
        await self.halt("sleep", seconds=max(seconds, 0.0))

    async def halt(self, what: str, *, seconds: float = 0.0) -> Fate:
        """Stands still until it is released."""
        if self.stage.closing:
            raise asyncio.CancelledError
        here = Halt(what, self.stage.seconds + seconds, asyncio.get_running_loop().create_future())
        self.waiting.append(here)
        self._changed.set()
        return await here.release

    def flies(self, by: int) -> None:
        """One more, or one less, of its requests is on its way."""
        self._flying += by
        self._changed.set()

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.task is not None and self.task.done()

    @property
    def acting(self) -> bool:
        """Whether it lives and has something left to do."""
        return not self.dead and not self.done

    @property
    def died(self) -> bool:
        """Whether it was killed or ended before it came to its end by itself."""
        return self.ended or (self.dead and not self.done)

    @property
    def next(self) -> str:
        """What it does when it goes on."""
        return self.waiting[0].what if self.waiting else ""

    async def begin(self, work: Coroutine[Any, Any, Any]) -> None:
        """Starts it and waits for its first halt."""
        ACTING.set(self)
        self.task = asyncio.create_task(work, name=self.name)
        self.task.add_done_callback(lambda _: self._changed.set())
        await self._quiet()

    async def go_on(self, fate: Fate = Fate.GOES_WELL) -> None:
        """Releases it once and waits for its next halt, or its end."""
        here = self.waiting.popleft()
        self.last = here.what
        self.closing = here.what.startswith("DELETE open/") or (
            self.closing and here.what.startswith(("GET ledger/", "PUT open/", "sleep"))
        )
        self.stage.steps += 1
        self.stage.seconds = max(self.stage.seconds, here.due_seconds)
        here.release.set_result(fate)
        await self._quiet()

    async def stop(self) -> None:
        """Cancels it, as Prefect does at the end of a run, and waits for its next halt, or its end."""
        assert self.task is not None
        self.task.cancel()
        for _ in range(5):  # a pause is a task of its own, which hears of it a moment later
            await asyncio.sleep(0)
        self.waiting = deque(halt for halt in self.waiting if not halt.release.done())
        await self._quiet()

    async def loses_its_paid_call(self) -> None:
        """Its payment thread is gone, with all that it was about to do. The run waits for it, and does nothing else."""
        self.waiting.clear()
        await self._quiet()

    async def _quiet(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.done and (self._flying or not self.waiting):
                self._changed.clear()
                await self._changed.wait()


class StagedStore(ObjectStore):
    """A machine's way to MinIO: every request of whoever acts halts first."""

    def __init__(self, archive: VideoArchive) -> None:
        super().__init__(archive.connection(), archive.bucket)
        self._turns = asyncio.Semaphore(10_000)  # who is killed keeps his

    def move_to(self, bucket: str) -> None:
        """Works in another bucket from now on."""
        self.bucket, self._small = bucket, self._connection.small(bucket)
        self._uploads = Uploads(self._connection, bucket, self._minio)

    async def create_file(self, name: str, path: Path, **how: Any) -> bool:
        SENDING.set(await asyncio.to_thread(path.read_bytes))
        return await super().create_file(name, path, **how)

    async def replace_file(self, name: str, path: Path, **how: Any) -> None:
        SENDING.set(await asyncio.to_thread(path.read_bytes))
        await super().replace_file(name, path, **how)

    async def listed(self, prefix: str) -> list[ListedObject]:
        """MinIO's own times are those of the machine, not of the play."""
        actor = ACTING.get()
        return [replace(item, modified=actor.stage.modified[item.name]) for item in await super().listed(prefix)]

    async def _put(
        self, name: str, data: bytes, content_type: str, mode: "PutMode", attributes: Attributes | None = None
    ) -> str:
        SENDING.set(data)
        return await super()._put(name, data, content_type, mode, attributes)

    async def _call(self, method: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        actor = ACTING.get()
        fate = await actor.halt(f"{method} {name}")
        if fate is Fate.REQUEST_LOST or actor.stage.seconds < actor.stage.away_until_seconds:
            raise StoreUnavailableError("The request was lost on its way.", object_name=name)
        actor.flies(+1)
        try:
            made = await call()
        finally:
            actor.flies(-1)
        if method in ("PUT", "DELETE"):
            actor.stage.modified[name] = actor.stage.now()
            actor.stage.written(name, SENDING.get() if method == "PUT" else None, actor)
        if fate is Fate.REPLY_LOST:
            raise StoreUnavailableError("The reply was lost on its way.", object_name=name)
        return made


async def close(stage: Stage, actors: list[Actor]) -> None:
    """Ends the play: whoever is still there sees its next step fail, without having reached anything."""
    stage.closing = True
    tasks = [task for actor in actors for task in (actor.task, *actor.paid_calls) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
