"""Hostile requests to the receiver: they change nothing, disclose nothing, and cost little."""

import asyncio
import gzip
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect.blocks.system import Secret

import deployments.receiver.app
from apixo import NoReplyError
from blocks import ApixoApi
from deployments.local.prefect_server import PrefectServer
from deployments.local.store_server import ObjectStoreServer
from deployments.receiver.app import MOST_BODY_BYTES
from deployments.sandbox import Fault, SandboxServer
from tests.flows.generations import lost, recorded, submit
from tests.support import make_archive
from tests.support.receiver import Receiver, named, post, receiving, records
from tests.support.store_gate import StoreGate

TOKEN = "f" * 64
Hostile = Callable[[Receiver, str, str, str], bytes]
"""Builds a request from the receiver, the key of an unconfirmed generation, its real task, and another key's task."""

HOSTILE: dict[str, tuple[Hostile, int]] = {
    "forged token": (lambda r, k, t, o: post(f"/apixo/{k}/{TOKEN}", named(t)), 404),
    "no token": (lambda r, k, t, o: post(f"/apixo/{k}", named(t)), 404),
    "empty token": (lambda r, k, t, o: post(f"/apixo/{k}/", named(t)), 404),
    "half a token": (lambda r, k, t, o: post(r.path(k)[:-32], named(t)), 404),
    "token and more": (lambda r, k, t, o: post(r.path(k) + "0", named(t)), 404),
    "token and a line feed": (lambda r, k, t, o: post(r.path(k) + "%0A", named(t)), 404),
    "token and two slashes": (lambda r, k, t, o: post(r.path(k) + "//", named(t)), 404),
    "upper-case token": (lambda r, k, t, o: post(f"/apixo/{k}/{r.api.callback_token(k).upper()}", named(t)), 404),
    "another key's token": (lambda r, k, t, o: post(f"/apixo/{k}/{r.api.callback_token(k + '.x')}", named(t)), 404),
    "attempt 2's token": (lambda r, k, t, o: post(f"/apixo/{k}/{r.api.callback_token(k, 2)}", named(t)), 404),
    "attempt 1's token": (lambda r, k, t, o: post(f"/apixo/{k}/2/{r.api.callback_token(k)}", named(t)), 404),
    "attempt 1 by number": (lambda r, k, t, o: post(f"/apixo/{k}/1/{r.api.callback_token(k)}", named(t)), 404),
    "attempt 02": (lambda r, k, t, o: post(f"/apixo/{k}/02/{r.api.callback_token(k, 2)}", named(t)), 404),
    "attempt 2 with an escaped slash": (lambda r, k, t, o: post(r.path(k, 2).replace("/2/", "%2F2/"), named(t)), 200),
    "an attempt that does not exist": (lambda r, k, t, o: post(r.path(k, 7), named(t)), 200),
    "an endless number": (lambda r, k, t, o: post(f"/apixo/{k}/{'9' * 9_000}/{TOKEN}", named(t)), 404),
    "an invalid number": (lambda r, k, t, o: post(f"/apixo/{k}/%D9%A2/{TOKEN}", named(t)), 404),
    "an unknown key": (lambda r, k, t, o: post(r.path(f"{k}.none"), named(t)), 200),
    "an invalid key": (lambda r, k, t, o: post(f"/apixo/..%2F..%2Fledger/{TOKEN}", named(t)), 404),
    "a key in capitals": (lambda r, k, t, o: post(r.path(k.upper()), named(t)), 404),
    "another alphabet": (lambda r, k, t, o: post("/apixo/%C3%A9/%E2%82%AC", named(t)), 404),
    "invalid UTF-8 in the path": (lambda r, k, t, o: post(f"/apixo/{k}/%FF%FE%00", named(t)), 404),
    "raw bytes in the path": (lambda r, k, t, o: b"POST /apixo/\xff\xfe/x HTTP/1.1\r\nHost: r\r\n\r\n", 400),
    "another generation's task": (lambda r, k, t, o: post(r.path(k), named(o)), 200),
    "an unknown task": (lambda r, k, t, o: post(r.path(k), named("task_ffffffffffff")), 200),
    "no task": (lambda r, k, t, o: post(r.path(k), named(None)), 200),
    "no body": (lambda r, k, t, o: post(r.path(k)), 200),
    "not UTF-8": (lambda r, k, t, o: post(r.path(k), b'{"taskId": "\xff\xfe"}'), 200),
    "deep JSON": (lambda r, k, t, o: post(r.path(k), b'{"data":' * 100_000), 200),
    "a huge number": (lambda r, k, t, o: post(r.path(k), b'{"taskId": ' + b"9" * 1_000_000 + b"}"), 200),
    "10 MB": (lambda r, k, t, o: post(r.path(k), b" " * 10_000_000 + named(t)), 413),
    "10 MB declared": (lambda r, k, t, o: post(r.path(k), content_length="10000000", expect="100-continue"), 413),
    "10 MB in chunks": (lambda r, k, t, o: chunked(r.path(k), b" " * 10_000_000 + named(t)), 413),
    "one byte too many": (lambda r, k, t, o: chunked(r.path(k), named(t).rjust(MOST_BODY_BYTES + 1)), 413),
    "GET": (lambda r, k, t, o: post(r.path(k), named(t), method="GET"), 405),
    "PUT": (lambda r, k, t, o: post(r.path(k), named(t), method="PUT"), 405),
    "not HTTP": (lambda r, k, t, o: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
}


def chunked(path: str, body: bytes) -> bytes:
    """A request with a chunked body, so without a content length."""
    head = f"POST {path} HTTP/1.1\r\nHost: receiver\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    pieces = [body[start : start + 50_000] for start in range(0, len(body), 50_000)]
    return head + b"".join(f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces) + b"0\r\n\r\n"


async def test_hostile_requests_change_nothing(key: str, receiver: Receiver, sandbox: SandboxServer) -> None:
    """The generation is unconfirmed, so a callback that was wrongly trusted would change its record."""
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
    assert (await receiver.call(key, task_id)).status == 200  # and the real callback still reconciles
    assert (await recorded(key, receiver.resources)).task_id == task_id


async def test_body_at_the_size_limit_is_read(key: str, receiver: Receiver, sandbox: SandboxServer) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = await lost(key, receiver.resources, sandbox)
    assert (await receiver.send(chunked(receiver.path(key), named(task_id).rjust(MOST_BODY_BYTES)))).status == 200
    assert (await recorded(key, receiver.resources)).task_id == task_id


async def test_trailing_slash_added_by_a_gateway_is_ignored(
    key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = await lost(key, receiver.resources, sandbox)
    for attempt in (2, 1):
        assert (await receiver.send(post(receiver.path(key, attempt) + "/", named(task_id)))).status == 200
    assert (await recorded(key, receiver.resources)).task_id == task_id
    assert (await receiver.send(post(f"/apixo/{key}/{TOKEN}/", named(task_id)))).status == 404


async def test_answers_do_not_reveal_which_keys_exist(key: str, receiver: Receiver) -> None:
    await submit(key, receiver.resources)
    paths = [
        *(f"/apixo/{name}/{TOKEN}" for name in (key, "no-such-key", "NO-KEY", f"{key}/2", f"{key}/9")),
        receiver.path("NO-KEY"),  # its token is valid, but no generation can have that key
        f"/apixo/{key}",
        "/apixo/",
        "/",
        "/docs",
    ]
    answers = [await receiver.send(post(path, b"{}")) for path in paths]
    assert all(answer == answers[0] for answer in answers)
    assert (answers[0].status, "server" in answers[0].headers) == (404, False)


async def test_invalid_token_is_rejected_before_reading_body_or_store(
    api: ApixoApi, minio: ObjectStoreServer, prefect_server: PrefectServer, key: str
) -> None:
    with StoreGate(minio.endpoint) as gate:
        direct = make_archive(minio)
        async with receiving(api, direct.model_copy(update={"endpoint": gate.endpoint}), submitting=direct) as receiver:
            gate.shut = lambda _: True
            expects_continue = post(f"/apixo/{key}/{TOKEN}", content_length="1000", expect="100-continue")
            assert (await receiver.send(expects_continue)).status == 404
            assert gate.cut == 0


async def test_slow_body_times_out_and_disconnected_caller_changes_nothing(
    receiver: Receiver, key: str, sandbox: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments.receiver.app, "BODY_SECONDS", 0.3)
    sandbox.faults.add(Fault(call="callback", kind="drop"))
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


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_get_and_head_requests_get_a_plain_405_answer(
    method: str, key: str, receiver: Receiver, sandbox: SandboxServer
) -> None:
    for path in (receiver.path(key), f"/apixo/{key}/{TOKEN}"):
        answer = await receiver.send(post(path, method=method))
        assert (answer.status, answer.headers["allow"]) == (405, "post")  # the helper lowercases header values
        assert (answer.body == b"This URL accepts APIXO callbacks by POST. The receiver is running.\n") is (
            method == "GET"
        )
    assert sandbox.record.all() == []


async def test_body_of_unidentified_callback_is_logged_without_secrets(
    key: str, receiver: Receiver, sandbox: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    await lost(key, receiver.resources, sandbox)
    path = receiver.path(key)
    body_fields = {
        "code": 200, "job": "task one", "video": "https://cdn.example.com/v.mp4?X-Amz-Signature=5ecret",
        "url": f"https://callbacks.example.com{path}", "auth": str(receiver.api.api_key.get()),
        "headers": "Authorization: Bearer sk-0f1e2d3c4b", "said": "invalid bearer token", "rest": "x" * 5_000,
    }  # fmt: skip
    for body in (json.dumps(body_fields).encode(), gzip.compress(json.dumps(body_fields).encode())):
        caplog.clear()
        assert (await receiver.send(post(path, body))).status == 200
        (line,) = [line for line in caplog.messages if "had the body" in line]
        assert f"about {key}, attempt 1, had the body: " in line
        assert '"job": "task one"' in line
        assert "https://cdn.example.com/v.mp4?…" in line
        assert "invalid bearer token" in line
        assert len(line) < 500
        for secret in ("5ecret", "0f1e2d3c4b", path.rpartition("/")[2], str(receiver.api.api_key.get())):
            assert secret not in caplog.text
    caplog.clear()
    unknown = f"{key}.none"
    answer = await receiver.send(
        post(receiver.path(unknown), json.dumps(body_fields).encode())
    )  # with another status, APIXO would call again
    assert (answer.status, answer.said) == (200, "unknown")
    (line,) = [line for line in caplog.messages if "had the body" in line]
    assert f"about {unknown}, attempt 1, had the body: " in line
    assert len(line) < 500
    for secret in ("5ecret", path.rpartition("/")[2], str(receiver.api.api_key.get())):
        assert secret not in caplog.text


async def test_numeric_api_key_is_not_logged(key: str, receiver: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    digits = "12345678901234567890e2"
    receiver.resources.api.api_key = Secret(value=digits)
    await receiver.send(post(receiver.path(key), json.dumps({"auth": digits}).encode()))
    assert "had the body" in caplog.text
    assert digits not in caplog.text


@pytest.fixture
def everything_logged() -> Iterator[list[str]]:
    """The records of all loggers at all levels, formatted as a handler would write them."""
    lines: list[str] = []

    class CollectingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{self.format(record)} {record.args}")

    handler = CollectingHandler()
    loggers = [
        logging.root,
        *(logging.getLogger(name) for name in [*logging.root.manager.loggerDict, "uvicorn.access"]),
    ]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(1)
        logger.addHandler(handler)
    yield lines
    for logger, level, propagate in before:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


async def test_tokens_and_secrets_are_never_logged(
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
    await receiver.call(key, task_id)

    async def fail_quoting_url(*_: Any, **__: Any) -> None:
        raise NoReplyError(f"cannot call {receiver.api.callback_url_for(key)}")

    async def crash_quoting_url(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError(receiver.api.callback_url_for(key))

    for failure in (fail_quoting_url, crash_quoting_url):
        monkeypatch.setattr(deployments.receiver.app, "answer_call", failure)
        await receiver.call(key, task_id)
    logged = "\n".join(everything_logged)
    assert "reconciled by its callback" in logged
    assert "cannot call" in logged
    assert "ZeroDivisionError" in logged
    secret = receiver.api.callback_secret
    assert secret is not None
    assert secret.value.get_secret_value() not in logged
    for token in (receiver.api.callback_token(key), receiver.api.callback_token(key, 2), TOKEN):
        assert token not in logged
    assert sandbox.settings.api_key not in logged


async def test_invalid_tokens_are_logged_at_most_once_per_minute(
    key: str, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Without that, a changed secret would go unnoticed. A flood must not fill the disk."""
    for _ in range(20):
        await receiver.send(post(f"/apixo/{key}/{TOKEN}"))
    assert caplog.text.count("with an invalid token") == 1
