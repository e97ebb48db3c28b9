"""Many processes, one key."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import SandboxServer
from tests.flows.conftest import store_blocks
from tests.support import KITE, make_api, make_archive

RACE = """
import asyncio, os, sys, time
from flows.generate_video import generate_video
from apixo import VideoRequest

go, out, key, blocks, count = sys.argv[1:]
for number in range(int(count)):
    if os.fork() == 0:  # after all imports, and before any loop or thread exists: 32 imports would take minutes
        while not os.path.exists(go):
            time.sleep(0.001)
        request = VideoRequest(prompt=os.environ["RACE_PROMPT"])
        result = asyncio.run(generate_video(request, key=key, api=blocks, archive=blocks))
        with open(f"{out}/{number}.json", "w") as file:
            file.write(result.model_dump_json())
        sys.stdout.flush()
        os._exit(0)
open(go, "w").close()
codes = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(int(count))]
sys.exit(max(codes))
"""


@pytest.mark.parametrize("processes", [6, pytest.param(32, marks=pytest.mark.attack)])
async def test_processes_that_race_one_key_pay_once_and_get_equal_results(
    processes: int,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    client_environment: dict[str, str],
    key: str,
    tmp_path: Path,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=30, deadline_seconds=120), make_archive(minio))
    race = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RACE, str(tmp_path / "go"), str(tmp_path), key, stored.name, str(processes)],
        env={
            **client_environment,
            "RACE_PROMPT": KITE.prompt,
            "PYTHONWARNINGS": "ignore",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",  # the race is for the key, not for Prefect's database
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert race.returncode == 0, race.stderr[-4000:]
    results = [json.loads((tmp_path / f"{number}.json").read_text()) for number in range(processes)]
    assert all(result == results[0] for result in results)
    assert results[0]["state"] == "archived"
    assert len(sandbox.record.submits()) == 1
    store = stored.archive.store()
    try:
        assert [Path(name).name for name in await store.names("videos/")] == [
            "generation.json",
            "poster.jpg",
            "video.mp4",
        ]
        for item in results[0]["objects"]:
            digest = await store.digest(item["name"])
            assert digest is not None
            assert digest.sha256 == item["sha256"]
        assert await store.names("open/") == []
    finally:
        await store.aclose()
