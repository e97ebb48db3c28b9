"""Fetching and archiving when the provider, the host or the store misbehaves: only what reads back completely counts
as archived."""

import hashlib
import io
import json
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from apixo import UnexpectedReplyError
from blocks.object_store import ObjectDigest, ObjectStore
from deployments.sandbox import Fault, SandboxServer
from flows.archiving import store_task
from flows.collect_videos import collect
from flows.fetching import FetchedVideo
from flows.media.boxes import C2PA_UUID
from flows.media.media_errors import DamagedVideoError
from flows.media.videos import inspect_video
from flows.record.generation import State
from flows.record.object_names import SIDECAR_NAME
from flows.record.pipeline_errors import ArchiveMismatchError
from flows.resources import PayingResources
from flows.signals.video_artifact import markdown
from tests.flows.conftest import StoredBlocks
from tests.flows.generations import finished, recorded, submit
from tests.flows.media.conftest import VideoFiles
from tests.flows.test_generate_video import objects, read
from tests.support import KITE

Corrupt = Callable[[str, int], None]


@pytest.fixture
def corrupt(monkeypatch: pytest.MonkeyPatch) -> Corrupt:
    """Lets the store corrupt objects whose names have this ending, before they are read back, this many times."""

    def corrupt_objects(ending: str, times: int) -> None:
        left = [times]
        digest = ObjectStore.digest

        async def digest_after_corruption(store: ObjectStore, name: str) -> ObjectDigest | None:
            if name.endswith(ending) and left[0]:
                left[0] -= 1
                junk = b"not what was written"
                store._minio.put_object(store.bucket, name, io.BytesIO(junk), len(junk))
            return await digest(store, name)

        monkeypatch.setattr(ObjectStore, "digest", digest_after_corruption)

    return corrupt_objects


async def test_video_that_reads_back_differently_is_written_again(
    corrupt: Corrupt, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    corrupt("video.mp4", 1)
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    for item in made.objects:
        data = await read(stored, item.name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (item.size_bytes, item.sha256)
    assert len(sandbox.record.submits()) == 1
    assert len(sandbox.record.results()) == 1  # it was still on the disk


async def test_video_that_the_store_corrupts_is_not_archived_until_a_rerun(
    corrupt: Corrupt, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    corrupt("video.mp4", 12)  # the step tries six times, and writes twice each time
    with pytest.raises(ArchiveMismatchError, match="read back as 20 bytes"):
        await stored.generate(KITE, key=key)
    left = await stored.existing(key)
    assert left.state is State.SUCCEEDED
    assert left.objects == ()
    assert await objects(stored, "open/") == [f"open/{key}"]
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    assert made.video is not None
    assert hashlib.sha256(await read(stored, made.video.name)).hexdigest() == made.video.sha256
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("kind", ["http_403", "http_404"])
async def test_expired_result_urls_are_requested_again(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    tries = 2 if kind == "http_403" else 1  # after a 403, the request is repeated with the other User-Agent
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": tries}))
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    requested = [request.call for request in sandbox.record.all() if request.call in ("status", "result")]
    assert requested[-3 - tries :] == ["status", *["result"] * tries, "status", "result"]
    assert len(sandbox.record.submits()) == 1


async def test_generation_stays_open_if_the_provider_takes_its_success_back(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="html_200", times=-1))
    with pytest.raises(DamagedVideoError):
        await stored.generate(KITE, key=key)
    sandbox.faults.clear()
    (task,) = sandbox.tasks.all()
    task.state = "processing"
    with pytest.raises(UnexpectedReplyError, match="as success before"):
        await stored.generate(KITE, key=key)
    left = await stored.existing(key)
    assert left.state is State.SUCCEEDED
    assert await objects(stored, "open/") == [f"open/{key}"]
    assert len(sandbox.record.submits()) == 1


async def test_video_without_a_poster_is_archived_with_a_warning(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_to_draw(*_: object) -> bytes:
        raise ValueError("no frame can be drawn")

    monkeypatch.setattr("flows.media.videos.jpeg", fail_to_draw)
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    assert [item.kind for item in made.objects] == ["video", "sidecar"]
    (warning,) = made.warnings
    assert "there is no poster" in warning
    assert "no frame can be drawn" in warning
    assert len(sandbox.record.submits()) == 1


async def test_archived_objects_are_served_with_descriptive_names_and_metadata(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    made = await stored.generate(KITE, key=key)
    store = stored.archive.store()
    async with httpx.AsyncClient(trust_env=False) as client:
        replies = {item.kind: await client.get(store.signed_url(item.name, seconds=60)) for item in made.objects}
    await store.aclose()
    assert {kind: reply.headers["content-disposition"] for kind, reply in replies.items()} == {
        "video": f'inline; filename="{key}.mp4"',
        "poster": f'inline; filename="{key}-poster.jpg"',
        "sidecar": f'inline; filename="{key}-generation.json"',
    }
    assert {kind: reply.headers["content-type"] for kind, reply in replies.items()} == {
        "video": "video/mp4",
        "poster": "image/jpeg",
        "sidecar": "application/json",
    }
    assert replies["video"].headers["cache-control"] == "max-age=31536000, immutable"
    assert replies["sidecar"].headers["cache-control"] == "no-cache"
    for reply in replies.values():
        assert reply.headers["x-amz-meta-key"] == key
        assert reply.headers["x-amz-meta-task"] == made.task_id
        assert reply.headers["x-amz-meta-sha256"] == hashlib.sha256(reply.content).hexdigest()
    video = next(item for item in made.objects if item.kind == "video")
    assert (video.damaged, video.has_c2pa) == (False, False)


async def test_c2pa_manifest_is_archived_unchanged_and_noted_in_the_sidecar(
    key: str, resources: PayingResources, sandbox: SandboxServer, tmp_path: Path
) -> None:
    found = await submit(key, resources)
    path = VideoFiles(tmp_path).make("v.mp4", movflags="faststart")
    manifest = C2PA_UUID + bytes(1_000)
    content = path.read_bytes() + struct.pack(">I4s", 8 + len(manifest), b"uuid") + manifest
    path.write_bytes(content)
    digest, poster = hashlib.sha256(content).hexdigest(), tmp_path / "poster.jpg"
    video = FetchedVideo(path, digest, len(content), inspect_video(path, poster), poster, ())
    stored = await store_task(found.task, found, [video], resources.store)
    names = {item.kind: item.name for item in stored.objects}
    assert await resources.store.digest(names["video"]) == ObjectDigest(len(content), digest)
    described = json.loads(await resources.store.read(names["sidecar"], max_bytes=100_000) or b"{}")
    assert [item["has_c2pa"] for item in described["objects"] if item["kind"] == "video"] == [True]
    assert described["warnings"] == []


async def test_two_runs_that_replace_the_same_sidecar_both_succeed(
    key: str, resources: PayingResources, sandbox: SandboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a waiting run and the collector, after a run that died before it made a poster."""
    found = await submit(key, resources)
    path, poster = VideoFiles(tmp_path).make("v.mp4", movflags="faststart"), tmp_path / "poster.jpg"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    video = FetchedVideo(path, digest, len(content), inspect_video(path, poster), poster, ())
    name = found.task.folder + SIDECAR_NAME
    await resources.store.put(name, b"{}")
    put_if = resources.store.put_if

    async def put_after_another_run(at: str, data: bytes, *, etag: str | None, **options: Any) -> str:
        if at == name and etag is not None:
            await put_if(at, data, etag=etag, **options)
        return await put_if(at, data, etag=etag, **options)

    monkeypatch.setattr(resources.store, "put_if", put_after_another_run)
    stored = await store_task(found.task, found, [video], resources.store)
    (sidecar,) = [item for item in stored.objects if item.kind == "sidecar"]
    there = await resources.store.digest(name)
    assert there is not None
    assert sidecar.sha256 == there.sha256


async def test_damaged_video_is_archived_unchanged_after_a_day(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="result", kind="truncated_mp4", times=-1))
    entry = await submit(key, resources)
    await finished(sandbox)
    (first,) = await collect([key], resources)
    assert first.what == "error"
    assert "fetch it again" in first.note
    now = resources.clock.now
    resources.clock.now = lambda: now() + timedelta(hours=23)
    (first,) = await collect([key], resources)
    assert first.what == "error"
    resources.clock.now = lambda: now() + timedelta(hours=25)
    (second,) = await collect([key], resources)
    assert second.what == "archived"
    left = await recorded(key, resources)
    video = left.video
    assert video is not None
    assert (video.damaged, video.codec, video.content_type) == (True, None, "application/octet-stream")
    assert "it is archived as it came" in left.warnings[0]
    content = await resources.store.get(video.name)
    assert content is not None
    assert hashlib.sha256(content.data).hexdigest() == video.sha256
    assert content.data[4:8] == b"ftyp"
    described = await resources.store.get(f"{entry.task.folder}generation.json")
    assert described is not None
    assert json.loads(described.data)["warnings"][0] == left.warnings[0]
    assert await resources.ledger.open_keys() == []
    assert len(sandbox.record.submits()) == 1
    text = markdown(left, resources.archive, thumbnail=None)
    assert "| video | damaged, " in text
    assert "| warning | the video is damaged; after a day of retries it is archived as it came" in text


async def test_a_page_in_place_of_the_video_keeps_the_generation_open(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="result", kind="html_200", times=-1))
    await submit(key, resources)
    await finished(sandbox)
    await collect([key], resources)
    now = resources.clock.now
    resources.clock.now = lambda: now() + timedelta(days=2)
    (found,) = await collect([key], resources)
    assert found.what == "error"
    assert await resources.ledger.open_keys() == [key]
    sandbox.faults.clear()
    (found,) = await collect([key], resources)
    assert found.what == "archived"


@pytest.mark.parametrize(
    ("kind", "remark"),
    [
        ("success_upper", ""),
        ("success_completed", "reports task {} as 'completed', an undocumented state"),
        ("result_json_elsewhere", "The result of task {} was in 'videos.url', not in resultJson.resultUrls."),
    ],
)
async def test_result_with_an_unusual_status_reply_is_archived_and_logged(
    key: str,
    resources: PayingResources,
    sandbox: SandboxServer,
    kind: str,
    remark: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    entry = await submit(key, resources)
    await finished(sandbox)
    with caplog.at_level("WARNING"):
        (found,) = await collect([key], resources)
    assert found.what == "archived"
    messages = [record.getMessage() for record in caplog.records if key in record.getMessage()]
    assert any(remark.format(entry.task_id) in message for message in messages) == bool(remark)
    assert len(sandbox.record.submits()) == 1
