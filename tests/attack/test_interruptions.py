"""Processes that are terminated or frozen, or that run twice. Each video must be paid for once, and archived."""

import asyncio
import random
import signal
import sys
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

import pytest
from prefect.client.orchestration import get_client

from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import State
from flows.record.ledger import Ledger
from tests.attack.fifty import (
    TIME_LIMIT_SECONDS,
    Commands,
    assert_all_archived,
    realistic_api,
    resubmit_unconfirmed,
    run_disrupted_batch,
)
from tests.e2e.running import ROOT
from tests.flows.conftest import store_blocks
from tests.support import make_api, make_archive
from tests.support.fork_server import ForkServer
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
async def test_terminated_batch_is_completed_by_same_command(
    signal_number: signal.Signals,
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
) -> None:
    async def end(batch: asyncio.subprocess.Process) -> None:
        batch.send_signal(signal_number)

    cli = commands(await store_blocks(realistic_api(slow_sandbox), make_archive(minio)))
    assert await run_disrupted_batch(cli, slow_sandbox, key, end) == 0
    await assert_all_archived(cli, slow_sandbox, key)  # the paid calls in progress were still completed and recorded


async def test_frozen_batch_is_taken_over_and_pays_nothing_when_resumed(
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    key: str,
) -> None:
    cli = commands(await store_blocks(realistic_api(slow_sandbox, submit_timeout_seconds=1), make_archive(minio)))

    async def freeze(batch: asyncio.subprocess.Process) -> None:
        batch.send_signal(signal.SIGSTOP)
        try:
            arguments = ("batch", str(cli.folder / "fifty.csv"), "--key", key)
            code, _ = await cli.end(await cli.start(*arguments))
            print(f"\nthe other run: exit code {code}, {len(slow_sandbox.record.charged())} paid")
        finally:
            batch.send_signal(signal.SIGCONT)

    await run_disrupted_batch(cli, slow_sandbox, key, freeze)
    await resubmit_unconfirmed(cli, slow_sandbox, key)


@pytest.mark.parametrize("moment", ["claimed", pytest.param("paid", marks=pytest.mark.sample)])
async def test_process_frozen_after_claim_pays_nothing_when_resumed(
    moment: str,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    forks: ForkServer,
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=1), make_archive(minio))
    cli = commands(stored)
    rerun_cli = replace(cli, program=tuple(forks.command()))
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.7, times=-1))
    arguments = ["generate", "Frozen", "--key", key]
    blocks = ["--api", stored.name, "--archive", stored.name]
    frozen = forks.start([*arguments, *blocks], cli.environment, cli.folder)
    try:

        async def reached() -> bool:
            return bool(sandbox.record.charged() if moment == "paid" else await cli.recorded(key))

        await until(reached, what=moment, pause=0.002)
        frozen.send_signal(signal.SIGSTOP)
        code, output = await rerun_cli.end(await rerun_cli.start(*arguments))
        found = await cli.recorded(key)
        assert found is not None
        charged = sandbox.record.charged()
        print(f"\nfrozen with {len(charged)} paid, then found {found.state}")
        if found.state is State.UNCONFIRMED:
            assert code == 1
            assert f"sora resolve {key}" in output
            options = ["--task-id", charged[0].task_id or ""] if charged else ["--resubmit", "--yes"]
            code, output = await rerun_cli.end(await rerun_cli.start("resolve", key, *options))
        assert code == 0, output
    finally:
        frozen.send_signal(signal.SIGCONT)
    await asyncio.to_thread(frozen.communicate, TIME_LIMIT_SECONDS)
    archived = await cli.recorded(key)
    assert archived is not None
    assert archived.state is State.ARCHIVED
    assert len(sandbox.record.charged()) == 1
    assert len(sandbox.record.submits()) == 1


RNG = random.Random(5)
FEW = [0.4, 1.4]
MANY = [RNG.uniform(0.3, 4) for _ in range(30)]
"""Seconds after the start of a command, covering all of it from the imports to the end."""


@pytest.mark.parametrize(
    ("moments", "signal_number"),
    [
        pytest.param(FEW, signal.SIGTERM, id="a few, SIGTERM", marks=pytest.mark.sample),
        pytest.param(MANY, signal.SIGTERM, id="many, SIGTERM"),
        pytest.param(MANY, signal.SIGINT, id="many, Ctrl-C"),
    ],
)
async def test_run_terminated_at_any_time_is_completed_by_same_command(
    moments: list[float],
    signal_number: signal.Signals,
    sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
    forks: ForkServer,
    key: str,
) -> None:
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=2), make_archive(minio))
    cli = commands(stored)
    rerun_cli = replace(cli, program=tuple(forks.command()))
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=0.5, times=-1))
    for count, moment in enumerate(moments):
        arguments = ("generate", "Ended", "--key", f"{key}-{count}")
        run = await cli.start(*arguments)
        await asyncio.sleep(moment)
        if run.returncode is None:
            run.send_signal(signal_number)
        first_code, output = await cli.end(run)
        assert "Traceback" not in output, (moment, output)
        code, output = await rerun_cli.end(await rerun_cli.start(*arguments))
        assert code == 0, (moment, first_code, output)
    assert len(sandbox.record.charged()) == len(moments)
    assert len(sandbox.record.submits()) == len(moments)


DEPLOY = ["--no-prompt", "deploy", "--name", "generate-video"]  # a deployed collector would run on its schedule


async def test_two_workers_executing_same_flow_run_pay_once(
    sandbox: SandboxServer, minio: ObjectStoreServer, prefect_server: PrefectServer, commands: Callable[..., Commands],
    forks: ForkServer, key: str,
) -> None:  # fmt: skip
    stored = await store_blocks(make_api(sandbox, submit_timeout_seconds=5), make_archive(minio))
    cli = commands(stored)
    for command in (["work-pool", "create", "sora", "--type", "process", "--overwrite"], DEPLOY):
        process = await asyncio.create_subprocess_exec(
            *forks.command("prefect"), *command, cwd=ROOT, env=cli.environment
        )
        assert await process.wait() == 0
    async with get_client() as client:
        found = await client.read_deployment_by_name("generate-video/generate-video")
        parameters = {"request": {"prompt": "Twice"}, "key": key, "api": stored.name, "archive": stored.name}
        run = await client.create_flow_run_from_deployment(found.id, parameters=parameters)
    both = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prefect.engine", str(run.id), cwd=ROOT, env=cli.environment
        )
        for _ in range(2)
    ]
    await asyncio.wait_for(asyncio.gather(*(process.wait() for process in both)), TIME_LIMIT_SECONDS)
    archived = await cli.recorded(key)
    assert archived is not None
    assert archived.state is State.ARCHIVED
    assert len(sandbox.record.submits()) == 1


PARENT = """
from prefect import flow
from flows.generate_video import generate_video

@flow
async def parent(blocks: str) -> None:
    await generate_video({"prompt": "A child without a key"}, api=blocks, archive=blocks)
"""


@pytest.mark.parametrize("moment", ["paid", "submitted"])
async def test_killed_parent_restarted_under_same_run_pays_once(
    moment: str,
    slow_sandbox: SandboxServer,
    minio: ObjectStoreServer,
    prefect_server: PrefectServer,
    commands: Callable[..., Commands],
) -> None:
    """Like a pod that Kubernetes replaces: each time, Prefect creates another run of the child flow."""
    stored = await store_blocks(make_api(slow_sandbox, submit_timeout_seconds=3), make_archive(minio))
    cli = commands(stored)
    (cli.folder / "parent.py").write_text(PARENT)
    if moment == "paid":
        slow_sandbox.faults.add(Fault(call="submit", kind="slow", seconds=1.5))
    async with get_client() as client:
        flow_id = await client.create_flow_from_name("parent")
        deployment = await client.create_deployment(
            flow_id,
            f"parent-{stored.name}",
            entrypoint="parent.py:parent",
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(cli.folder)}}],
        )
        run = await client.create_flow_run_from_deployment(deployment, parameters={"blocks": stored.name})

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "prefect.engine", str(run.id), cwd=ROOT,
            env=cli.environment | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    async def reached() -> bool:
        if moment == "paid" or not slow_sandbox.record.charged():
            return bool(slow_sandbox.record.charged())
        return any(item.call == "status" for item in slow_sandbox.record.all())

    killed = await start()
    await until(reached, what=moment, pause=0.02)
    killed.kill()
    await killed.wait()
    restarted = await start()
    code = await asyncio.wait_for(restarted.wait(), TIME_LIMIT_SECONDS)
    print(f"\nstarted again after {moment}: exit code {code}")
    assert len(slow_sandbox.record.submits()) == 1
    async with aclosing(stored.archive.store()) as store:
        left = await Ledger(store).newest(9)
    assert [item.state for item in left] == [State.UNCONFIRMED if moment == "paid" else State.ARCHIVED]
