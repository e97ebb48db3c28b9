"""How long an archive of 100,000 videos, and a collector with 10,000 open records, keep users waiting."""

import asyncio
import io
import time
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import pytest
from minio.commonconfig import SnowballObject

from apixo import VideoRequest
from blocks import VideoArchive
from blocks.object_store import ObjectStore
from deployments.gallery.index import ArchiveIndex
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.collect_videos import collect_videos
from flows.record import object_names, transitions
from flows.record.generation import Generation, Problem
from flows.record.ledger import Ledger, marker_name, record_name
from tests.flows.conftest import store_blocks
from tests.flows.record import changes
from tests.support import make_api, minio_client

VIDEOS: Final = 100_000
PER_DAY: Final = 1_000
OPEN: Final = 10_000
IN_PROGRESS: Final = 1_000
WRITERS: Final = 32
PER_REQUEST: Final = 1_000
UNCLEAR: Final = Problem(kind="NoReplyError", message="the reply was lost")
FIRST: Final = datetime(2026, 8, 1, tzinfo=UTC)


def claimed(key: str, at: datetime) -> Generation:
    return changes.claimed(key=key, request=VideoRequest(prompt=f"Dunes; {key}"), now=at)


async def write(store: ObjectStore, names: dict[str, bytes]) -> None:
    """Writes many small objects, as fast as the store accepts them."""
    waiting = iter(names.items())

    async def one() -> None:
        for name, data in waiting:
            await store.put(name, data)

    await asyncio.gather(*(one() for _ in range(WRITERS)))


async def write_packed(archive: VideoArchive, names: dict[str, bytes]) -> None:
    """Writes many small objects, a thousand per request. MinIO unpacks them, which takes a third of the time."""
    client, rows = minio_client(archive), list(names.items())

    def send(batch: list[tuple[str, bytes]]) -> None:
        objects = [SnowballObject(name, data=io.BytesIO(data), length=len(data)) for name, data in batch]
        client.upload_snowball_objects(archive.bucket, objects)

    for first in range(0, len(rows), PER_REQUEST):
        await asyncio.to_thread(send, rows[first : first + PER_REQUEST])


async def archive_with(archive: VideoArchive, store: ObjectStore, videos: int) -> list[str]:
    """Writes the records and objects of this many videos, a thousand per day. Returns their keys, newest first."""
    keys: list[str] = []
    for day in range(-(-videos // PER_DAY)):
        objects: dict[str, bytes] = {}
        for number in range(min(PER_DAY, videos - day * PER_DAY)):
            key, at = f"video-{day:03}-{number:04}", FIRST + timedelta(days=day, minutes=number)
            generation = transitions.submitted(claimed(key, at), attempt_number=1, task_id=f"task-{key}", now=at)
            keys.append(key)
            objects[record_name(key)] = generation.model_dump_json(indent=2).encode()
            # For older days it only matters that the folders exist, and writing takes minutes.
            for name in ("video.mp4", "poster.jpg", "generation.json")[
                : 3 if videos - day * PER_DAY <= 3 * PER_DAY else 1
            ]:
                objects[f"{object_names.folder(key, at)}{name}"] = b"-"
        if videos - day * PER_DAY <= 3 * PER_DAY:
            await write(store, objects)  # in this order, because the times in the store count
        else:
            await write_packed(archive, objects)
    return keys[::-1]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("videos", [1_200, VIDEOS])
async def test_newest_videos_of_large_archive_are_found_quickly(videos: int, archive: VideoArchive) -> None:
    async with aclosing(archive.store()) as store:
        newest_first = await archive_with(archive, store, videos)
        ledger = Ledger(store)
        times: list[float] = []
        for _ in range(5):
            began = time.monotonic()
            found = await ledger.newest(50)
            times.append(time.monotonic() - began)
        index = ArchiveIndex(store, ledger)
        began = time.monotonic()
        while len(index.items) < 48:
            await index.current()
        page = time.monotonic() - began
        first_page = sorted(index.items, reverse=True)[:48]
        await index.aclose()
    print(f"\n{videos} videos: the newest 50 in {sorted(times)[2]:.3f} s, the gallery's first page in {page:.3f} s")
    last_written = set(newest_first[: 50 + 2 * WRITERS])  # within a day, the times in the store count
    assert len(found) == 50
    assert {item.key for item in found} <= last_written
    assert set(first_page) <= last_written
    assert sorted(times)[2] < 1
    assert page < 1


@pytest.mark.timeout(1800)
async def test_ten_thousand_open_records_are_processed_within_a_minute(
    video_folder: Path, archive: VideoArchive, prefect_server: object
) -> None:
    """A thousand are in progress, which is the provider's limit. The others are unconfirmed and wait for a user."""
    realistic = SandboxSettings(speed=1, balance=1_000_000, requests_per_minute=1_000_000, data_dir=video_folder)
    with SandboxServer(realistic) as sandbox:
        await collect_ten_thousand(sandbox, archive)


async def submit_tasks(sandbox: SandboxServer) -> list[str]:
    """Submits a thousand tasks that take minutes. Returns their ids."""
    async with httpx.AsyncClient(
        base_url=sandbox.base_url, headers={"Authorization": f"Bearer {sandbox.settings.api_key}"}, timeout=60
    ) as client:
        body = VideoRequest(prompt="Dunes").body()
        replies = [await client.post("/api/v1/generateTask/sora-2", json=body) for _ in range(IN_PROGRESS)]
    return [reply.raise_for_status().json()["data"]["taskId"] for reply in replies]


async def collect_ten_thousand(sandbox: SandboxServer, archive: VideoArchive) -> None:
    stored = await store_blocks(make_api(sandbox, requests_per_minute=9_000), archive)
    before, tasks = datetime.now(UTC) - timedelta(hours=2), await submit_tasks(sandbox)
    objects: dict[str, bytes] = {}
    for number in range(OPEN):
        key = f"open-{number:05}"
        generation = claimed(key, before)
        if number < IN_PROGRESS:
            generation = transitions.submitted(generation, attempt_number=1, task_id=tasks[number], now=before)
        else:
            generation = transitions.unconfirmed(generation, attempt_number=1, problem=UNCLEAR, now=before)
        objects |= {record_name(key): generation.model_dump_json().encode(), marker_name(key): b""}
    await write_packed(archive, objects)
    began, processor = time.monotonic(), time.process_time()
    await collect_videos(api=stored.name, archive=stored.name)
    took, processor = time.monotonic() - began, time.process_time() - processor
    print(f"\n{OPEN} open records: {took:.1f} s, {processor:.1f} s of processor time, including the sandbox")
    assert len(sandbox.record.statuses()) == IN_PROGRESS
    # Not the elapsed time: on a busy machine, that depends on the other processes.
    assert processor < 60
