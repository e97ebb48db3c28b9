"""Several processes generate the video of one key at the same time."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import SandboxServer
from tests.e2e.conftest import ROOT, RUN_SECONDS
from tests.flows.conftest import store_blocks
from tests.support import KITE, make_api, make_archive
from tests.support.fork_server import ForkServer


@pytest.mark.parametrize("processes", [6, pytest.param(32, marks=pytest.mark.attack)])
async def test_processes_racing_for_one_key_pay_once_and_get_equal_results(
    processes: int,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    client_environment: dict[str, str],
    forks: ForkServer,
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=30, deadline_seconds=120), make_archive(minio))
    command = ["generate", KITE.prompt, "--key", key, "--api", stored.name, "--archive", stored.name]
    racing = [forks.start(command, client_environment, ROOT) for _ in range(processes)]
    outputs = await asyncio.gather(*(asyncio.to_thread(process.communicate, RUN_SECONDS) for process in racing))
    assert {process.returncode for process in racing} == {0}, outputs
    assert len({out for out, _ in outputs}) == 1, outputs
    generation = await stored.existing(key)
    assert generation.state == "archived"
    assert generation.objects
    assert len(sandbox.record.submits()) == 1
    async with aclosing(stored.archive.store()) as store:
        assert [Path(name).name for name in await store.names("videos/")] == [
            "generation.json",
            "poster.jpg",
            "video.mp4",
        ]
        for item in generation.objects:
            digest = await store.digest(item.name)
            assert digest is not None
            assert digest.sha256 == item.sha256
            assert item.kind != "video" or item.sha256 in outputs[0][0]
        assert await store.names("open/") == []
