"""A batch on several machines: PostgreSQL, Redis, separate API and services, and three workers, one of which dies."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks import VideoArchive
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.record.ledger import Ledger
from tests.attack.fifty import Commands
from tests.e2e.running import ROOT, descendants, kill_all
from tests.flows.conftest import store_blocks
from tests.support import make_api, topology
from tests.support.topology import Topology
from tests.support.waiting import until

SPEED: Final = 10
"""Each video takes 12 to 24 s, so many are in progress when a machine dies."""


@pytest.fixture(scope="module")
def many_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    if (reason := topology.missing()) is not None:
        pytest.skip(reason)
    with topology.started(tmp_path_factory.mktemp("topology")) as running:
        sora = [sys.executable, "-m", "deployments.cli", "deploy"]
        done = subprocess.run(sora, cwd=ROOT, env=running.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        yield running


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("videos", "shards"), [(30, 3), (300, 6)])
async def test_machine_failure_loses_no_video_and_causes_no_second_payment(
    videos: int, shards: int, many_machines: Topology, one_video: Path, archive: VideoArchive, tmp_path: Path
) -> None:
    settings = SandboxSettings(speed=SPEED, data_dir=one_video)
    with SandboxServer(settings) as sandbox, temporary_settings({PREFECT_API_URL: many_machines.api_url}):
        api = make_api(
            sandbox, initial_wait_seconds=5, poll_interval_seconds=1, deadline_seconds=600, submit_timeout_seconds=30,
            retry_delay_seconds=2,
        )  # fmt: skip
        stored = await store_blocks(api, archive)
        calendar = tmp_path / "many.csv"
        calendar.write_text("id,prompt\n" + "".join(f"{number:03},Dunes; take {number}\n" for number in range(videos)))
        workers = [many_machines.worker(f"machine-{number}-{videos}") for number in (1, 2, 3)]
        began = time.monotonic()
        try:
            batch = await Commands(stored, many_machines.environment, tmp_path).start(
                "batch", str(calendar), "--key", "many", "--shards", str(shards), "--submissions-per-second", "20", "-v"
            )
            output = asyncio.create_task(batch.communicate())

            async def half() -> bool:
                return len(sandbox.record.charged()) >= videos // 2

            await until(half, what="half of the submissions", seconds=300)
            victim = next(item for item in workers if len(descendants(item.pid)) > 2)
            lost = [victim.pid, *descendants(victim.pid)]
            kill_all(lost)  # as in a power failure: nothing is reported any more
            killed_at = time.monotonic()
            out, _ = await output
        finally:
            for worker in workers:
                worker.stop()
        took = time.monotonic() - began
        posts, charged = len(sandbox.record.submits()), len(sandbox.record.charged())
    async with aclosing(archive.store()) as store:
        keys = [f"many-{number:03}" for number in range(videos)]
        records = await Ledger(store).read_all(keys)
        markers = await store.names("open/")
    states = [records[key].state.value if key in records else "unknown" for key in keys]
    unclear = states.count("unconfirmed")
    print(
        f"\n{videos} videos in {shards} shards on three workers, {len(lost)} processes of one killed after "
        f"{killed_at - began:.0f} s: {took:.0f} s in all, {posts} POSTs, {charged} charged, "
        f"{states.count('archived')} archived, {unclear} unconfirmed"
    )
    output_text = out.decode()
    assert "is taken up again" in output_text, output_text[-3000:]
    # A paid call that was interrupted may have been paid: it is not sent again, and a user must resolve it.
    assert states.count("archived") + unclear == videos, output_text[-3000:]
    assert unclear <= 5
    assert len(markers) == unclear
    assert posts <= videos
    assert charged <= posts
    prompts = [item.body for item in sandbox.record.submits()]
    assert len(set(prompts)) == len(prompts)
