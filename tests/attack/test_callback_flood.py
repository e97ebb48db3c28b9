"""The callback receiver, in its own process, gets 2,000 callbacks per second for 10 s while 50 generations run."""

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from prefect.blocks.system import Secret

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.local.processes import ManagedProcess, free_port
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.batch.summary import BatchSummary
from flows.generate_batch import generate_batch
from tests.attack import flooder
from tests.e2e.running import ROOT, descendants
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, unique
from tests.support.memory import forget_peak, peak_kib
from tests.support.receiver import exchange, named, post

VIDEOS: Final = 50
CALLS_PER_SECOND: Final = 2_000
SECONDS: Final = 10
SPEED: Final = 15
"""A video of 4 s takes 8 to 16 s, so the generations are in progress during the flood."""
PROVIDER_TIMEOUT_SECONDS: Final = 30
"""APIXO: a callback that is not answered with 200 by then is repeated."""
MAX_GROWTH_KIB: Final = 150_000
"""512 connections and 256 bodies of 200 kB that are read at the same time need 60 MB."""


@pytest.fixture
def sandbox(video_folder: Path) -> Iterator[SandboxServer]:
    with SandboxServer(SandboxSettings(speed=SPEED, video_height=90, data_dir=video_folder)) as running:
        yield running


@pytest.fixture
async def stored(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Blocks whose callback URL is a free port of this machine."""
    api = make_api(
        sandbox,
        callback_url=f"http://127.0.0.1:{free_port()}",
        callback_secret=Secret(value=unique("callback-secret")),
        initial_wait_seconds=180 / SPEED,
        poll_interval_seconds=1,
        deadline_seconds=120,
        submit_timeout_seconds=30,
    )
    return await store_blocks(api, archive)


def port_of(stored: StoredBlocks) -> int:
    return int((stored.api.callback_url or "").rpartition(":")[2])


@pytest.fixture
async def receiver(
    stored: StoredBlocks, prefect_server: PrefectServer, tmp_path: Path
) -> AsyncIterator[ManagedProcess]:
    """`sora callbacks`, as in production."""
    process = ManagedProcess(
        [sys.executable, "-m", "deployments.cli", "callbacks", f"--port={port_of(stored)}", f"--api={stored.name}",
         f"--archive={stored.name}"],
        name="receiver", log_path=tmp_path / "receiver.log", cwd=ROOT,
        environment={**os.environ, **prefect_server.environment},
    )  # fmt: skip
    async with asyncio.timeout(60):
        while await health(port_of(stored)) != 200:
            assert process.is_alive(), process.log_path.read_text()
            await asyncio.sleep(0.2)
    yield process
    process.stop()


async def health(port: int) -> int:
    """The status of `GET /health`; 0: no answer."""
    try:
        return (await exchange(port, post("/health", method="GET"))).status
    except OSError:
        return 0


def flood_requests(stored: StoredBlocks, keys: list[str]) -> list[bytes]:
    """The requests for the flood: 40% forged tokens, 25% valid ones, 20% unknown keys, 15% junk."""
    api, forged = stored.api, "f" * 64

    def valid(key: str) -> str:
        return (api.callback_url_for(key) or "").removeprefix(api.callback_url or "")

    requests: list[bytes] = []
    for number, key in enumerate(keys):
        requests += [post(f"/apixo/{key}/{forged}", named(f"task_{n}")) for n in range(4)]
        requests += [post(f"/apixo/{key}/2/{forged}"), *[post(valid(key)[:-1], named("task_x"))] * 3]
        requests += [post(valid(key), body) for body in (named(None), b"{", named(f"task_{number}"), named("\x1b[2J"))]
        requests += [post(valid(key), b'{"taskId": "' + b"x" * 200_000 + b'"}')]
        requests += [post(valid(f"{key}.none"), named("task_x"))] * 2
        requests += [post(f"/apixo/{unique('nobody')}/{forged}", named("task_x"))] * 2
        requests += [post(valid(key), content_length="2000000"), post("/"), b"\x16\x03\x01\x02\r\n\r\n"]
    return requests


async def watch(port: int, until: asyncio.Event) -> list[tuple[int, float]]:
    """Checks the health of the receiver twice a second. Returns each status, and the seconds that it took."""
    seen = []
    while not until.is_set():
        began = time.monotonic()
        seen.append((await health(port), time.monotonic() - began))
        await asyncio.sleep(0.5)
    return seen


async def flooded(port: int, requests: list[bytes]) -> dict[str, Any]:
    """Floods the receiver from another process."""
    texts = json.dumps([base64.b64encode(request).decode() for request in requests])
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, flooder.__file__, str(port), str(CALLS_PER_SECOND), str(SECONDS)],
        input=texts, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return dict(json.loads(ended.stdout))


@pytest.mark.timeout(400)
async def test_callback_flood_stops_neither_generations_nor_receiver(
    stored: StoredBlocks, receiver: ManagedProcess, sandbox: SandboxServer, key: str
) -> None:
    port = port_of(stored)
    rows = [{"id": f"{number:02}", "prompt": "Dunes at dawn"} for number in range(VIDEOS)]
    keys = [f"{key}-{row['id']}" for row in rows]
    (pid,) = descendants(receiver.pid)  # the only child of its guard process
    before = forget_peak(pid)
    batch = asyncio.create_task(
        generate_batch(requests=rows, key=key, api=stored.name, archive=stored.name, submissions_per_second=10)  # type: ignore[arg-type]
    )
    while len(sandbox.record.submits()) < VIDEOS // 2:  # the rest is submitted during the flood
        await asyncio.sleep(0.1)
        assert not batch.done()
    over = asyncio.Event()
    watching = asyncio.create_task(watch(port, over))
    unfinished = VIDEOS - sum(task.finished for task in sandbox.tasks.all())
    polls_before = len(sandbox.record.statuses())
    began = time.monotonic()
    flood = await flooded(port, flood_requests(stored, keys))
    took = time.monotonic() - began
    polls = len(sandbox.record.statuses()) - polls_before
    over.set()
    seen = await watching
    after = [await health(port) for _ in range(5)]
    summary = await batch
    assert isinstance(summary, BatchSummary)
    callbacks = [attempt for task in sandbox.tasks.all() for attempt in task.callbacks]
    peak, log = peak_kib(pid), receiver.log_path.read_text()
    slowest = max(seconds for _, seconds in seen)
    print(
        f"\n{flood['sent']} calls sent in {flood['seconds']:.1f} s, {flood['sent'] / flood['seconds']:.0f} of "
        f"{CALLS_PER_SECOND} per second: the server was too busy to let {flood['skipped']} more connect. "
        f"{flood['answered']} were answered by then; all had ended after {took:.1f} s: {flood['statuses']}."
        f"\n{unfinished} of {VIDEOS} generations were not finished when it began. The provider was polled {polls} "
        f"times meanwhile. Its own callbacks were answered {dict(Counter(attempt.status for attempt in callbacks))}, "
        f"the slowest after {max(attempt.seconds for attempt in callbacks):.1f} s."
        f"\nHealth during the flood: {[status for status, _ in seen]}, the slowest after {slowest:.1f} s. The receiver "
        f"took {before / 1024:.0f} MiB before and {peak / 1024:.0f} MiB at most; its log has {len(log):,} characters."
    )
    assert {row.state for row in summary.rows} == {"archived"}
    # Despite the flood, each result is accepted in one of the four callbacks that the provider makes. A callback for
    # which there is no room is rejected or cut off at once, so the provider never waits.
    assert [task.callbacks[-1].status for task in sandbox.tasks.all()] == [200] * VIDEOS
    assert {attempt.status for attempt in callbacks} <= {200, 503, None}
    assert max(attempt.seconds for attempt in callbacks) < PROVIDER_TIMEOUT_SECONDS / 2
    assert len(sandbox.record.submits()) == VIDEOS
    assert len(sandbox.record.charged()) == VIDEOS
    assert unfinished > VIDEOS // 2
    assert after == [200] * 5
    assert receiver.is_alive()
    assert 200 in {status for status, _ in seen}
    assert peak - before < MAX_GROWTH_KIB
    assert flood["statuses"].get("404", 0) > 0
    assert "500" not in flood["statuses"]
    assert "Traceback" not in log
    assert log.count("with an invalid token") <= 1 + took // 60
    assert stored.api.callback_secret is not None
    assert stored.api.callback_secret.value.get_secret_value() not in log
    assert all(stored.api.callback_token(name) not in log for name in keys)
