"""Fetch and archive where the other sides change their mind: only what was read back whole counts as archived."""

import hashlib
import io
from collections.abc import Callable

import pytest

from apixo import UnexpectedReplyError
from blocks.object_store import ObjectDigest, ObjectStore
from deployments.sandbox import Fault, SandboxServer
from flows.media.errors import DamagedVideoError
from flows.record.errors import ArchiveMismatchError
from flows.record.generation import State
from tests.flows.conftest import StoredBlocks
from tests.flows.test_generate_video import objects, read
from tests.support import KITE

Spoil = Callable[[str, int], None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Has the store spoil the objects whose names end so, before they are read back, this many times."""

    def spoiled(ending: str, times: int) -> None:
        left = [times]
        digest = ObjectStore.digest

        async def after_a_fault_of_the_disk(store: ObjectStore, name: str) -> ObjectDigest | None:
            if name.endswith(ending) and left[0]:
                left[0] -= 1
                junk = b"not what was written"
                store._minio.put_object(store.bucket, name, io.BytesIO(junk), len(junk))
            return await digest(store, name)

        monkeypatch.setattr(ObjectStore, "digest", after_a_fault_of_the_disk)

    return spoiled


async def test_a_video_that_reads_back_otherwise_is_written_again(
    spoil: Spoil, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    spoil("video.mp4", 1)
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    for item in made.objects:
        data = await read(stored, item.name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (item.size_bytes, item.sha256)
    assert len(sandbox.record.submits()) == 1
    assert len(sandbox.record.results()) == 1  # it lay on the disk still


async def test_a_store_that_keeps_nothing_as_it_was_archives_nothing_and_a_rerun_does(
    spoil: Spoil, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    spoil("video.mp4", 12)  # as often as the step tries, twice each time
    with pytest.raises(ArchiveMismatchError, match="read back as 20 bytes"):
        await stored.generate(KITE, key=key)
    left = await stored.recorded(key)
    assert left is not None
    assert left.state is State.SUCCEEDED
    assert left.objects == ()
    assert await objects(stored, "open/") == [f"open/{key}"]
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    assert made.video is not None
    assert hashlib.sha256(await read(stored, made.video.name)).hexdigest() == made.video.sha256
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("kind", ["http_403", "http_404"])
async def test_addresses_that_no_longer_hold_are_asked_for_anew(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    tries = 2 if kind == "http_403" else 1  # a host that refuses is asked under our other name as well
    sandbox.faults.add(Fault.model_validate({"call": "result", "kind": kind, "times": tries}))
    assert (await stored.generate(KITE, key=key)).state is State.ARCHIVED
    asked = [request.call for request in sandbox.record.all() if request.call in ("status", "result")]
    assert asked[-3 - tries :] == ["status", *["result"] * tries, "status", "result"]
    assert len(sandbox.record.submits()) == 1


async def test_a_provider_that_takes_its_success_back_leaves_the_video_to_a_rerun(
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
    left = await stored.recorded(key)
    assert left is not None
    assert left.state is State.SUCCEEDED
    assert await objects(stored, "open/") == [f"open/{key}"]
    assert len(sandbox.record.submits()) == 1


async def test_a_video_without_a_poster_is_archived_and_says_so(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: object) -> bytes:
        raise DamagedVideoError("no frame can be drawn")

    monkeypatch.setattr("flows.archiving.poster_jpeg", none)
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    assert [item.kind for item in made.objects] == ["video", "sidecar"]
    assert made.warnings == ("there is no poster: no frame can be drawn",)
    assert len(sandbox.record.submits()) == 1
