"""The clients that are compared: `python -m tests.bench.clients`, with the job as JSON on standard input.

Each runs in its own process, so that no server is measured with it. From the provider's view, all do the same: submit N
requests, poll until they are done, fetch each video. Then they store it.
"""

import asyncio
import functools
import io
import sys
import time
from collections import Counter
from inspect import isawaitable
from typing import Any
from uuid import UUID, uuid4

import httpx
from aiolimiter import AsyncLimiter
from minio import Minio
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events.clients import EventsClient
from prefect.events.schemas.events import Event
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run

from apixo import VideoRequest
from blocks import VideoArchive
from flows.batch.summary import BatchFailedError, BatchSummary
from flows.generate_batch import generate_batch
from flows.record.ledger import Ledger
from flows.resources import load_block
from tests.attack.thousand import count_calls
from tests.bench.jobs import EVENTS, ClientResult, Job, Stopwatch
from tests.support.memory import forget_peak, peak_kib

MODEL = "sora-2"
STEPS = 5


async def ours(job: Job) -> ClientResult:
    """One batch with default settings, except for the submission rate and the waits."""
    calls, _ = count_calls()
    flow_run_ids: list[str] = []
    watch = Stopwatch()
    try:
        run: Any = generate_batch  # its type lacks `return_state`
        state = await run(
            calendar=str(job.calendar),
            submissions_per_second=job.submissions_per_second,
            api=job.blocks,
            archive=job.blocks,
            return_state=True,
        )
        flow_run_ids.append(str(state.state_details.flow_run_id))
        summary = await state.result(raise_on_failure=True)
    except BatchFailedError as error:
        summary = error.summary
    client_result = watch.stop(peak_mib=peak_kib() / 1024, store_calls=calls)
    assert isinstance(summary, BatchSummary)
    store = (await load_block(VideoArchive, job.blocks)).store()
    try:
        found = await Ledger(store).read_all([row.key for row in summary.rows])
    finally:
        await store.aclose()
    archived = {
        item.task_id or "": item.archived_at.timestamp() for item in found.values() if item.archived_at is not None
    }
    problems = [row.problem for row in summary.rows if row.problem][:3]
    return client_result.model_copy(
        update={
            "archived_at": archived,
            "flow_run_ids": flow_run_ids,
            "task_runs": STEPS * job.videos,
            "problems": problems,
        }
    )


@task(cache_policy=NO_CACHE, persist_result=False, retries=5)
async def nothing(number: int) -> int:
    """An empty step."""
    return number


@flow(name="bench-floor", persist_result=False)
async def empty_steps(videos: int) -> str:
    """What Prefect alone takes: five empty tasks per video, all videos at once."""

    async def one(number: int) -> None:
        for _ in range(STEPS):
            await nothing(number)

    await asyncio.gather(*(one(number) for number in range(videos)))
    return str(flow_run.id)


async def floor(job: Job) -> ClientResult:
    """Prefect's share of the work, and nothing else."""
    watch = Stopwatch()
    run_id = await empty_steps(job.videos)
    client_result = watch.stop(peak_mib=peak_kib() / 1024)
    return client_result.model_copy(update={"flow_run_ids": [run_id], "task_runs": STEPS * job.videos})


class Provider:
    """The three calls to the provider, without error handling."""

    def __init__(self, job: Job, client: httpx.AsyncClient) -> None:
        self._job, self._client = job, client
        self._headers = {"Authorization": f"Bearer {job.api_key}"}

    async def submit(self) -> str:
        body = VideoRequest(prompt=f"Dunes {uuid4()}").body()
        url = f"{self._job.base_url}/api/v1/generateTask/{MODEL}"
        reply = await self._client.post(url, json=body, headers=self._headers)
        return str(reply.raise_for_status().json()["data"]["taskId"])

    async def result_url(self, task_id: str) -> str | None:
        url = f"{self._job.base_url}/api/v1/statusTask/{MODEL}"
        reply = await self._client.get(url, params={"taskId": task_id}, headers=self._headers)
        data = reply.raise_for_status().json()["data"]
        if data["state"] == "failed":
            raise RuntimeError(data)
        found = httpx.Response(200, content=data.get("resultJson", "{}")).json().get("resultUrls")
        return str(found[0]) if found else None

    async def download(self, url: str) -> bytes:
        return (await self._client.get(url)).raise_for_status().content


def _store(job: Job) -> Minio:
    return Minio(job.endpoint, job.access_key, job.secret_key, secure=False, region="us-east-1")


def _put(job: Job, store: Minio, task_id: str, video: bytes) -> float:
    store.put_object(job.bucket, f"bare/{task_id}.mp4", io.BytesIO(video), len(video), "video/mp4")
    return time.time()


async def bare(job: Job) -> ClientResult:
    """No checks and no records: any error loses a video that is paid for."""
    archived: dict[str, float] = {}
    calls = Counter[str]()
    watch = Stopwatch()
    store = _store(job)
    ramp = AsyncLimiter(1, 1 / job.submissions_per_second)
    files = asyncio.Semaphore(8)
    async with httpx.AsyncClient(timeout=120) as client:
        provider = Provider(job, client)

        async def one() -> None:
            await ramp.acquire()
            task_id = await provider.submit()
            await asyncio.sleep(job.initial_wait_seconds)
            while (url := await provider.result_url(task_id)) is None:
                await asyncio.sleep(job.poll_interval_seconds)
            async with files:
                video = await provider.download(url)
                archived[task_id] = await asyncio.to_thread(_put, job, store, task_id, video)
            calls["PUT video.mp4"] += 1

        await asyncio.gather(*(one() for _ in range(job.videos)))
    return watch.stop(peak_mib=peak_kib() / 1024, store_calls=calls).model_copy(update={"archived_at": archived})


class Plain:
    """The job of this process. It is not a task parameter, because Prefect would store the keys in it."""

    job: Job


@task(name="submit")
async def submit_task() -> str:
    """Submits a request, as many people would write it."""
    async with httpx.AsyncClient(timeout=120) as client:
        return await Provider(Plain.job, client).submit()


@task(name="poll")
async def poll_task(task_id: str) -> str | None:
    """Polls once."""
    async with httpx.AsyncClient(timeout=120) as client:
        return await Provider(Plain.job, client).result_url(task_id)


@task(name="archive")
async def archive_task(task_id: str, url: str) -> float:
    """Downloads and uploads the video."""
    async with httpx.AsyncClient(timeout=120) as client:
        video = await Provider(Plain.job, client).download(url)
    return await asyncio.to_thread(_put, Plain.job, _store(Plain.job), task_id, video)


@flow(name="bench-naive")
async def naive_video() -> tuple[str, float, str, int]:
    """Generates one video, with a task run for each poll."""
    task_id = await submit_task()
    await asyncio.sleep(Plain.job.initial_wait_seconds)
    task_runs = 3
    while (url := await poll_task(task_id)) is None:
        task_runs += 1
        await asyncio.sleep(Plain.job.poll_interval_seconds)
    return task_id, await archive_task(task_id, url), str(flow_run.id), task_runs


async def one_naive(job: Job) -> ClientResult:
    """Runs the flow for one video in this process."""
    Plain.job, watch = job, Stopwatch()
    task_id, archived_at, run_id, task_runs = await naive_video()
    client_result = watch.stop(peak_mib=peak_kib() / 1024)
    return client_result.model_copy(
        update={"archived_at": {task_id: archived_at}, "flow_run_ids": [run_id], "task_runs": task_runs}
    )


async def naive(job: Job) -> ClientResult:
    """Starts a process for each video, all at once."""
    watch = Stopwatch()

    async def one(number: int) -> ClientResult:
        own_job = job.model_copy(update={"videos": 1, "report": job.report.with_suffix(f".{number}.json")})
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.clients", stdin=asyncio.subprocess.PIPE
        )
        await process.communicate(own_job.model_dump_json().encode())
        return ClientResult.model_validate_json(await asyncio.to_thread(own_job.report.read_text))

    client_results = await asyncio.gather(*(one(number) for number in range(job.videos)))
    client_result = watch.stop(
        peak_mib=sum(each.peak_mib for each in client_results), store_calls={"PUT video.mp4": job.videos}
    )
    return client_result.model_copy(
        update={
            "archived_at": {task_id: at for each in client_results for task_id, at in each.archived_at.items()},
            "flow_run_ids": [run_id for each in client_results for run_id in each.flow_run_ids],
            "task_runs": sum(each.task_runs for each in client_results),
            "events": sum(each.events for each in client_results),
        }
    )


def count_events() -> set[UUID]:
    """From now on, collects the ids of the events that are sent."""
    sent, emit = set[UUID](), EventsClient.emit

    @functools.wraps(emit)
    async def counted(client: EventsClient, event: Event) -> None:
        if event.event.startswith(EVENTS):
            sent.add(event.id)
        await emit(client, event)

    setattr(EventsClient, emit.__name__, counted)
    return sent


async def drain_events() -> None:
    """Waits until Prefect's thread has sent all events, as Prefect does at exit."""
    draining = EventsWorker.drain_all()
    if isawaitable(draining):
        await draining


async def run(job: Job) -> None:
    """Runs the job, and writes its result."""
    sent = count_events()
    forget_peak()
    client = {"ours": ours, "floor": floor, "bare": bare, "naive": naive}[job.kind]
    if job.kind == "naive" and job.report.stem.rpartition(".")[2].isdigit():
        client = one_naive
    client_result = await client(job)
    if not client_result.events:
        await drain_events()
        client_result.events = len(sent)
    await asyncio.to_thread(job.report.write_text, client_result.model_dump_json())


if __name__ == "__main__":
    asyncio.run(run(Job.model_validate_json(sys.stdin.read())))
