"""What a forked child does: it runs one command of a user, and may be killed at any point."""

import asyncio
import contextlib
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Literal
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.connection import flush
from deployments.receiver.app import CallbackServer, open_app
from flows.batch.calendar_rows import BatchItem
from flows.collect_videos import collect_videos
from flows.generate_batch import generate_batch
from flows.generate_video import generate_video
from flows.resolution import allow_resubmission, load_generation, resolve_as_task
from flows.resources import Resources, command_options, load_block
from tests.attack.labels import Places
from tests.attack.points import Point, Tap

Kind = Literal["generate", "batch", "collect", "resolve", "receive", "parent"]

BATCH_ROW = "a"


class Job(BaseModel):
    """One command.

    Attributes:
        kind: what to run. `receive` answers one callback. `parent` is a flow of the user that generates the video.
        key: the key of the generation; for a batch, `<batch>-a` is the key of its only row.
        request: the video.
        blocks: the name of both blocks.
        work_root: the work directory on the local disk; each machine has its own.
        port: for `receive`: the file to which it writes the port that it listens on.
        task_id: for `resolve`: the task that the user found; None: allow a resubmission.
        flow_run_id: for `parent`: the flow run that it continues.
    """

    kind: Kind
    key: str
    request: VideoRequest
    blocks: str
    work_root: Path
    port: Path
    wait: bool = True
    task_id: str | None = None
    flow_run_id: UUID | None = None


class Child(BaseModel):
    """A job, where to kill it, and where its output goes.

    Attributes:
        reported: gets what the command reports to its user: the text of the error, or the notes of the collector.
    """

    job: Job
    places: Places
    die_at: Point | None
    trace: Path
    reported: Path


def run_child(child: Child) -> int:
    """Runs the job in this process, which cannot be used again. Returns the exit code."""
    tap = Tap(child.places, child.trace, child.die_at)
    tap.install()
    os.environ["SORA_WORK_DIR"] = str(child.job.work_root)
    try:
        child.reported.write_text(asyncio.run(_run(child.job, tap)))
        code = 0
    except Exception as error:  # noqa: BLE001 - the test checks what the user sees
        child.reported.write_text(str(error))
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            flush()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


async def _run(job: Job, tap: Tap) -> str:
    api = archive = job.blocks
    match job.kind:
        case "generate":
            await generate_video(job.request, key=job.key, wait=job.wait, api=api, archive=archive)
        case "batch":
            item = BatchItem(id=BATCH_ROW, **job.request.model_dump())
            await generate_batch(
                [item], key=job.key.removesuffix(f"-{BATCH_ROW}"), wait=job.wait, api=api, archive=archive
            )
        case "collect":
            return "\n".join(item.note for item in await collect_videos(api=api, archive=archive))
        case "resolve":
            await _resolve(job)
            await generate_video(job.request, key=job.key, api=api, archive=archive)
        case "receive":
            await _receive(job, tap)
        case "parent":
            async with get_client() as client:
                assert job.flow_run_id is not None
                run = await client.read_flow_run(job.flow_run_id)
            await run_flow(parent, flow_run=run, parameters={"request": job.request, "blocks": job.blocks})  # type: ignore[misc]
    return ""


@flow(retries=1)
async def parent(request: VideoRequest, blocks: str) -> None:
    """Generates a video without giving it a key, then fails. The retry generates it in another subflow run."""
    await generate_video(request, api=blocks, archive=blocks)
    if flow_run.run_count == 1:
        raise RuntimeError("Something else in the parent failed.")


async def _resolve(job: Job) -> None:
    """Like `sora resolve`: reads the record, then resolves it, with separate connections."""
    blocks = await load_block(ApixoApi, job.blocks), await load_block(VideoArchive, job.blocks)
    options = command_options(job.blocks, job.blocks)
    async with Resources(*blocks, options=options) as resources:
        seen = await load_generation(job.key, resources.ledger)
    async with Resources(*blocks, options=options) as resources:
        if job.task_id is not None:
            await resolve_as_task(seen, job.task_id, resources)
        else:
            await allow_resubmission(seen, resources)


async def _receive(job: Job, tap: Tap) -> None:
    """Runs the callback receiver, which stops after the first callback."""
    blocks = await load_block(ApixoApi, job.blocks), await load_block(VideoArchive, job.blocks)
    listener = socket.create_server(("127.0.0.1", 0))
    async with open_app(*blocks, api=job.blocks, archive=job.blocks) as app:
        answered = asyncio.Event()

        def report_port() -> None:
            partial = job.port.with_suffix(".part")
            partial.write_text(str(listener.getsockname()[1]))
            partial.rename(job.port)

        server = CallbackServer(_answering(app, tap, answered), on_started=report_port)
        serving = asyncio.create_task(server.serve([listener]))
        await answered.wait()
        server.should_exit = True
        await serving


def _answering(app: ASGIApp, tap: Tap, answered: asyncio.Event) -> ASGIApp:
    """The app, with its answers counted as effects."""

    async def tapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def tapped_send(message: Message) -> None:
            passing = tap.enter("ANSWER call" if message["type"] == "http.response.body" else None)
            await send(message)
            passing.at("after")

        await app(scope, receive, tapped_send if scope["type"] == "http" else send)
        if scope["type"] == "http":
            answered.set()

    return tapped
