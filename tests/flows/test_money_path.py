"""What is paid for is a task: no retry, user, race or late upload pays twice, or mixes up the videos of two tasks."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from apixo import AuthenticationError, Status, Succeeded, VideoRequest
from blocks.object_store import ObjectStore
from deployments.sandbox import Fault, SandboxServer
from flows import steps
from flows.collect_videos import collect
from flows.fetching import FetchedVideo
from flows.record.generation import Generation, PaidTask, State
from flows.record.ledger import Entry
from flows.record.pipeline_errors import SupersededError, UnconfirmedError
from flows.resolution import ResolutionError, allow_resubmission, load_generation, resolve_as_task
from flows.resources import PayingResources
from flows.submission import Submission
from flows.task_end import record_end
from tests.flows.generations import SUBMARINE, charged, recorded
from tests.support import KITE, made_outside, unique


async def finished(task_id: str, resources: PayingResources) -> Succeeded:
    while not isinstance(status := await resources.client.status_once(task_id), Succeeded):
        await asyncio.sleep(0.05)
    return status


async def fetched(paid: PaidTask, resources: PayingResources, folder: Path) -> tuple[Entry, list[FetchedVideo] | None]:
    entry, status = await record_end(
        paid, await resources.ledger.existing(paid.key), await finished(paid.task_id, resources), resources
    )
    return entry, await steps.fetch.fn(paid, entry, status, folder, resources)


async def archived_hash(found: Generation, resources: PayingResources) -> str:
    assert found.video is not None
    digest = await resources.store.digest(found.video.name)
    assert digest is not None
    return digest.sha256


async def two_tasks(key: str, resources: PayingResources) -> tuple[PaidTask, PaidTask]:
    """Makes a key whose task a user replaces with another one, while a run still works on the first."""
    first = (await Submission(key, KITE, resources).run()).generation.task
    other = await made_outside(resources.api, SUBMARINE)
    second = (await resolve_as_task(await load_generation(key, resources.ledger), other, resources)).task
    return first, second


async def test_video_of_the_current_task_is_recorded_and_the_superseded_one_alongside(
    key: str, resources: PayingResources, sandbox: SandboxServer, tmp_path: Path
) -> None:
    first, second = await two_tasks(key, resources)
    known, superseded = await fetched(first, resources, tmp_path / "a")
    with pytest.raises(SupersededError, match=f"has the task {second.task_id}, not {first.task_id}"):
        await steps.archive.fn(first, known, superseded, resources)
    entry, videos = await fetched(second, resources, tmp_path / "b")
    assert videos is not None
    made = await steps.archive.fn(second, entry, videos, resources)
    assert (made.state, made.task_id) == (State.ARCHIVED, second.task_id)
    assert made.video is not None
    assert made.video.sha256 == videos[0].sha256 == await archived_hash(made, resources)
    (superseded_task,) = made.attempt.superseded
    assert superseded is not None
    assert superseded_task.task_id == first.task_id
    assert superseded_task.objects[0].sha256 == superseded[0].sha256
    assert {item.name for item in superseded_task.objects}.isdisjoint(item.name for item in made.objects)


async def test_a_late_upload_of_a_superseded_task_overwrites_nothing(
    key: str, resources: PayingResources, sandbox: SandboxServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await two_tasks(key, resources)
    known, superseded = await fetched(first, resources, tmp_path / "a")
    create, reached, gate = ObjectStore.create_file, asyncio.Event(), asyncio.Event()

    async def create_late(store: ObjectStore, name: str, path: Path, **options: Any) -> bool:
        if str(path).startswith(str(tmp_path / "a")):
            reached.set()
            await gate.wait()
        return await create(store, name, path, **options)

    monkeypatch.setattr(ObjectStore, "create_file", create_late)
    late = asyncio.create_task(steps.archive.fn(first, known, superseded, resources))
    await reached.wait()
    made = await steps.archive.fn(second, *await fetched(second, resources, tmp_path / "b"), resources)
    gate.set()
    with pytest.raises(SupersededError):
        await late
    again = await recorded(key, resources)
    assert again.objects == made.objects
    assert made.video is not None
    assert await archived_hash(again, resources) == made.video.sha256


async def test_first_archived_bytes_win_if_two_runs_fetch_different_bytes_of_one_task(
    key: str, resources: PayingResources, sandbox: SandboxServer, tmp_path: Path
) -> None:
    """A host may encode a result again, and different versions of Pillow draw different posters."""
    paid = (await Submission(key, KITE, resources).run()).generation.task
    entry, ours = await fetched(paid, resources, tmp_path / "a")
    other = await made_outside(resources.api, SUBMARINE)
    theirs = await steps.fetch.fn(
        paid.model_copy(update={"task_id": other}), entry, await finished(other, resources), tmp_path / "b", resources
    )
    assert ours is not None
    assert theirs is not None
    assert ours[0].sha256 != theirs[0].sha256
    await resources.store.create_file(f"{paid.folder}video.mp4", theirs[0].path, content_type="video/mp4")
    await resources.store.put(f"{paid.folder}poster.jpg", b"drawn by another version")
    await resources.store.put(f"{paid.folder}generation.json", b'{"written": "by another version"}')
    made = await steps.archive.fn(paid, entry, ours, resources)
    assert made.video is not None
    assert made.video.sha256 == theirs[0].sha256
    for item in made.objects:
        stored = await resources.store.get(item.name)
        assert stored is not None
        assert (len(stored.data), hashlib.sha256(stored.data).hexdigest()) == (item.size_bytes, item.sha256)
    assert any("stored this result first" in warning for warning in made.warnings)


async def test_racing_archivers_of_one_task_leave_a_record_that_matches_the_objects(
    key: str, resources: PayingResources, sandbox: SandboxServer, tmp_path: Path
) -> None:
    paid = (await Submission(key, KITE, resources).run()).generation.task
    prepared = [await fetched(paid, resources, tmp_path / str(number)) for number in range(6)]
    made = await asyncio.gather(*(steps.archive.fn(paid, *known, resources) for known in prepared))
    assert len({item.model_dump_json() for item in made}) == 1
    assert made[0].video is not None
    assert await archived_hash(made[0], resources) == made[0].video.sha256


async def test_one_task_is_never_in_two_records(resources: PayingResources, sandbox: SandboxServer) -> None:
    keys = [unique("a") for _ in range(8)]
    for key in keys:
        sandbox.faults.add(Fault(call="submit", kind="reset_after"))
        with pytest.raises(UnconfirmedError):
            await Submission(key, KITE, resources).run()
    task_id = sandbox.record.charged()[0].task_id or ""
    seen = [await load_generation(key, resources.ledger) for key in keys]
    results = await asyncio.gather(
        *(resolve_as_task(found, task_id, resources) for found in seen), return_exceptions=True
    )
    assert sum(isinstance(result, Generation) for result in results) == 1
    assert all(isinstance(result, Generation | ResolutionError) for result in results)
    records = [await recorded(key, resources) for key in keys]
    assert [task_id in record.task_ids for record in records].count(True) == 1


async def test_task_named_for_another_key_by_mistake_can_be_returned_to_its_owner(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    """The reply to a paid call names a task that a user has just bound to another generation."""
    other = f"{key}-other"
    sandbox.faults.add(Fault(call="submit", kind="reset_before"))
    with pytest.raises(UnconfirmedError):
        await Submission(other, KITE, resources).run()
    sandbox.faults.add(Fault(call="submit", kind="slow", seconds=1))
    paying = asyncio.create_task(Submission(key, KITE, resources).run())
    task_id = await charged(sandbox)
    await resolve_as_task(await load_generation(other, resources.ledger), task_id, resources)
    with pytest.raises(UnconfirmedError, match=f"lists under {other}"):
        await paying
    right = await made_outside(resources.api)
    await resolve_as_task(await load_generation(other, resources.ledger), right, resources)
    assert (await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)).task_id == task_id
    assert (await Submission(key, KITE, resources).run()).generation.task_id == task_id


async def test_task_of_a_process_that_died_before_recording_it_is_found_automatically(
    key: str, resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="hang", seconds=30))
    resources.api.submit_timeout_seconds = 0.3
    monkeypatch.setattr("flows.paid_call.call.transitions.submitted", _raise_killed)
    monkeypatch.setattr("flows.paid_call.call.transitions.unconfirmed", _raise_killed)
    with pytest.raises(BaseException, match="killed"):
        await Submission(key, KITE, resources).run()
    monkeypatch.undo()
    task_id = await made_outside(resources.api)
    await resources.ledger.tasks.bind(task_id, key, 1)
    found = (await Submission(key, KITE, resources).run()).generation
    assert (found.state, found.task_id, found.attempt.named_by) == (State.SUBMITTED, task_id, "reply")
    assert len(sandbox.record.submits()) == 2


def _raise_killed(*_: object, **__: object) -> Generation:
    raise RuntimeError("killed")


async def test_rejected_api_key_leaves_no_collector_tasks_running(
    resources: PayingResources, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await Submission(unique("k"), VideoRequest(prompt=f"kite {number}"), resources).run()
    requested, poll = 0, resources.client.status_once

    async def reject_the_first(task_id: str, *, model: str) -> Status:
        nonlocal requested
        requested += 1
        if requested == 1:
            raise AuthenticationError("no")
        await asyncio.sleep(1)
        return await poll(task_id, model=model)

    monkeypatch.setattr(resources.client, "status_once", reject_the_first)
    before = asyncio.all_tasks()
    with pytest.raises(AuthenticationError):
        await collect(None, resources)
    await resources.events.aclose()  # its connection belongs to the run
    assert asyncio.all_tasks() - before == set()


async def unconfirmed_with_bound_task(key: str, resources: PayingResources, sandbox: SandboxServer) -> str:
    """Makes an unconfirmed generation whose receiver bound the callback's task, and died before recording it."""
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await Submission(key, KITE, resources).run()
    task_id = sandbox.record.charged()[0].task_id or ""
    await resources.ledger.tasks.bind(task_id, key, 1, named_by="callback")
    return task_id


async def test_resubmission_is_rejected_if_the_store_knows_the_accepted_task(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await unconfirmed_with_bound_task(key, resources, sandbox)
    with pytest.raises(ResolutionError, match=f"APIXO accepted it as task {task_id}"):
        await allow_resubmission(await load_generation(key, resources.ledger), resources)
    assert (await recorded(key, resources)).task_id == task_id
    assert len(sandbox.record.submits()) == 1


async def test_a_rerun_and_the_collector_find_the_task_that_the_store_knows(
    key: str, resources: PayingResources, sandbox: SandboxServer
) -> None:
    task_id = await unconfirmed_with_bound_task(key, resources, sandbox)
    found = (await Submission(key, KITE, resources).run()).generation
    assert (found.state, found.task_id, found.attempt.named_by) == (State.SUBMITTED, task_id, "callback")
    sandbox.record.clear()
    other = await unconfirmed_with_bound_task(f"{key}-other", resources, sandbox)
    (collected,) = await collect([f"{key}-other"], resources)
    assert collected.task_id == other
    assert collected.what in ("pending", "archived")
