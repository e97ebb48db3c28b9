"""The callback receiver as the provider sees it. Whatever is sent, only what the API confirms changes the ledger."""

import asyncio
import time
from typing import Any, Final

import pytest
from prefect.blocks.system import Secret

import deployments.receiver.app
from apixo import Status, Succeeded, VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.receiver.app import open_app
from deployments.receiver.queue import CallbackQueue, QueueFullError
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import State
from flows.record.pipeline_errors import UnconfirmedError
from flows.resources import PayingResources
from flows.signals.handed_over import opened, sealed
from flows.task_end import wait_for_task
from tests.flows.generations import allow, finished, lost, recorded, run_collector, submit
from tests.flows.signals.test_events import read_events
from tests.support import make_archive
from tests.support.receiver import Answer, Receiver, post, receiving, records
from tests.support.store_gate import StoreGate, nothing

PROVIDER_WAITS_SECONDS: Final = 30
"""APIXO: a callback that is not answered with 200 by then is repeated."""


async def wait_for_callbacks(sandbox: SandboxServer, task_id: str, times: int = 1) -> list[int | None]:
    """Waits for this many callbacks about a task and returns the status codes that the receiver answered."""
    task = sandbox.tasks.get(task_id)
    assert task is not None
    async with asyncio.timeout(60):
        while len(task.callbacks) < times:
            await asyncio.sleep(0.02)
    return [attempt.status for attempt in task.callbacks]


FAULTS: list[tuple[str | None, int, bool]] = [
    (None, 1, True), ("twice", 2, True), ("early", 1, False), ("junk", 1, True), ("late", 1, True), ("drop", 0, False),
]  # fmt: skip
"""A fault of the sandbox's callbacks, how many arrive, and whether one of them reports the end of the task."""


@pytest.mark.parametrize(("kind", "calls", "reports_end"), FAULTS, ids=[str(kind) for kind, _, _ in FAULTS])
async def test_video_is_archived_once_for_any_kind_of_callback(
    kind: str | None,
    calls: int,
    reports_end: bool,
    key: str,
    receiver: Receiver,
    sandbox: SandboxServer,
    prefect_server: PrefectServer,
) -> None:
    if kind is not None:
        sandbox.faults.add(Fault.model_validate({"call": "callback", "kind": kind, "seconds": 0.5}))
    generation = await submit(key, receiver.resources)
    before = await records(receiver.resources)
    assert await wait_for_callbacks(sandbox, generation.task_id or "", calls) == [200] * calls
    await finished(sandbox)
    if reports_end:
        events = await read_events(prefect_server, key, "apixo.task.finished")
        payload = events[-1]["payload"]
        assert isinstance(opened(payload.pop("end"), generation.task_id or "", receiver.api), Succeeded)
        assert payload == {"key": key, "task_id": generation.task_id, "api": "a-block", "archive": "a-block"}
    assert await records(receiver.resources) == before
    (collected,) = await run_collector(receiver.resources)
    assert collected.what == "archived"
    assert (await receiver.call(key, generation.task_id)).said == "already handled"
    assert len(sandbox.record.submits()) == 1
    assert sandbox.faults.pending() == []


async def test_waiting_run_uses_the_status_from_the_receiver_without_polling(
    key: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources, polled = receiver.resources, list[str]()
    original_status_once = resources.client.status_once

    async def status_once(task_id: str, **how: Any) -> Status:
        polled.append(task_id)
        return await original_status_once(task_id, **how)

    monkeypatch.setattr(resources.client, "status_once", status_once)
    resources.api.initial_wait_seconds = 60
    resources.subscriber.subscribe()
    generation = await submit(key, resources)
    end = await asyncio.wait_for(wait_for_task(generation.task, generation, resources), 30)
    assert isinstance(end, Succeeded)
    assert end.result_urls[0].startswith(receiver.api.base_url)
    assert polled == []


async def test_forged_status_is_ignored_and_the_run_polls(key: str, receiver: Receiver, sandbox: SandboxServer) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    resources = receiver.resources
    resources.api.initial_wait_seconds = 60
    generation = await submit(key, resources)
    await finished(sandbox)
    forger = receiver.api.model_copy(update={"callback_secret": Secret(value="f" * 32)})
    forged = Succeeded(
        task_id=generation.task_id or "", state="success", result_urls=("https://evil.example.com/a.mp4",)
    )
    resources.subscriber.notify(key, sealed(forged, forger))
    end = await asyncio.wait_for(wait_for_task(generation.task, generation, resources), 30)
    assert isinstance(end, Succeeded)
    assert end.result_urls[0].startswith(receiver.api.base_url)
    assert len(sandbox.record.statuses(generation.task_id)) == 1


@pytest.mark.parametrize("kind", ["reset_after", "hang_after", "http_500_after", "junk"])
async def test_callback_reconciles_a_lost_reply(
    kind: str, key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    """If the reply merely takes longer than the video, the run itself continues. Otherwise, the collector does."""
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    if kind == "hang_after":
        await submit(key, receiver.resources)
    else:
        with pytest.raises(UnconfirmedError):
            await submit(key, receiver.resources)
    (paid,) = sandbox.record.charged()
    assert await wait_for_callbacks(sandbox, paid.task_id or "") == [200]
    record = await recorded(key, receiver.resources)
    assert (record.state, record.task_id) == (State.SUBMITTED, paid.task_id)
    (collected,) = await run_collector(receiver.resources)
    assert collected.what == "archived"
    assert len(sandbox.record.submits()) == 1


async def test_late_callback_of_first_attempt_is_recorded_in_that_attempt(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="late", seconds=2))
    first = await lost(key, receiver.resources, sandbox)
    while sandbox.faults.pending():  # until the first task has ended; its callback will be late
        await asyncio.sleep(0.02)
    await allow(key, receiver.resources)
    second = (await submit(key, receiver.resources)).task_id or ""
    assert await wait_for_callbacks(sandbox, second) == [200]
    assert (await recorded(key, receiver.resources)).attempts[0].task_id is None
    assert await wait_for_callbacks(sandbox, first) == [200]
    record = await recorded(key, receiver.resources)
    assert [attempt.task_id for attempt in record.attempts] == [first, second]
    assert (record.state, record.task_id) == (State.SUBMITTED, second)
    assert [task.request.active_callback_url for task in sandbox.tasks.all()] == [
        receiver.api.callback_url_for(key, 1),
        receiver.api.callback_url_for(key, 2),
    ]


async def test_200_concurrent_duplicate_callbacks_poll_once(
    key: str, receiver: Receiver, sandbox: SandboxServer, prefect_server: PrefectServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = (await submit(key, receiver.resources)).task_id
    await finished(sandbox)
    sandbox.faults.add(Fault(call="status", kind="slow", seconds=0.5))
    before = await records(receiver.resources)
    answers = await asyncio.gather(*(receiver.call(key, task_id) for _ in range(200)))
    assert {(answer.status, answer.said) for answer in answers} == {(200, "finished")}
    assert len(sandbox.record.statuses()) == 1
    events = await read_events(prefect_server, key, "apixo.task.finished")
    assert [event["event"] for event in events].count("apixo.task.finished") == 1
    assert await records(receiver.resources) == before
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("ends", [30, pytest.param(100, marks=pytest.mark.attack)])
async def test_many_concurrent_callbacks_are_answered_long_before_provider_retries(
    ends: int, key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    """As many callbacks name unknown tasks, half of them with a known key. APIXO waits 30 s for an answer."""
    keys = [f"{key}-{number:02}" for number in range(ends)]
    sandbox.faults.add(Fault(call="callback", kind="drop", times=-1))
    async with asyncio.timeout(60):
        tasks = {name: (await submit(name, receiver.resources)).task_id for name in keys}
    await finished(sandbox)
    seconds: list[float] = []

    async def timed(name: str, task_id: str | None, attempt: int = 1) -> Answer:
        began = time.monotonic()
        answer = await receiver.call(name, task_id, attempt=attempt)
        seconds.append(time.monotonic() - began)
        return answer

    answers = await asyncio.gather(
        *(timed(name, tasks[name]) for name in keys),
        *(timed(f"{name}.none", "task_0ddba11") for name in keys[: ends // 2]),
        *(timed(name, tasks[name], attempt=2) for name in keys[: ends // 2]),
    )
    assert [answer.status for answer in answers] == [200] * 2 * ends
    assert [answer.said for answer in answers] == ["finished"] * ends + ["unknown"] * ends
    assert max(seconds) < PROVIDER_WAITS_SECONDS / 2 + 1  # anything over half would get a 503 and be called again
    assert len(sandbox.record.statuses()) == len(sandbox.record.submits()) == ends


async def test_callbacks_during_a_poll_cause_exactly_one_more_poll(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    """The first poll may be from before the task ended. 200 such callbacks cause just one more poll."""
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    longest = VideoRequest(prompt="A long video", duration=12)  # the first poll has to come before its end
    task_id = (await submit(key, receiver.resources, longest)).task_id
    sandbox.faults.add(Fault(call="status", kind="slow", seconds=2))
    early = asyncio.create_task(receiver.call(key, task_id))
    await finished(sandbox)
    answers = await asyncio.gather(*(receiver.call(key, task_id) for _ in range(200)))
    assert (await early).said == "pending"
    assert {(answer.status, answer.said) for answer in answers} == {(200, "finished")}
    assert len(sandbox.record.statuses()) == 2


@pytest.mark.parametrize("kind", ["http_503", "http_401"])
async def test_unavailable_api_gets_503_and_repeated_callback_succeeds(
    kind: str, key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = await lost(key, receiver.resources, sandbox)
    await finished(sandbox)
    before = await records(receiver.resources)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
    unavailable = await receiver.call(key, task_id)
    assert (unavailable.status, unavailable.said, unavailable.headers["retry-after"]) == (503, "unavailable", "10")
    assert await records(receiver.resources) == before
    assert (await receiver.call(key, task_id)).said == "finished"
    assert len(sandbox.record.submits()) == 1


async def test_unavailable_store_gets_503_and_repeated_callback_succeeds(
    api: ApixoApi, minio: ObjectStoreServer, prefect_server: PrefectServer, key: str, sandbox: SandboxServer
) -> None:
    with StoreGate(minio.endpoint) as gate:
        direct = make_archive(minio)
        async with receiving(api, direct.model_copy(update={"endpoint": gate.endpoint}), submitting=direct) as receiver:
            sandbox.faults.add(Fault(call="callback", kind="drop"))
            task_id = await lost(key, receiver.resources, sandbox)
            await finished(sandbox)
            before = await records(receiver.resources)
            gate.shut = lambda _: True
            unavailable = await receiver.call(key, task_id)
            assert (unavailable.status, unavailable.headers["retry-after"]) == (503, "10")
            assert await receiver.healthy()
            assert sandbox.record.statuses() == []
            assert await records(receiver.resources) == before
            gate.shut = nothing
            assert (await receiver.call(key, task_id)).said == "finished"
            assert (await recorded(key, receiver.resources)).task_id == task_id


async def test_slow_callback_gets_503_and_finishes_in_background_during_shutdown(
    api: ApixoApi,
    archive: VideoArchive,
    resources: PayingResources,
    key: str,
    sandbox: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deployments.receiver.app, "ANSWER_SECONDS", 0.2)
    async with receiving(api, archive) as receiver:
        sandbox.faults.add(Fault(call="callback", kind="drop"))
        task_id = await lost(key, receiver.resources, sandbox)
        sandbox.faults.add(Fault(call="status", kind="slow", seconds=4))
        began = time.monotonic()
        accepted = await receiver.call(key, task_id)
        assert (accepted.status, accepted.said) == (503, "unfinished")  # nothing is recorded yet
        assert time.monotonic() - began < 4
        assert (await recorded(key, resources)).state is State.UNCONFIRMED
    assert (await recorded(key, resources)).task_id == task_id


async def test_full_queue_gets_503_with_retry_after(
    key: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise QueueFullError

    monkeypatch.setattr(CallbackQueue, "take", full)
    answer = await receiver.call(key, "task_1")
    assert (answer.status, answer.said, answer.headers["retry-after"]) == (503, "busy", "10")


async def test_unexpected_error_is_logged_and_not_disclosed(
    key: str,
    receiver: Receiver,
    sandbox: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(deployments.receiver.app, "answer_call", fail)
    broken = await receiver.call(key, "task_1")
    assert (broken.status, broken.body) == (500, b'{"status":"error"}')
    assert "ZeroDivisionError: a secret of ours" in caplog.text
    assert await receiver.healthy()


async def test_unreadable_record_is_an_error_and_stays_unchanged(
    key: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await receiver.resources.store.put(f"ledger/{key}.json", b"half a rec")
    assert (await receiver.call(key, "task_1")).status == 500
    assert "cannot be read" in caplog.text
    assert "Traceback" not in caplog.text
    assert await records(receiver.resources) == {f"ledger/{key}.json": b"half a rec"}


async def test_public_url_may_have_a_path(
    api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    """A reverse proxy in front may strip that path or not."""
    async with receiving(api, archive, path="/hooks/sora") as receiver:
        await submit(key, receiver.resources)
        assert receiver.path(key).startswith("/hooks/sora/apixo/")
        for path in (receiver.path(key), receiver.path(key).removeprefix("/hooks/sora")):
            assert (await receiver.send(post(path))).status == 200


async def test_receiver_does_not_start_without_a_callback_secret(receiver: Receiver) -> None:
    block = receiver.api.model_copy(update={"callback_secret": None})
    with pytest.raises(SetupError, match=r"block 'mine' has no callback_secret.*APIXO_CALLBACK_SECRET.*--name mine"):
        await open_app(block, receiver.resources.archive, api="mine").__aenter__()
