"""Outages while fifty generations are in progress: the store, Prefect, the provider, the disk.

Whatever is unavailable, each video must be paid for once, and must be in the archive after at most one more run of the
same command. Each run has a time limit.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.local.prefect_server import PrefectServer, start_prefect_server
from deployments.local.processes import ManagedProcess
from deployments.local.stack_info import Credentials
from deployments.local.store_server import ObjectStoreServer, start_object_store
from deployments.sandbox import SandboxServer
from flows.record.generation import State
from tests.attack.fifty import Commands, assert_all_archived, realistic_api, resubmit_unconfirmed, run_disrupted_batch
from tests.e2e.running import ROOT
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_archive
from tests.support.store_gate import StoreGate, nothing

outages = pytest.mark.parametrize("seconds", [pytest.param(4.0, id="4 s"), pytest.param(30.0, id="30 s")])
pytestmark = pytest.mark.timeout(600)


@outages
async def test_batch_survives_minio_outage(
    seconds: float,
    slow_sandbox: SandboxServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    servers: list[ObjectStoreServer] = []

    def start(port: int = 0) -> None:
        servers.append(
            start_object_store(
                local_dir=ROOT / ".local",
                data_dir=tmp_path / "minio",
                log_dir=tmp_path,
                credentials=Credentials.load_or_create(tmp_path / "credentials.json"),
                port=port,
            ).ready()
        )

    async def outage(_: object) -> None:
        servers[-1].process.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start, int(servers[-1].endpoint.rpartition(":")[2]))

    await asyncio.to_thread(start)
    try:
        stored = await store_blocks(realistic_api(slow_sandbox), make_archive(servers[0]))
        cli = commands(stored)
        assert await run_disrupted_batch(cli, slow_sandbox, key, outage) == 0
        await assert_all_archived(cli, slow_sandbox, key)
    finally:
        servers[-1].process.stop()


@outages
async def test_batch_survives_prefect_server_outage(
    seconds: float,
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    servers: list[PrefectServer] = []

    def start(port: int = 0) -> None:
        servers.append(start_prefect_server(home=tmp_path / "prefect", log_dir=tmp_path, port=port).ready())

    async def outage(_: object) -> None:
        servers[-1].process.kill()
        await asyncio.sleep(seconds)
        await asyncio.to_thread(start, int(servers[-1].api_url.split(":")[2].split("/")[0]))

    await asyncio.to_thread(start)
    try:
        api, archive = realistic_api(slow_sandbox), make_archive(minio)
        stored = StoredBlocks("default", api, archive)
        cli = commands(stored, **servers[0].environment)
        set_up = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "deployments.cli", "setup", "--no-deploy", cwd=tmp_path,
            env=cli.environment | {"PYTHONPATH": str(ROOT)} | as_environment(api, archive),
        )  # fmt: skip
        assert await set_up.wait() == 0
        assert await run_disrupted_batch(cli, slow_sandbox, key, outage) == 0
        await assert_all_archived(cli, slow_sandbox, key)
    finally:
        servers[-1].process.stop()


def as_environment(api: Any, archive: Any) -> dict[str, str]:
    """The environment variables from which `sora setup` creates the same blocks."""
    plain = ("base_url", "initial_wait_seconds", "poll_interval_seconds", "deadline_seconds", "submit_timeout_seconds")
    return {f"APIXO_{name.upper()}": str(getattr(api, name)) for name in (*plain, "retry_delay_seconds")} | {
        "APIXO_ALLOW_PRIVATE_HOSTS": "true",
        "APIXO_API_KEY": api.api_key.value.get_secret_value(),
        "MINIO_ENDPOINT": archive.endpoint,
        "MINIO_ACCESS_KEY": archive.access_key,
        "MINIO_SECRET_KEY": archive.secret_key.get_secret_value(),
        "MINIO_SECURE": "false",
        "MINIO_BUCKET": archive.bucket,
    }


@pytest.mark.parametrize("seconds", [pytest.param(4.0, id="4 s"), pytest.param(60.0, id="60 s")])
async def test_batch_survives_provider_outage(
    seconds: float,
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
) -> None:
    with StoreGate(slow_sandbox.base_url.removeprefix("http://")) as gate:

        async def outage(_: object) -> None:
            gate.shut = lambda _: True
            await asyncio.sleep(seconds)
            gate.shut = nothing

        api = realistic_api(slow_sandbox, base_url=f"http://{gate.endpoint}")
        stored = await store_blocks(api, make_archive(minio))
        cli = commands(stored)
        await run_disrupted_batch(cli, slow_sandbox, key, outage)
        await resubmit_unconfirmed(cli, slow_sandbox, key)  # a request that was cut off may have been read


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[str, ...]]:
    """A disk of 128 KB in this folder. Only commands that start with the yielded prefix can see it.

    It is in its own mount namespace, so it disappears with this process, however that ends.
    """
    holder = ManagedProcess(
        ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=128k tmpfs "$0" && echo $$ && exec sleep 600',
         str(folder)],
        name="small disk",
        log_path=folder.with_suffix(".log"),
    )  # fmt: skip
    try:
        while not (reported := holder.log_path.read_text().strip()) and holder.is_alive():
            time.sleep(0.05)
        if not reported.isdecimal():
            pytest.skip(f"this needs the right to mount a disk: {reported}")
        yield "nsenter", "--mount", f"--target={reported}"
    finally:
        holder.stop()


async def test_batch_survives_small_disk_that_fills_up(
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    work_root = tmp_path / "small"
    work_root.mkdir()
    cli = commands(await store_blocks(realistic_api(slow_sandbox), make_archive(minio)))
    with small_disk(work_root) as prefix:

        async def fill_disk(_: object) -> None:
            fill = [*prefix, "sh", "-c", f"head -c 110000 /dev/zero > {work_root}/others"]
            assert await (await asyncio.create_subprocess_exec(*fill)).wait() == 0

        full_disk_cli = replace(commands(cli.stored, SORA_WORK_DIR=str(work_root)), prefix=prefix)
        assert await run_disrupted_batch(full_disk_cli, slow_sandbox, key, fill_disk, then=cli) == 0
    await assert_all_archived(cli, slow_sandbox, key)


async def test_run_on_full_disk_fails_and_rerun_archives_video(
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
    tmp_path: Path,
) -> None:
    work_root = tmp_path / "small"
    work_root.mkdir()
    stored = await store_blocks(realistic_api(slow_sandbox), make_archive(minio))
    arguments = ("generate", "The same video, twelve seconds", "--duration", "12", "--key", key)
    with small_disk(work_root) as prefix:
        full_disk_cli = replace(commands(stored, SORA_WORK_DIR=str(work_root)), prefix=prefix)
        fill = [*prefix, "sh", "-c", f"head -c 120000 /dev/zero > {work_root}/others"]
        assert await (await asyncio.create_subprocess_exec(*fill)).wait() == 0
        assert list(work_root.iterdir()) == []  # this process does not see that disk
        code, output = await full_disk_cli.end(await full_disk_cli.start(*arguments))
        assert code == 1, output
        assert "No space left" in output or "disk" in output, output
        found = await full_disk_cli.recorded(key)
        assert found is not None
        assert found.state is State.SUCCEEDED
    code, output = await full_disk_cli.end(await commands(stored).start(*arguments))  # on the normal disk
    assert code == 0, output
    assert len(slow_sandbox.record.charged()) == 1
