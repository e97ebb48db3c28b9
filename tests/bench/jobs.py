"""What a client process of the benchmark is told to do, and what it says of it."""

import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

Kind = Literal["ours", "floor", "bare", "naive"]
"""`ours`: one batch. `floor`: a flow that runs five empty tasks for each video. `bare`: asyncio, httpx and minio-py, no
Prefect, nothing kept. `naive`: a flow run in a process of its own for each video, a task run for each poll."""


EVENTS = ("prefect.task-run.", "sora.")
"""How the names of the events begin that are counted at both ends."""


class Job(BaseModel):
    """One run of one client.

    Attributes:
        kind: which client.
        videos: how many, all at once.
        blocks: under which name the blocks are stored; for `ours`.
        calendar: the rows; for `ours`.
        base_url, api_key, initial_wait_seconds, poll_interval_seconds: the provider; for the clients without blocks.
        endpoint, access_key, secret_key, bucket: the store; likewise.
        submissions_per_second: how fast all clients but the floor submit.
        report: where the client writes its `Taken`.
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


class Taken(BaseModel):
    """What one run took of the client's own process or processes.

    Attributes:
        start_processor_seconds: until the client was imported. Not part of the next.
        processor_seconds, wall_seconds: from the start of the work to its end.
        peak_mib: the most memory of the process; of several processes, their sum.
        archived_at: when each task's video was archived, as Unix seconds, by task id.
        flow_run_ids: the flow runs.
        task_runs: how many task runs belong to them.
        store_calls: calls of the store by kind, from the work alone.
        problems: what the first videos that failed say.
        events: how many events of task runs and videos were sent to Prefect's server.
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
    """Wall and processor time, children that have ended included, since it was made."""

    def __init__(self) -> None:
        self._began, self._used = time.monotonic(), _processor_seconds()
        self.start_processor_seconds = self._used

    def taken(self, *, peak_mib: float, store_calls: Mapping[str, int] | None = None) -> Taken:
        """What has been used until now."""
        return Taken(
            start_processor_seconds=self.start_processor_seconds,
            processor_seconds=_processor_seconds() - self._used,
            wall_seconds=time.monotonic() - self._began,
            peak_mib=peak_mib,
            store_calls=dict(store_calls or {}),
        )


def _processor_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
