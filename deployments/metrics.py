"""An archive's metrics for Prometheus: open videos, unclear payments, spend, lag and bytes. Reads only, never writes.

The metrics come from the bucket, so one process covers all machines. Prefect's own metrics come from the workers: see
docs/operations.md.
"""

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import StoreError
from deployments.web_server import QuietServer, listen
from flows.record import object_names
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from flows.record.monthly_spend import MonthlySpend, month_of
from flows.record.pipeline_errors import LedgerError
from flows.resources import load_block

FRESH_SECONDS: Final = 15.0
"""How long metrics are cached, so that several scrapers cost the store no more than one."""
LAG_SAMPLE: Final = 50
"""The number of newest videos from which the lag is computed."""
OPEN_STATES: Final = (State.CLAIMED, State.SUBMITTED, State.SUCCEEDED, State.UNCONFIRMED)


class Metrics:
    """The metrics of one archive, as text for Prometheus."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._ledger = store, Ledger(store, retry_timeout_seconds=2)
        self._now, self._monotonic = now, monotonic
        self._lock = asyncio.Lock()
        self._text, self._until = b"", float("-inf")

    async def text(self) -> bytes:
        """All metrics.

        Raises:
            StoreError: the store did not answer.
            LedgerError: an open record, or the month's spend, cannot be read.
        """
        async with self._lock:
            if self._monotonic() >= self._until:
                self._text = await self._read()
                self._until = self._monotonic() + FRESH_SECONDS
            return self._text

    async def _read(self) -> bytes:
        now, ledger = self._now(), self._ledger
        opened = list((await ledger.read_all(await ledger.open_keys())).values())
        newest = await ledger.newest(LAG_SAMPLE)
        month = await ledger.spend.read(month_of(now.date())) or MonthlySpend()
        listed = await self._store.listed(f"{object_names.VIDEOS}{object_names.day(now)}/")
        day = [item for item in listed if item.name.endswith(".mp4")]

        registry = CollectorRegistry()
        gauge = functools.partial(Gauge, registry=registry)
        by_state = gauge("sora_open", "Unfinished videos, by state.", ["state"])
        counts = Counter(item.state for item in opened)
        for state in OPEN_STATES:
            by_state.labels(state.value).set(counts[state])
        ages = [(now - item.attempt.since).total_seconds() for item in opened]
        oldest = gauge("sora_open_oldest_seconds", "Time since the submission of the oldest open video.")
        oldest.set(max(ages, default=0))
        about = "Spending today and this month (UTC), at the block's prices. Only with a spending limit."
        spend = gauge("sora_spend", about, ["period", "kind"])
        for period, on in (("day", now.date()), ("month", None)):
            spend.labels(period, "spent").set(float(month.spent_in(on)))
            spend.labels(period, "unclear").set(float(month.unclear_in(on)))
            spend.labels(period, "reserved").set(float(month.reserved_in(on)))
        about = f"Time since the provider finished a video: the maximum of the newest {LAG_SAMPLE}."
        lag = gauge("sora_lag_seconds", about, ["until"])
        for until, lags in (("known", _lags(newest, "succeeded_at")), ("archived", _lags(newest, "archived_at"))):
            lag.labels(until).set(max(lags, default=0))
        gauge("sora_day_videos", "Archived video files of generations claimed on this day (UTC).").set(len(day))
        gauge("sora_day_bytes", "Bytes of those files.").set(sum(item.size_bytes for item in day))
        return generate_latest(registry)


def _lags(newest: list[Generation], until: str) -> list[float]:
    """Seconds from the provider's end of each video to our time `until`; at least 0, since its clock may be ahead."""
    lags: list[float] = []
    for item in newest:
        done, moment = item.provider_times_ms.get("completed"), getattr(item, until)
        if done is not None and moment is not None:
            lags.append(max(moment.timestamp() - done / 1000, 0.0))
    return lags


async def serve(host: str, port: int, *, archive: str, on_ready: Callable[[str], None]) -> None:
    """Runs the server until SIGTERM or Ctrl-C. Port 0 picks a free one; `on_ready` gets the URL once it listens.

    Raises:
        SetupError: the address is not available.
        PipelineError: the block is missing or cannot be used.
    """
    block = await load_block(VideoArchive, archive)
    listener, url = listen(host, port, "The server for metrics")
    with listener:
        await QuietServer(create_app(block.store()), on_started=lambda: on_ready(url)).serve([listener])


def create_app(store: ObjectStore) -> Starlette:
    """`GET /metrics` for one archive. The metrics contain no keys, prompts or URLs."""
    current = Metrics(store)

    async def metrics(_: Request) -> Response:
        try:
            return Response(await current.text(), media_type=CONTENT_TYPE_LATEST)
        except (StoreError, LedgerError):  # its message names keys and the store
            text = "The archive does not answer, or a record cannot be read. Run `sora list --open`.\n"
            return PlainTextResponse(text, HTTPStatus.SERVICE_UNAVAILABLE)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await store.aclose()

    return Starlette(routes=[Route("/metrics", metrics, methods=["GET"])], lifespan=lifespan)
