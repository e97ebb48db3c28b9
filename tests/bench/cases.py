"""One run of one client in one environment, and the medians of several."""

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Self

import httpx
from pydantic import BaseModel

from tests.bench.environment import ROOT, Environment, Server, processor_seconds
from tests.bench.jobs import EVENTS, ClientResult, Job, Kind
from tests.support import unique

UI_SECONDS: Final = 180.0
"""The maximum wait for the Prefect UI to show the right counts, and then for the last events."""


class Case(BaseModel, frozen=True):
    """What is measured.

    Attributes:
        kind: which client.
        videos: how many are generated at once.
        video: the video that the provider serves, by its name in the results.
        mode: whether the client polls, or the provider sends callbacks. Only `ours` supports callbacks.
        speed: how many times faster than real time the sandbox is.
        initial_wait_seconds, poll_interval_seconds: for all clients that poll.
        submissions_per_second: for all clients that submit.
        server: which Prefect server.
    """

    kind: Kind
    videos: int
    video: str = "tiny"
    mode: Literal["poll", "callback"] = "poll"
    speed: float = 600
    initial_wait_seconds: float = 0.3
    poll_interval_seconds: float = 1
    submissions_per_second: float = 100
    server: Server = "sqlite"


class Measurement(BaseModel):
    """What one run took, or the medians of several. Processor times and numbers of requests are per video.

    Attributes:
        client_ms, prefect_ms, database_ms, redis_ms, store_ms, receiver_ms: processor time, user and system together.
        start_ms: processor time of the client process before the work begins, once. Not part of `client_ms`.
        wall_seconds: from the start of the flow to its end.
        over_ideal: `wall_seconds` divided by the time from the first submission to the end of the last task at the
            provider.
        peak_mib: peak memory of the client.
        store_requests, provider_requests, status_requests: how many.
        lag_p50, lag_p95, lag_p99: seconds from the end of the task at the provider to the archived video.
        asked_p50, asked_p95, fetched_p50, fetched_p95: in callback mode, seconds from the end of the task at the
            provider to the receiver's poll, and to the run's download after the receiver's event has woken it.
        archived: how many videos are archived.
        ui_seconds: seconds from the end until the UI shows all task runs as completed; None: not within three minutes.
        events: how many events about task runs and videos the client sent.
        events_lost: how many of them the server never recorded.
        store_calls: the requests to the store by kind, for all videos together.
        problems: the errors of the first videos that failed.
    """

    client_ms: float
    prefect_ms: float
    database_ms: float = 0
    redis_ms: float = 0
    store_ms: float
    receiver_ms: float
    start_ms: float
    wall_seconds: float
    over_ideal: float | None
    peak_mib: float
    store_requests: float
    provider_requests: float
    status_requests: float
    lag_p50: float | None
    lag_p95: float | None
    lag_p99: float | None
    asked_p50: float | None = None
    asked_p95: float | None = None
    fetched_p50: float | None = None
    fetched_p95: float | None = None
    archived: int
    ui_seconds: float | None
    events: int = 0
    events_lost: int = 0
    store_calls: dict[str, int] = {}
    problems: list[str] = []

    @classmethod
    def median(cls, runs: Sequence[Self]) -> Self:
        """The median of each number."""
        medians = runs[0].model_dump()
        for name, value in medians.items():
            found = [number for run in runs if isinstance(number := getattr(run, name), int | float)]
            if isinstance(value, int | float) and found:
                medians[name] = statistics.median_low(found) if isinstance(value, int) else statistics.median(found)
        return cls.model_validate(medians)


async def measure(case: Case, environment: Environment, video: Path) -> Measurement:
    """Runs the client once. All servers are new, except the store and Prefect's."""
    waits = {
        "initial_wait_seconds": case.initial_wait_seconds,
        "poll_interval_seconds": case.poll_interval_seconds,
        "deadline_seconds": 1800,
    }
    with ExitStack() as stack:
        sandbox = await asyncio.to_thread(
            lambda: stack.enter_context(environment.sandbox(speed=case.speed, video=video))
        )
        stored = await environment.blocks(sandbox, callbacks=case.mode == "callback", **waits)
        receiver = None
        if case.mode == "callback":
            receiver = await asyncio.to_thread(lambda: stack.enter_context(environment.receiver(stored)))
        name = unique("bench")
        calendar = environment.folder / f"{name}.csv"
        rows = (f"{number:04},Dunes at dawn {name} take {number}\n" for number in range(case.videos))
        calendar.write_text("id,prompt\n" + "".join(rows))
        job = Job(
            kind=case.kind,
            videos=case.videos,
            blocks=stored.name,
            calendar=calendar,
            base_url=sandbox.url,
            api_key=sandbox.api_key,
            initial_wait_seconds=case.initial_wait_seconds,
            poll_interval_seconds=case.poll_interval_seconds,
            endpoint=environment.minio.endpoint,
            access_key=environment.minio.access_key,
            secret_key=environment.minio.secret_key,
            bucket=stored.archive.bucket,
            submissions_per_second=case.submissions_per_second,
            report=environment.folder / f"{name}.json",
        )
        prefect, store, receivers = environment.prefect, environment.minio.process, [receiver] if receiver else []
        servers = [prefect.prefect, prefect.database, prefect.redis, [store], receivers]
        before, began = [processor_seconds(server) for server in servers], datetime.now(UTC)
        client_result = await _run(job, environment)
        ui_seconds = await _until_ui_is_right(client_result, environment) if client_result.flow_run_ids else None
        recorded = await _recorded_events(client_result, environment, began) if client_result.events else 0
        used = [processor_seconds(server) - was for server, was in zip(servers, before, strict=True)]
        is_floor = case.kind == "floor"
        requests = {} if is_floor else sandbox.requests()
        ideal = None if is_floor else sandbox.longest_seconds()
        completion_times = {} if is_floor else sandbox.completed_at()
        first_requests = [{} if receiver is None else sandbox.first_at(call) for call in ("status", "result")]
    lags = sorted(
        at - completion_times[task_id]
        for task_id, at in client_result.archived_at.items()
        if task_id in completion_times
    )
    requested, fetched = (
        sorted(at - completion_times[task_id] for task_id, at in times.items() if task_id in completion_times)
        for times in first_requests
    )

    def each(total: float) -> float:
        return total / case.videos

    return Measurement(
        client_ms=each(client_result.processor_seconds) * 1000,
        prefect_ms=each(used[0]) * 1000,
        database_ms=each(used[1]) * 1000,
        redis_ms=each(used[2]) * 1000,
        store_ms=each(used[3]) * 1000,
        receiver_ms=each(used[4]) * 1000,
        start_ms=client_result.start_processor_seconds * 1000,
        wall_seconds=client_result.wall_seconds,
        over_ideal=client_result.wall_seconds / ideal if ideal else None,
        peak_mib=client_result.peak_mib,
        store_requests=each(sum(client_result.store_calls.values())),
        provider_requests=each(sum(requests.values())),
        status_requests=each(requests.get("status", 0)),
        lag_p50=_percentile(lags, 50),
        lag_p95=_percentile(lags, 95),
        lag_p99=_percentile(lags, 99),
        asked_p50=_percentile(requested, 50),
        asked_p95=_percentile(requested, 95),
        fetched_p50=_percentile(fetched, 50),
        fetched_p95=_percentile(fetched, 95),
        archived=len(client_result.archived_at),
        ui_seconds=ui_seconds,
        events=client_result.events,
        events_lost=client_result.events - recorded,
        store_calls=client_result.store_calls,
        problems=client_result.problems,
    )


async def _run(job: Job, environment: Environment) -> ClientResult:
    log = environment.folder / "client.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.clients",
            cwd=ROOT, env=environment.environment, stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
        )  # fmt: skip
        await process.communicate(job.model_dump_json().encode())
    if process.returncode or not job.report.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"The client ended with {process.returncode}:\n{tail}")
    return ClientResult.model_validate_json(job.report.read_text())


async def _until_ui_is_right(client_result: ClientResult, environment: Environment) -> float | None:
    """Seconds until the UI is right, which shows what its server has recorded from the client's events."""
    began = time.monotonic()
    body = {
        "flow_runs": {"id": {"any_": client_result.flow_run_ids}},
        "task_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    async with httpx.AsyncClient(timeout=60) as client:
        while time.monotonic() - began < UI_SECONDS:
            reply = await client.post(f"{environment.prefect.api_url}/task_runs/count", json=body)
            if reply.status_code == 200 and reply.json() >= client_result.task_runs:
                return time.monotonic() - began
            await asyncio.sleep(0.5)
    return None


async def _recorded_events(client_result: ClientResult, environment: Environment, since: datetime) -> int:
    """How many of the client's events the server has recorded, once it has all or the time is up."""
    began, recorded = time.monotonic(), 0
    wanted = {"occurred": {"since": since.isoformat()}, "event": {"prefix": EVENTS}}
    async with httpx.AsyncClient(timeout=60) as client:
        while recorded < client_result.events and time.monotonic() - began < UI_SECONDS:
            reply = await client.post(
                f"{environment.prefect.api_url}/events/filter", json={"filter": wanted, "limit": 1}
            )
            recorded = reply.json()["total"] if reply.status_code == 200 else recorded
            await asyncio.sleep(0.5)
    return min(recorded, client_result.events)


def _percentile(ordered: Sequence[float], percent: int) -> float | None:
    return ordered[min(len(ordered) * percent // 100, len(ordered) - 1)] if ordered else None
