"""The job of a client process in the benchmark, and the result that it reports."""

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

Kind = Literal["ours", "floor", "bare", "naive"]
"""`ours`: one batch. `floor`: a flow that runs five empty tasks for each video. `bare`: asyncio, httpx and minio-py,
without Prefect and records. `naive`: for each video a flow run in its own process, with a task run for each poll."""


EVENTS = ("prefect.task-run.", "sora.")
"""The prefixes of the events that are counted in the client and in the server."""


class Job(BaseModel):
    """One run of one client.

    Attributes:
        kind: which client.
        videos: how many are generated at once.
        blocks: the name under which the blocks are stored; for `ours`.
        calendar: the rows; for `ours`.
        base_url, api_key, initial_wait_seconds, poll_interval_seconds: the provider, for clients without blocks.
        endpoint, access_key, secret_key, bucket: the store, for clients without blocks.
        submissions_per_second: how fast all clients except `floor` submit.
        report: the file to which the client writes its `ClientResult`.
    """

    kind: Kind
    videos: int
    blocks: str
    calendar: Path
    base_url: str
    api_key: str
    initial_wait_seconds: float
    poll_interval_seconds: float
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    submissions_per_second: float
    report: Path


class ClientResult(BaseModel):
    """What one run took, measured in the client's own process or processes.

    Attributes:
        start_processor_seconds: until the client was imported. Not part of `processor_seconds`.
        processor_seconds, wall_seconds: from the start of the work to its end.
        peak_mib: peak memory of the process; for several processes, the sum of their peaks.
        archived_at: when each task's video was archived, in Unix seconds, by task id.
        flow_run_ids: the flow runs.
        task_runs: how many task runs they have.
        store_calls: calls to the store by kind, during the work only.
        problems: the errors of the first videos that failed.
        events: how many events about task runs and videos were sent to Prefect's server.
    """

    start_processor_seconds: float = 0
    processor_seconds: float
    wall_seconds: float
    peak_mib: float
    archived_at: dict[str, float] = {}
    flow_run_ids: list[str] = []
    task_runs: int = 0
    store_calls: dict[str, int] = {}
    problems: list[str] = []
    events: int = 0


class Stopwatch:
    """Measures elapsed and processor time from its creation, including child processes that have ended."""

    def __init__(self) -> None:
        self._began, self._used = time.monotonic(), _processor_seconds()
        self.start_processor_seconds = self._used

    def stop(self, *, peak_mib: float, store_calls: Mapping[str, int] | None = None) -> ClientResult:
        """The result, with the time used so far."""
        return ClientResult(
            start_processor_seconds=self.start_processor_seconds,
            processor_seconds=_processor_seconds() - self._used,
            wall_seconds=time.monotonic() - self._began,
            peak_mib=peak_mib,
            store_calls=dict(store_calls or {}),
        )


def _processor_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
