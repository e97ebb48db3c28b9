"""The flow `generate-shard`: a part of a batch that `generate-batch` divides among several runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Final

from prefect import flow
from prefect.runtime import flow_run
from pydantic import ValidationError

from blocks import ApixoApi, VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import PreconditionFailedError, StoreError
from flows.batch.shares import Share
from flows.batch.summary import batch_error
from flows.batch_run import Batch
from flows.permission import PAYING_FLOW, rerun_by_person
from flows.record.pipeline_errors import PipelineError
from flows.resources import PayingResources, command_options, load_block
from flows.signals.progress import run_logger
from flows.signals.run_log import prepare_run_log
from flows.submission import Terms

BEAT_SECONDS: Final = 2.0
"""How often a shard writes its heartbeat, and checks whether another shard has hit a problem that stops all."""


def _run_name() -> str:
    return f"shard {flow_run.parameters.get('share', '')}"


@flow(name="generate-shard", flow_run_name=_run_name, **PAYING_FLOW)
async def generate_shard(share: str, attempt: int = 1, api: str = "default", archive: str = "default") -> None:
    """Generates a part of a batch. `generate-batch` starts it if it has more than one shard.

    Args:
        share: The object in the archive's bucket that describes the work.
        attempt: Which run of this share this is; a new one is started for the share of a dead run.
        api: Name of the `apixo-api` block.
        archive: Name of the `video-archive` block.
    """
    prepare_run_log()
    api_block, archive_block = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    wanted = await _read(share, archive_block)
    # The provider counts the requests of all shards together.
    part = api_block.model_copy(update={"requests_per_minute": api_block.requests_per_minute / wanted.of})
    async with PayingResources(part, archive_block, options=command_options(api, archive)) as resources:
        terms = Terms(
            may_submit_again=partial(rerun_by_person, run_id=wanted.parent_run_id),
            waits=wanted.waits,
            refuse_duplicates=wanted.refuse_duplicates,
        )
        batch = await Batch.load(
            wanted.key, wanted.rows, resources, terms=terms, max_spend=wanted.max_spend, shards=wanted.of
        )
        async with _heartbeat(batch, wanted, attempt, resources.store):
            summary = await batch.run(
                resources, max_in_flight=wanted.max_in_flight, submissions_per_second=wanted.submissions_per_second
            )
        data = summary.model_dump_json().encode()
        await resources.store.put(wanted.summary_name, data, content_type="application/json")
    run_logger().info("Shard %d of %d of batch %s: %s", wanted.number, wanted.of, wanted.key, summary.sentence())
    if summary.failed:
        raise batch_error(summary)


async def _read(share: str, archive: VideoArchive) -> Share:
    async with aclosing(archive.store()) as store:
        found = await store.get(share)
    try:
        return Share.model_validate_json(found.data if found else b"")
    except ValidationError as error:
        raise PipelineError(
            f"There is no share {share} of a batch: a batch removes its shares when it ends. Run generate-batch "
            "with the batch's key instead: it generates what is missing. Nothing was submitted."
        ) from error


@asynccontextmanager
async def _heartbeat(batch: Batch, share: Share, attempt: int, store: ObjectStore) -> AsyncIterator[None]:
    """While the shard runs, writes its heartbeat, and exchanges reasons that stop all shards."""

    async def exchange() -> None:
        try:
            await store.put(share.beat_name(attempt), b"")
            if batch.stop.reason is not None:
                with suppress(PreconditionFailedError):  # another shard has already reported one
                    await store.put_if(share.stop_name, batch.stop.reason.encode(), etag=None)
            elif (found := await store.get(share.stop_name)) is not None:
                batch.stop.follow(found.data.decode(errors="replace"))
        except StoreError as error:  # the rows themselves retry, or fail
            run_logger().warning("Cannot exchange reasons to stop with the other shards: %s", error)

    async def repeatedly() -> None:
        while True:
            await exchange()
            await asyncio.sleep(BEAT_SECONDS)

    touch = asyncio.create_task(repeatedly(), name=f"shard {share.number}")
    try:
        yield
    finally:
        touch.cancel()
        await asyncio.gather(touch, return_exceptions=True)
        if batch.stop.reason is not None:
            await exchange()
