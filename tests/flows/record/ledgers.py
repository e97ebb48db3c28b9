"""Ledgers for tests, and the records that they start with."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from blocks import VideoArchive
from blocks.probe import ensure_ready
from flows.clock import Clock
from flows.record.generation import Generation, Owner
from flows.record.ledger import RETRY_TIMEOUT_SECONDS, Entry, Ledger
from tests.support.store_line import Line

from .changes import claimed


def claim_of(key: str, *, over: Generation | None = None, pid: int = 1) -> Generation:
    return claimed(over, key=key, owner=Owner(host="here", pid=pid))


def warn(text: str) -> Callable[[Generation], Generation]:
    return lambda now: now.model_copy(update={"warnings": (*now.warnings, text)})


class SleepingClock(Clock):
    """A clock that advances only during sleeps."""

    def __init__(self) -> None:
        super().__init__(sleep=self._sleep, monotonic=lambda: self.seconds)
        self.seconds = 1000.0
        self.pauses: list[float] = []

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.seconds += seconds


@asynccontextmanager
async def open_ledger(
    archive: VideoArchive,
    line: Line | None = None,
    clock: Clock | None = None,
    *,
    retry_timeout_seconds: float = RETRY_TIMEOUT_SECONDS,
) -> AsyncIterator[Ledger]:
    store = (line or Line()).store(archive)
    try:
        await ensure_ready(store)
        yield Ledger(store, retry_timeout_seconds=retry_timeout_seconds, clock=clock)
    finally:
        await store.aclose()


async def must_claim(ledger: Ledger, key: str) -> Entry:
    entry = await ledger.claim(claim_of(key), over=None)
    assert entry is not None
    return entry


async def current_generation(ledger: Ledger, key: str) -> Generation:
    return (await ledger.existing(key)).generation


def same(one: Entry | None, other: Entry | None) -> bool:
    """Whether both are the same version of a record."""
    return (one and (one.generation, one.etag)) == (other and (other.generation, other.etag))
