"""An archive of a hundred thousand videos, and a collector with ten thousand open ones: what people wait for."""

import asyncio
import io
import time
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
from flows.record.generation import Generation, Owner, Problem
from flows.record.ledger import Ledger, marker_name, record_name
from tests.flows.conftest import store_blocks
from tests.support import make_api

VIDEOS: Final = 100_000
A_DAY: Final = 1_000
OPEN: Final = 10_000
UNDER_WAY: Final = 1_000
WRITERS: Final = 32
TOGETHER: Final = 1_000
UNCLEAR: Final = Problem(kind="NoReplyError", message="the reply was lost")
FIRST: Final = datetime(2026, 8, 1, tzinfo=UTC)


def claimed(key: str, at: datetime) -> Generation:
    owner = Owner(host="machine", pid=1, flow_run_id=None)
    return transitions.claim(
        None, key=key, request=VideoRequest(prompt=f"Dunes; {key}"), owner=owner, now=at, lease_seconds=120
    )


async def write(store: ObjectStore, names: dict[str, bytes]) -> None:
    """Many small objects, as fast as the store takes them."""
    waiting = iter(names.items())

    async def one() -> None:
        for name, data in waiting:
            await store.put(name, data)

    await asyncio.gather(*(one() for _ in range(WRITERS)))


async def write_together(archive: VideoArchive, names: dict[str, bytes]) -> None:
    """Many small objects, a thousand to a request: MinIO unpacks them, in a third of the time."""
    client, rows = archive.client(), list(names.items())

    def send(batch: list[tuple[str, bytes]]) -> None:
        objects = [SnowballObject(name, data=io.BytesIO(data), length=len(data)) for name, data in batch]
        client.upload_snowball_objects(archive.bucket, objects)

    for first in range(0, len(rows), TOGETHER):
        await asyncio.to_thread(send, rows[first : first + TOGETHER])


async def archive_with(archive: VideoArchive, store: ObjectStore, videos: int) -> list[str]:
    """Records and objects of so many videos, a thousand a day. The newest key comes first."""
    keys: list[str] = []
    for day in range(-(-videos // A_DAY)):
        objects: dict[str, bytes] = {}
        for number in range(min(A_DAY, videos - day * A_DAY)):
            key, at = f"video-{day:03}-{number:04}", FIRST + timedelta(days=day, minutes=number)
            made = transitions.submitted(claimed(key, at), attempt_number=1, task_id=f"task-{key}", now=at)
            keys.append(key)
            objects[record_name(key)] = made.model_dump_json(indent=2).encode()
            # Of older days nothing is listed but that they are there, and writing takes minutes.
            for name in ("video.mp4", "poster.jpg", "generation.json")[: 3 if videos - day * A_DAY <= 3 * A_DAY else 1]:
                objects[f"{object_names.folder(key, at)}{name}"] = b"-"
        if videos - day * A_DAY <= 3 * A_DAY:
            await write(store, objects)  # in this order: the store's stamps count
        else:
            await write_together(archive, objects)
    return keys[::-1]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("videos", [1_200, VIDEOS])
async def test_the_newest_of_a_large_archive_are_found_at_once(videos: int, archive: VideoArchive) -> None:
    store = archive.store()
    try:
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
    finally:
        await store.aclose()
    print(f"\n{videos} videos: the newest 50 in {sorted(times)[2]:.3f} s, the gallery's first page in {page:.3f} s")
    last_written = set(newest_first[: 50 + 2 * WRITERS])  # within a day the store's stamps count
    assert len(found) == 50
    assert {item.key for item in found} <= last_written
    assert set(first_page) <= last_written
    assert sorted(times)[2] < 1
    assert page < 1


@pytest.mark.timeout(1800)
async def test_ten_thousand_open_records_are_looked_through_in_a_minute(
    video_folder: Path, archive: VideoArchive, prefect_server: object
) -> None:
    """A thousand are under way, which is what the provider takes; the others are unclear, and wait for a person."""
    as_in_life = SandboxSettings(speed=1, balance=1_000_000, requests_per_minute=1_000_000, data_dir=video_folder)
    with SandboxServer(as_in_life) as sandbox:
        await look_through_ten_thousand(sandbox, archive)


async def under_way(sandbox: SandboxServer) -> list[str]:
    """The ids of a thousand tasks that take minutes."""
    async with httpx.AsyncClient(
        base_url=sandbox.base_url, headers={"Authorization": f"Bearer {sandbox.settings.api_key}"}, timeout=60
    ) as client:
        body = VideoRequest(prompt="Dunes").body()
        replies = [await client.post("/api/v1/generateTask/sora-2", json=body) for _ in range(UNDER_WAY)]
    return [reply.raise_for_status().json()["data"]["taskId"] for reply in replies]


async def look_through_ten_thousand(sandbox: SandboxServer, archive: VideoArchive) -> None:
    stored = await store_blocks(make_api(sandbox, requests_per_minute=9_000), archive)
    before, tasks = datetime.now(UTC) - timedelta(hours=2), await under_way(sandbox)
    objects: dict[str, bytes] = {}
    for number in range(OPEN):
        key = f"open-{number:05}"
        made = claimed(key, before)
        if number < UNDER_WAY:
            made = transitions.submitted(made, attempt_number=1, task_id=tasks[number], now=before)
        else:
            made = transitions.unconfirmed(made, attempt_number=1, problem=UNCLEAR, now=before)
        objects |= {record_name(key): made.model_dump_json().encode(), marker_name(key): b""}
    await write_together(archive, objects)
    began, processor = time.monotonic(), time.process_time()
    await collect_videos(api=stored.name, archive=stored.name)
    took, processor = time.monotonic() - began, time.process_time() - processor
    print(f"\n{OPEN} open records: {took:.1f} s, {processor:.1f} s of processor, the sandbox's included")
    assert len(sandbox.record.statuses()) == UNDER_WAY
    # On a machine that others use, time says how much they do.
    assert processor < 60
