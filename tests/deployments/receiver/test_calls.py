"""The callback receiver as the internet sees it. Whatever is sent, the ledger changes only by what the API confirms."""

import asyncio
import gzip
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

import deployments.receiver.calls
from apixo import NoReplyError, VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.connection import SetupError
from deployments.local.object_store import ObjectStoreServer
from deployments.local.prefect_server import PrefectServer
from deployments.receiver.calls import MOST_BODY_BYTES, create_app
from deployments.receiver.queue import CallbackQueue, QueueFullError
from deployments.sandbox import Fault, SandboxServer
from flows.record.errors import UnconfirmedError
from flows.record.generation import State
from flows.resources import Resources
from tests.flows.signals.test_events import read_events
from tests.flows.test_callbacks import bring_home
from tests.flows.test_collect_videos import finished
from tests.flows.test_resolution import abandoned_claim, allow, lost, recorded, submit
from tests.support import made_outside, make_archive
from tests.support.receiver import Receiver, named, post, receiving, records
from tests.support.store_gate import StoreGate, nothing


@pytest.fixture
async def receiver(api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer) -> AsyncIterator[Receiver]:
    """A receiver for this test's sandbox and archive. The sandbox calls it."""
    async with receiving(api, archive, name="a-block") as running:
        yield running


async def called(sandbox: SandboxServer, task_id: str, times: int = 1) -> list[int | None]:
    """The receiver's answers to the sandbox's calls about a task, once there are that many."""
    task = sandbox.tasks.get(task_id)
    assert task is not None
    async with asyncio.timeout(20):
        while len(task.callbacks) < times:
            await asyncio.sleep(0.02)
    return [attempt.status for attempt in task.callbacks]


FAULTS: list[tuple[str | None, int, bool]] = [
    (None, 1, True), ("twice", 2, True), ("early", 1, False), ("junk", 1, True), ("late", 1, True), ("drop", 0, False),
]  # fmt: skip
"""How the sandbox calls, how often, and whether a call tells of the end."""


@pytest.mark.parametrize(("kind", "calls", "tells"), FAULTS, ids=[str(kind) for kind, _, _ in FAULTS])
async def test_however_the_provider_calls_the_video_comes_home(
    kind: str | None,
    calls: int,
    tells: bool,
    key: str,
    receiver: Receiver,
    sandbox: SandboxServer,
    prefect_server: PrefectServer,
) -> None:
    if kind is not None:
        sandbox.faults.add(Fault.model_validate({"call": "callback", "kind": kind, "seconds": 0.5}))
    made = await submit(key, receiver.resources)
    before = await records(receiver.resources)
    assert await called(sandbox, made.task_id or "", calls) == [200] * calls
    await finished(sandbox)
    if tells:
        events = await read_events(prefect_server, key, "apixo.task.finished")
        assert events[-1]["payload"] == {"key": key, "task_id": made.task_id, "api": "a-block", "archive": "a-block"}
    assert await records(receiver.resources) == before
    (collected,) = await bring_home(receiver.resources)
    assert collected.what == "archived"
    assert (await receiver.ring(key, made.task_id)).said == "already handled"
    assert len(sandbox.record.submits()) == 1
    assert sandbox.faults.pending() == []


@pytest.mark.parametrize("kind", ["reset_after", "hang_after", "http_500_after", "junk"])
async def test_a_lost_reply_reconciles_itself(kind: str, key: str, receiver: Receiver, sandbox: SandboxServer) -> None:
    """With a reply that takes longer than the video, the run itself goes on; else the collector does."""
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    if kind == "hang_after":
        await submit(key, receiver.resources)
    else:
        with pytest.raises(UnconfirmedError):
            await submit(key, receiver.resources)
    (paid,) = sandbox.record.charged()
    assert await called(sandbox, paid.task_id or "") == [200]
    found = await recorded(key, receiver.resources)
    assert (found.state, found.task_id) == (State.SUBMITTED, paid.task_id)
    (collected,) = await bring_home(receiver.resources)
    assert collected.what == "archived"
    assert len(sandbox.record.submits()) == 1


async def test_a_claim_whose_owner_died_right_after_paying_reconciles_itself(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    await abandoned_claim(key, receiver.resources)
    url = receiver.api.callback_url_for(key)
    task_id = await made_outside(receiver.api, callback_url=url)
    assert await called(sandbox, task_id) == [200]
    found = await recorded(key, receiver.resources)
    assert (found.state, found.task_id) == (State.SUBMITTED, task_id)
    assert (await submit(key, receiver.resources)).task_id == task_id
    assert len(sandbox.record.submits()) == 1


async def test_a_late_callback_of_the_first_attempt_is_written_to_the_first_attempt(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="late", seconds=2))
    first = await lost(key, receiver.resources, sandbox)
    while sandbox.faults.pending():  # the first task has ended, and its call will be late
        await asyncio.sleep(0.02)
    await allow(key, receiver.resources)
    second = (await submit(key, receiver.resources)).task_id or ""
    assert await called(sandbox, second) == [200]
    assert (await recorded(key, receiver.resources)).attempts[0].task_id is None
    assert await called(sandbox, first) == [200]
    found = await recorded(key, receiver.resources)
    assert [attempt.task_id for attempt in found.attempts] == [first, second]
    assert (found.state, found.task_id) == (State.SUBMITTED, second)
    assert [task.request.notify for task in sandbox.tasks.all()] == [
        receiver.api.callback_url_for(key, 1),
        receiver.api.callback_url_for(key, 2),
    ]


TOKEN = "f" * 64
Hostile = Callable[[Receiver, str, str, str], bytes]
"""A request made from the receiver, the key of an unconfirmed generation, its true task, and another key's task."""

HOSTILE: dict[str, tuple[Hostile, int]] = {
    "forged token": (lambda r, k, t, o: post(f"/apixo/{k}/{TOKEN}", named(t)), 404),
    "no token": (lambda r, k, t, o: post(f"/apixo/{k}", named(t)), 404),
    "empty token": (lambda r, k, t, o: post(f"/apixo/{k}/", named(t)), 404),
    "half a token": (lambda r, k, t, o: post(r.path(k)[:-32], named(t)), 404),
    "token and more": (lambda r, k, t, o: post(r.path(k) + "0", named(t)), 404),
    "token and a line feed": (lambda r, k, t, o: post(r.path(k) + "%0A", named(t)), 404),
    "token and a slash": (lambda r, k, t, o: post(r.path(k) + "/", named(t)), 404),
    "upper-case token": (lambda r, k, t, o: post(f"/apixo/{k}/{r.api.callback_token(k).upper()}", named(t)), 404),
    "another key's token": (lambda r, k, t, o: post(f"/apixo/{k}/{r.api.callback_token(k + '.x')}", named(t)), 404),
    "attempt 2's token": (lambda r, k, t, o: post(f"/apixo/{k}/{r.api.callback_token(k, 2)}", named(t)), 404),
    "attempt 1's token": (lambda r, k, t, o: post(f"/apixo/{k}/2/{r.api.callback_token(k)}", named(t)), 404),
    "attempt 1 by number": (lambda r, k, t, o: post(f"/apixo/{k}/1/{r.api.callback_token(k)}", named(t)), 404),
    "attempt 02": (lambda r, k, t, o: post(f"/apixo/{k}/02/{r.api.callback_token(k, 2)}", named(t)), 404),
    "attempt 2 as a slash": (lambda r, k, t, o: post(r.path(k, 2).replace("/2/", "%2F2/"), named(t)), 404),
    "an attempt there is not": (lambda r, k, t, o: post(r.path(k, 7), named(t)), 404),
    "a number without end": (lambda r, k, t, o: post(f"/apixo/{k}/{'9' * 9_000}/{TOKEN}", named(t)), 404),
    "a number that is none": (lambda r, k, t, o: post(f"/apixo/{k}/%D9%A2/{TOKEN}", named(t)), 404),
    "an unknown key": (lambda r, k, t, o: post(r.path(f"{k}.none"), named(t)), 404),
    "a key that is none": (lambda r, k, t, o: post(f"/apixo/..%2F..%2Fledger/{TOKEN}", named(t)), 404),
    "a key in capitals": (lambda r, k, t, o: post(r.path(k.upper()), named(t)), 404),
    "another alphabet": (lambda r, k, t, o: post("/apixo/%C3%A9/%E2%82%AC", named(t)), 404),
    "no alphabet": (lambda r, k, t, o: post(f"/apixo/{k}/%FF%FE%00", named(t)), 404),
    "raw bytes in the path": (lambda r, k, t, o: b"POST /apixo/\xff\xfe/x HTTP/1.1\r\nHost: r\r\n\r\n", 400),
    "another generation's task": (lambda r, k, t, o: post(r.path(k), named(o)), 200),
    "a task nobody knows": (lambda r, k, t, o: post(r.path(k), named("task_ffffffffffff")), 200),
    "no task": (lambda r, k, t, o: post(r.path(k), named(None)), 200),
    "no body": (lambda r, k, t, o: post(r.path(k)), 200),
    "not UTF-8": (lambda r, k, t, o: post(r.path(k), b'{"taskId": "\xff\xfe"}'), 200),
    "deep JSON": (lambda r, k, t, o: post(r.path(k), b'{"data":' * 100_000), 200),
    "a huge number": (lambda r, k, t, o: post(r.path(k), b'{"taskId": ' + b"9" * 1_000_000 + b"}"), 200),
    "10 MB": (lambda r, k, t, o: post(r.path(k), b" " * 10_000_000 + named(t)), 413),
    "10 MB announced": (lambda r, k, t, o: post(r.path(k), content_length="10000000", expect="100-continue"), 413),
    "10 MB in chunks": (lambda r, k, t, o: chunked(r.path(k), b" " * 10_000_000 + named(t)), 413),
    "one byte too many": (lambda r, k, t, o: chunked(r.path(k), named(t).rjust(MOST_BODY_BYTES + 1)), 413),
    "GET": (lambda r, k, t, o: post(r.path(k), named(t), method="GET"), 405),
    "PUT": (lambda r, k, t, o: post(r.path(k), named(t), method="PUT"), 405),
    "not HTTP": (lambda r, k, t, o: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}


def chunked(path: str, body: bytes) -> bytes:
    """A request that does not say how long it is."""
    head = f"POST {path} HTTP/1.1\r\nHost: receiver\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
    return head + b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


async def test_what_a_stranger_or_a_broken_provider_sends_changes_nothing(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    """The generation is unconfirmed, so that a call that was wrongly believed would be written."""
    sandbox.faults.add(Fault(call="callback", kind="drop", times=2))
    task_id = await lost(key, receiver.resources, sandbox)
    other = (await submit(f"{key}.other", receiver.resources)).task_id or ""
    before = await records(receiver.resources)
    for name, (request, status) in HOSTILE.items():
        answer = await receiver.send(request(receiver, key, task_id, other))
        assert answer.status == status, name
        assert "location" not in answer.headers, name
        assert await records(receiver.resources) == before, name
        assert await receiver.healthy(), name
    assert len(sandbox.record.submits()) == 2
    assert {request.task_id for request in sandbox.record.statuses()} <= {None, other, "task_ffffffffffff"}
    assert (await receiver.ring(key, task_id)).status == 200  # and the true one still reconciles
    assert (await recorded(key, receiver.resources)).task_id == task_id


async def test_a_body_of_just_under_the_limit_is_read(key: str, receiver: Receiver, sandbox: SandboxServer) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = await lost(key, receiver.resources, sandbox)
    assert (await receiver.send(chunked(receiver.path(key), named(task_id).rjust(MOST_BODY_BYTES)))).status == 200
    assert (await recorded(key, receiver.resources)).task_id == task_id


async def test_a_stranger_cannot_tell_what_exists(key: str, receiver: Receiver) -> None:
    await submit(key, receiver.resources)
    paths = [
        *(f"/apixo/{name}/{TOKEN}" for name in (key, "no-such-key", "NO-KEY", f"{key}/2", f"{key}/9")),
        receiver.path("NO-KEY"),  # its token fits, and no generation can be called that
        f"/apixo/{key}",
        "/apixo/",
        "/",
        "/docs",
    ]
    answers = [await receiver.send(post(path, b"{}")) for path in paths]
    assert all(answer == answers[0] for answer in answers)
    assert (answers[0].status, "server" in answers[0].headers) == (404, False)


async def test_a_bad_token_is_refused_before_the_body_is_read_and_the_store_touched(
    api: ApixoApi, minio: ObjectStoreServer, prefect_server: PrefectServer, key: str
) -> None:
    with StoreGate(minio.endpoint) as gate:
        direct = make_archive(minio)
        async with receiving(api, direct.model_copy(update={"endpoint": gate.endpoint}), submitting=direct) as receiver:
            gate.shut = lambda _: True
            waits = post(f"/apixo/{key}/{TOKEN}", content_length="1000", expect="100-continue")
            assert (await receiver.send(waits)).status == 404
            assert gate.cut == 0


async def test_a_slow_body_ends_and_a_caller_that_hangs_up_is_forgotten(
    api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer, key: str, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    async with receiving(api, archive, body_seconds=0.3) as receiver:
        task_id = await lost(key, receiver.resources, sandbox)
        before = await records(receiver.resources)
        body = named(task_id)
        whole = post(receiver.path(key), body)
        slow = await receiver.send(whole[:-1], then=1, more=whole[-1:])
        assert slow.status == 408
        _, writer = await asyncio.open_connection("127.0.0.1", receiver.port)
        writer.write(whole[:-1])
        writer.close()
        await writer.wait_closed()
        assert await receiver.healthy()
        assert await records(receiver.resources) == before


async def test_a_call_repeated_200_times_at_once_asks_once(
    key: str, receiver: Receiver, sandbox: SandboxServer, prefect_server: PrefectServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = (await submit(key, receiver.resources)).task_id
    await finished(sandbox)
    sandbox.faults.add(Fault(call="status", kind="slow", seconds=0.5))
    before = await records(receiver.resources)
    answers = await asyncio.gather(*(receiver.ring(key, task_id) for _ in range(200)))
    assert {(answer.status, answer.said) for answer in answers} == {(200, "finished")}
    assert len(sandbox.record.statuses()) == 1
    events = await read_events(prefect_server, key, "apixo.task.finished")
    assert [event["event"] for event in events].count("apixo.task.finished") == 1
    assert await records(receiver.resources) == before
    assert len(sandbox.record.submits()) == 1


async def test_a_ring_during_the_question_of_an_earlier_one_is_asked_for_once_more(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    """The first answer may be from before the task ended. 200 such rings are one more question."""
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    longest = VideoRequest(prompt="A long film", duration=12)  # the first question has to come before its end
    task_id = (await submit(key, receiver.resources, longest)).task_id
    sandbox.faults.add(Fault(call="status", kind="slow", seconds=2))
    early = asyncio.create_task(receiver.ring(key, task_id))
    await finished(sandbox)
    answers = await asyncio.gather(*(receiver.ring(key, task_id) for _ in range(200)))
    assert (await early).said == "pending"
    assert {(answer.status, answer.said) for answer in answers} == {(200, "finished")}
    assert len(sandbox.record.statuses()) == 2


@pytest.mark.parametrize("kind", ["http_503", "http_401", "reset_before", "junk"])
async def test_a_provider_that_is_away_gets_a_503_and_may_ring_again(
    kind: str, key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = await lost(key, receiver.resources, sandbox)
    await finished(sandbox)
    before = await records(receiver.resources)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
    refused = await receiver.ring(key, task_id)
    assert (refused.status, refused.said, refused.headers["retry-after"]) == (503, "unavailable", "10")
    assert await records(receiver.resources) == before
    assert (await receiver.ring(key, task_id)).said == "finished"
    assert len(sandbox.record.submits()) == 1


async def test_a_store_that_is_away_gets_a_503_and_may_be_rung_for_again(
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
            refused = await receiver.ring(key, task_id)
            assert (refused.status, refused.headers["retry-after"]) == (503, "10")
            assert await receiver.healthy()
            assert sandbox.record.statuses() == []
            assert await records(receiver.resources) == before
            gate.shut = nothing
            assert (await receiver.ring(key, task_id)).said == "finished"
            assert (await recorded(key, receiver.resources)).task_id == task_id


async def test_what_takes_long_is_to_be_called_again_and_done_in_the_background_even_while_the_receiver_stops(
    api: ApixoApi, archive: VideoArchive, resources: Resources, key: str, sandbox: SandboxServer
) -> None:
    async with receiving(api, archive, answer_seconds=0.2) as receiver:
        sandbox.faults.add(Fault(call="callback", kind="drop"))
        task_id = await lost(key, receiver.resources, sandbox)
        sandbox.faults.add(Fault(call="status", kind="slow", seconds=1.5))
        began = time.monotonic()
        accepted = await receiver.ring(key, task_id)
        assert (accepted.status, accepted.said) == (503, "unfinished")  # nothing is written down yet
        assert time.monotonic() - began < 1
        assert (await recorded(key, resources)).state is State.UNCONFIRMED
    assert (await recorded(key, resources)).task_id == task_id


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_whoever_looks_whether_the_address_is_there_is_told_so(
    method: str, key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    for path in (receiver.path(key), f"/apixo/{key}/{TOKEN}"):
        answer = await receiver.send(post(path, method=method))
        assert (answer.status, answer.headers["allow"]) == (405, "post")  # the helper lowers it
        assert (answer.body == b"This address takes callbacks of APIXO, by POST. It is there.\n") is (method == "GET")
    assert sandbox.record.all() == []


async def test_the_log_has_the_body_of_a_call_that_names_nothing_known_without_what_is_secret_in_it(
    key: str, receiver: Receiver, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    await lost(key, receiver.resources, sandbox)
    path = receiver.path(key)
    said = {
        "code": 200, "job": "task one", "video": "https://cdn.example.com/v.mp4?X-Amz-Signature=5ecret",
        "url": f"https://callbacks.example.com{path}", "auth": str(receiver.api.api_key.get()), "rest": "x" * 5_000,
    }  # fmt: skip
    for body in (json.dumps(said).encode(), gzip.compress(json.dumps(said).encode())):
        caplog.clear()
        assert (await receiver.send(post(path, body))).status == 200
        (line,) = [line for line in caplog.messages if "had the body" in line]
        assert f"about {key}, attempt 1, had the body: " in line
        assert '"job": "task one"' in line
        assert "https://cdn.example.com/v.mp4?…" in line
        assert len(line) < 500
        for secret in ("5ecret", path.rpartition("/")[2], str(receiver.api.api_key.get())):
            assert secret not in caplog.text
    caplog.clear()
    assert (await receiver.send(post(receiver.path(f"{key}.none")))).status == 404
    assert "had the body: (empty)" in caplog.text


async def test_a_desk_that_is_full_asks_to_ring_again(
    key: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise QueueFullError

    monkeypatch.setattr(CallbackQueue, "take", full)
    answer = await receiver.ring(key, "task_1")
    assert (answer.status, answer.said, answer.headers["retry-after"]) == (503, "busy", "10")


async def test_something_nobody_foresaw_is_logged_and_told_to_nobody(
    key: str,
    receiver: Receiver,
    sandbox: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def break_down(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a secret of ours")

    monkeypatch.setattr(deployments.receiver.calls, "answer_call", break_down)
    broken = await receiver.ring(key, "task_1")
    assert (broken.status, broken.body) == (500, b'{"status":"error"}')
    assert "ZeroDivisionError: a secret of ours" in caplog.text
    assert await receiver.healthy()


async def test_a_record_that_cannot_be_read_is_an_error_and_stays_as_it_is(
    key: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    await receiver.resources.store.put(f"ledger/{key}.json", b"half a rec")
    assert (await receiver.ring(key, "task_1")).status == 500
    assert "cannot be read" in caplog.text
    assert "Traceback" not in caplog.text
    assert await records(receiver.resources) == {f"ledger/{key}.json": b"half a rec"}


@pytest.fixture
def everything_logged() -> Iterator[list[str]]:
    """Every record of every logger at every level, as a handler would write it."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{self.format(record)} {record.args}")

    keeper = Keeper()
    loggers = [
        logging.root,
        *(logging.getLogger(name) for name in [*logging.root.manager.loggerDict, "uvicorn.access"]),
    ]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(1)
        logger.addHandler(keeper)
    yield lines
    for logger, level, propagate in before:
        logger.removeHandler(keeper)
        logger.setLevel(level)
        logger.propagate = propagate


async def test_no_token_and_no_secret_is_ever_logged(
    key: str,
    receiver: Receiver,
    sandbox: SandboxServer,
    everything_logged: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop", times=2))
    task_id = await lost(key, receiver.resources, sandbox)
    for name, (request, _) in HOSTILE.items():
        if "MB" not in name:
            await receiver.send(request(receiver, key, task_id, "task_other"))
    await receiver.ring(key, task_id)

    async def quote_the_address(*_: Any, **__: Any) -> None:
        raise NoReplyError(f"cannot call {receiver.api.callback_url_for(key)}")

    async def trip_over_the_address(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(receiver.api.callback_url_for(key))

    for breaking in (quote_the_address, trip_over_the_address):
        monkeypatch.setattr(deployments.receiver.calls, "answer_call", breaking)
        await receiver.ring(key, task_id)
    told = "\n".join(everything_logged)
    assert "reconciled by its callback" in told
    assert "cannot call" in told
    assert "ZeroDivisionError" in told
    secret = receiver.api.callback_secret
    assert secret is not None
    assert secret.value.get_secret_value() not in told
    for token in (receiver.api.callback_token(key), receiver.api.callback_token(key, 2), TOKEN):
        assert token not in told
    assert sandbox.settings.api_key not in told


async def test_tokens_that_do_not_fit_are_told_of_once_a_minute(
    key: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """A secret that was changed would otherwise go unnoticed. A flood must not fill the disk."""
    for _ in range(20):
        await receiver.send(post(f"/apixo/{key}/{TOKEN}"))
    assert caplog.text.count("token that does not fit") == 1


async def test_the_public_address_may_have_a_path_of_its_own(
    api: ApixoApi, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    """Whether what stands in front takes that path away or not."""
    async with receiving(api, archive, path="/hooks/sora") as receiver:
        await submit(key, receiver.resources)
        assert receiver.path(key).startswith("/hooks/sora/apixo/")
        for path in (receiver.path(key), receiver.path(key).removeprefix("/hooks/sora")):
            assert (await receiver.send(post(path))).status == 200


async def test_without_a_secret_there_is_no_receiver(receiver: Receiver) -> None:
    receiver.resources.api = receiver.api.model_copy(update={"callback_secret": None})
    with pytest.raises(SetupError, match=r"block 'mine' has no callback_secret.*APIXO_CALLBACK_SECRET.*--name mine"):
        create_app(receiver.resources, api="mine")
