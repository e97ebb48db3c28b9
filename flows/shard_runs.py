"""Generates a batch with several flow runs on the work pool, and combines their results in one summary.

The ledger alone decides what is paid. This module only decides which run processes which rows: shares are in the
bucket, each run of a share has an idempotency key, and a share is done once its summary is next to it.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed
from pydantic import TypeAdapter

from blocks.object_store import ObjectStore
from blocks.store_errors import PreconditionFailedError, StoreError
from flows.batch.budget import Budget
from flows.batch.shares import FOLDER, Share, deal
from flows.batch.summary import BatchRow, BatchSummary
from flows.batch_run import Batch
from flows.clock import Clock
from flows.media.media_errors import is_retryable_status
from flows.permission import sent_back_by
from flows.record.pipeline_errors import PipelineError
from flows.resources import Resources
from flows.signals.progress import run_logger
from flows.wording import counted

DEPLOYMENT: Final = "generate-shard/generate-shard"
MOST_ATTEMPTS: Final = 3
"""How often a share is started in one run of its batch. A problem that kills three runs will kill a fourth."""
DEAD_SECONDS: Final = 90.0
"""How long a running shard may be without a heartbeat. Prefect does not notice that a machine is gone."""
PENDING_SECONDS: Final = 900.0
"""How long a worker may take to start a shard: pulling a container image takes minutes."""
CHECK_SECONDS: Final = 2.0
UNFINISHED: Final = [StateType(name) for name in ("SCHEDULED", "PENDING", "RUNNING", "PAUSED", "CANCELLING")]
_SHARES: Final = TypeAdapter(list[Share])
AWAY: Final = (StoreError, httpx.HTTPError)
"""Errors of a check while the store or Prefect is down. The check is repeated."""


@dataclass
class _Shard:
    share: Share
    attempt: int = 0
    run: FlowRun | None = None
    summary: BatchSummary | None = None
    ended: bool = False
    seen: list[str] = field(default_factory=list)


async def run_in_shards(
    batch: Batch,
    shards: int,
    *,
    max_in_flight: int,
    submissions_per_second: float,
    resources: Resources,
    api: str,
    archive: str,
) -> BatchSummary:
    """Divides the due rows of a batch among this many runs of `generate-shard`, waits for them, and sums them up.

    A rerun of this flow run continues with the same shard runs, unless a user restarted it after its end: then it
    starts new ones, once the earlier ones have ended.

    Raises:
        PipelineError: `generate-shard` is not deployed. Nothing was submitted.
        SoraError: the store does not answer, or the balance is too low. If no shard was started, nothing was submitted.
    """
    run_id = str(flow_run.id)
    async with get_client() as client:
        await _require_deployment(client)
        grant = sent_back_by(await client.read_flow_run_states(UUID(run_id)))
        folder = f"{FOLDER}{grant.id if grant else run_id}/"
        await _wait_for_earlier(client, run_id, folder, resources.clock, timeout_seconds=resources.api.deadline_seconds)
        await batch.check_balance()
        shards = max(min(shards, len(batch.due), max_in_flight), 1)
        parts, unaffordable = deal(
            batch.priced(), shards, max_spend=batch.budget.max_spend, spent_before=batch.budget.spent_before
        )
        shares = [
            Share(
                key=batch.key,
                folder=folder,
                number=number,
                of=shards,
                parent_run_id=run_id,
                rows=rows,
                waits=batch.terms.waits,
                refuse_duplicates=batch.terms.refuse_duplicates,
                max_in_flight=max_in_flight // shards + (number <= max_in_flight % shards),
                submissions_per_second=submissions_per_second / shards,
                max_spend=max_spend,
            )
            for number, (rows, max_spend) in enumerate(parts, 1)
            if rows
        ]
        shares = await _stored_shares(resources.store, folder, shares)
        ended = await _Runs(client, shares, resources.store, resources.clock, api=api, archive=archive).until_ended()
    summary = _merge(await batch.reload(), ended, {row.item.key(batch.key) for row in unaffordable}, batch.budget)
    try:
        for name in await resources.store.names(folder):
            await resources.store.remove(name)
    except StoreError as error:  # the batch has ended all the same
        run_logger().warning("%s in the bucket could not be removed: %s", folder, error)
    return summary


def _merge(after: Batch, ended: Sequence[_Shard], unaffordable: Set[str], before: Budget) -> BatchSummary:
    """One summary of all rows: as reported by their shards, or else as the ledger has them now."""
    summaries = [shard.summary for shard in ended if shard.summary is not None]
    reported = {row.key: row for summary in summaries for row in summary.rows}
    of = {row.item.key(after.key): shard for shard in ended for row in shard.share.rows}
    rows: list[BatchRow] = []
    for row in after.due:
        key = row.item.key(after.key)
        if key in reported:
            rows.append(reported[key])
            continue
        if key in unaffordable:
            why = f"was not submitted: max_spend is {before.max_spend} and does not cover it. Raise it and"
        elif key in of:
            runs = ", ".join(of[key].seen) or "it never ran"
            why = f"its shard {of[key].share.number} ended without a summary ({runs}). See its log, and"
        else:
            why = "is new in the calendar:"
        rows.append(after.as_recorded(row, f"{key}: {why} run the batch again: it generates what is missing."))
    # Only the first: all shards report the same reason.
    summary = after.summary_of(rows, blocked=next((item.blocked for item in summaries if item.blocked), None))
    if before.counts:
        summary.price, summary.spent_before = after.budget.spent_before - before.spent_before, before.spent_before
    return summary


async def _require_deployment(client: PrefectClient) -> None:
    try:
        await client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound as error:
        raise PipelineError(
            f"Shards need the deployment {DEPLOYMENT}, and there is none: run `sora deploy`, or leave shards at 1. "
            "Nothing was submitted."
        ) from error


async def _stored_shares(store: ObjectStore, folder: str, shares: list[Share]) -> list[Share]:
    """The shares of this run of the batch. A rerun uses those of the first try, even if the calendar has changed: a row
    that moved would otherwise be in two shares, and count toward the limits of both."""
    name = f"{folder}shares"
    try:
        await store.put_if(name, _SHARES.dump_json(shares), etag=None, content_type="application/json")
    except PreconditionFailedError:
        if (stored := await store.get(name)) is not None:
            return _SHARES.validate_json(stored.data)
    return shares


async def _wait_for_earlier(
    client: PrefectClient, run_id: str, folder: str, clock: Clock, *, timeout_seconds: float
) -> None:
    """Waits for shards that an earlier try of this run left in progress: both together could exceed the limits."""
    wanted = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[UUID(run_id)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)),
    )
    ends, reported = clock.monotonic() + timeout_seconds, False
    while True:
        found = await client.read_flow_runs(flow_run_filter=wanted)
        others = [run for run in found if not str(run.parameters.get("share", "")).startswith(folder)]
        if not others:
            return
        if clock.monotonic() >= ends:
            run_logger().warning(
                "%s of an earlier try did not end within %.0f s. Both tries together may exceed the limits.",
                counted(len(others), "shard"), timeout_seconds,
            )  # fmt: skip
            return
        if not reported:
            run_logger().info("Waiting for %s of an earlier try to end.", counted(len(others), "shard"))
            reported = True
        await clock.sleep(CHECK_SECONDS)


class _Runs:
    """Starts the runs of the shards and watches them."""

    def __init__(
        self,
        client: PrefectClient,
        shares: Sequence[Share],
        store: ObjectStore,
        clock: Clock,
        *,
        api: str,
        archive: str,
    ) -> None:
        self._client, self._store, self._clock = client, store, clock
        self._blocks = {"api": api, "archive": archive}
        self._shards = [_Shard(share) for share in shares]
        self._reported = ""

    async def until_ended(self) -> list[_Shard]:
        """Starts every shard, restarts dead ones, and returns when none is in progress."""
        for shard in self._shards:
            data = shard.share.model_dump_json().encode()
            await self._store.put(shard.share.name, data, content_type="application/json")
        while waiting := [shard for shard in self._shards if not shard.ended]:
            try:
                await self._check(waiting)
            except AWAY as error:
                if isinstance(error, httpx.HTTPStatusError) and not is_retryable_status(error.response.status_code):
                    raise
                run_logger().warning("The shards cannot be checked right now: %s", error)
            await self._clock.sleep(max(CHECK_SECONDS, len(self._shards) / 10))
        return self._shards

    async def _check(self, waiting: Sequence[_Shard]) -> None:
        for shard in waiting:
            if shard.run is None:
                await self._start(shard)
        folder = waiting[0].share.folder
        ids = [shard.run.id for shard in waiting if shard.run is not None]
        found = await self._client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids)))
        runs = {run.id: run for run in found}
        # Listed after the runs were read: a run that has ended has already written its summary, if it has one.
        await self._store.put(f"{folder}now", b"")  # its timestamp is the store's time: clocks of machines differ
        stamps = {item.name: item.modified for item in await self._store.listed(folder)}
        for shard in waiting:
            await self._update(shard, runs, stamps)
        self._log_states(runs.values(), waiting)

    async def _update(self, shard: _Shard, runs: Mapping[UUID, FlowRun], stamps: Mapping[str, datetime]) -> None:
        share, known = shard.share, shard.run
        if share.summary_name in stamps and (stored := await self._store.get(share.summary_name)) is not None:
            shard.summary, shard.ended = BatchSummary.model_validate_json(stored.data), True
            return
        run = runs.get(known.id) if known is not None else None
        if run is None or run.state is None:
            died = "its run was deleted"
        elif run.state.is_cancelled():
            shard.seen.append(f"{run.name} was cancelled")
            shard.ended = True
            return
        elif run.state.is_final():
            died = f"{run.name}: {run.state.name}"
        elif self._is_silent(shard, run, run.state, stamps):
            # If no worker is left to stop a run that is being cancelled, it stays in that state.
            end = Cancelled if run.state.is_cancelling() else Crashed
            await self._client.set_flow_run_state(run.id, end(message="It gives no sign of life."), force=True)
            if end is Cancelled:
                return  # the next check sees it
            died = f"{run.name} was silent"
        else:
            return
        shard.seen.append(died)
        shard.run, shard.ended = None, shard.attempt >= MOST_ATTEMPTS
        log = run_logger().error if shard.ended else run_logger().warning
        log(
            "Shard %d has died (%s). %s", share.number, died,
            "Not retried again." if shard.ended else "Starting a new run for its share.",
        )  # fmt: skip

    def _is_silent(self, shard: _Shard, run: FlowRun, state: State, stamps: Mapping[str, datetime]) -> bool:
        share = shard.share
        now, beat = stamps.get(f"{share.folder}now"), stamps.get(share.beat_name(shard.attempt))
        if state.is_pending():  # by the server's clock, which is accurate enough here and below
            return self._clock.now() - state.timestamp > timedelta(seconds=PENDING_SECONDS)
        if not (state.is_running() or state.is_cancelling()):
            return False
        if beat is None:  # it reads the ledger before its first heartbeat
            began = state.timestamp if state.is_cancelling() else run.start_time
            return began is not None and self._clock.now() - began > timedelta(seconds=3 * DEAD_SECONDS)
        return now is not None and now - beat > timedelta(seconds=DEAD_SECONDS)

    async def _start(self, shard: _Shard) -> None:
        attempt = shard.attempt + 1
        shard.run = await arun_deployment(
            DEPLOYMENT,
            parameters={"share": shard.share.name, "attempt": attempt, **self._blocks},
            idempotency_key=f"{shard.share.name}:{attempt}",  # after an error the run may exist: the same key finds it
            timeout=0,
        )
        shard.attempt = attempt

    def _log_states(self, runs: Iterable[FlowRun], waiting: Sequence[_Shard]) -> None:
        names = sorted(run.state.name or "" for run in runs if run.state is not None)
        reported = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        done = len(self._shards) - sum(not shard.ended for shard in waiting)
        reported = f"{done} of {len(self._shards)} shards have ended; {reported}"
        if reported != self._reported:
            run_logger().info("%s.", reported)
            self._reported = reported
