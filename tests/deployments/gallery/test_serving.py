"""`sora serve` as a process: what it prints, what it logs, how it ends."""

import asyncio
import re
import socket
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from tests.deployments.cli.sora import Process, Sora, one_line
from tests.deployments.gallery.sample_records import GUARDED, PASSWORD, SECRET, make_generation, put_generations
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api
from tests.support.fork_server import ForkServer
from tests.support.receiver import exchange, post


@pytest.fixture
async def stored(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    return await store_blocks(make_api(sandbox), archive.model_copy(update=GUARDED))


@pytest.fixture
def sora(stored: StoredBlocks, prefect_server: PrefectServer, forks: ForkServer, tmp_path: Path) -> Iterator[Sora]:
    token = stored.archive.gateway_token("kite")
    secrets = [stored.archive.secret_key.get_secret_value(), PASSWORD, SECRET, token, "X-Amz-Signature"]
    started = Sora(tmp_path, prefect_server.environment, secrets, forks)
    yield started
    started.close()


async def wait_for_port(process: Process) -> int:
    assert process.stderr is not None
    line = await asyncio.to_thread(process.stderr.readline)
    found = re.search(r"The gallery is at http://127\.0\.0\.1:(\d+)/", line)
    assert found, line
    return int(found[1])


async def test_gallery_serves_until_stopped_and_logs_no_secret(sora: Sora, stored: StoredBlocks) -> None:
    async with aclosing(stored.archive.store()) as store:
        await put_generations(store, make_generation("kite"))
    process = sora.start("serve", "--port", "0", "--redirect", "--archive", stored.name)
    port = await wait_for_port(process)
    token = stored.archive.gateway_token("kite")
    video = await exchange(port, post(f"/v/kite/video.mp4?t={token}", method="GET", connection="close"))
    denied = await exchange(port, post("/v/kite/video.mp4", method="GET", connection="close"))
    health = await exchange(port, post("/health", method="GET", connection="close"))
    junk = await exchange(port, b"\x16\x03\x01 junk\r\n\r\n")
    process.terminate()
    ended = await asyncio.to_thread(sora.end, process)  # also searches all of its output for secrets
    assert (video.status, denied.status, health.said, junk.status) == (302, 401, "ok", 400)
    assert "server" not in video.headers
    assert (ended.code, "Stopped." in ended.err) == (0, True), ended.all


async def test_invalid_setup_fails_to_start_with_one_error_line(
    sora: Sora, stored: StoredBlocks, archive: VideoArchive
) -> None:
    without_password = await store_blocks(stored.api, archive)
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    started = {
        "no gateway_password.*MINIO_GATEWAY_PASSWORD": ("--host", "0.0.0.0", "--archive", without_password.name),  # noqa: S104
        "no video-archive block named 'nobody'": ("--archive", "nobody"),
        f"cannot listen on 127.0.0.1, port {port}": ("--archive", without_password.name, "--port", port),
    }
    try:
        for message, options in started.items():
            ended = await asyncio.to_thread(sora, "serve", "--port", "0", *options)
            assert re.search(message, one_line(ended, 1)), ended.err
    finally:
        taken.close()
