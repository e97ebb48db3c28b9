"""The paid call: exactly one POST, whatever happens."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from apixo import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    ModelNotFoundError,
    NoReplyError,
    NotSentError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    Succeeded,
    UnclearError,
    UnexpectedReplyError,
)
from deployments.sandbox import Fault, SandboxServer
from tests.support.waiting import until

from .conftest import KEY, KITE, MakeClient, SleepRecorder
from .wire import Answer, closed_port, cut, envelope, hang, http, reply, reset, serving, trickle

ACCEPTED = http(200, envelope({"taskId": "task_1"}))

UNCLEAR_FAULTS: list[tuple[str, dict[str, Any], type[ApixoError]]] = [
    ("reset_before", {}, NoReplyError),
    ("reset_after", {}, NoReplyError),
    ("hang", {}, NoReplyError),
    ("hang_after", {}, NoReplyError),
    ("slow", {"seconds": 5}, NoReplyError),
    ("http_500", {}, ServerError),
    ("http_500_after", {}, ServerError),
    ("http_502_html", {}, ServerError),
    ("http_503", {"retry_after": "1"}, ServerError),
    ("http_404_html", {}, ServerError),
    ("http_403_html", {}, ServerError),
    ("redirect", {}, ServerError),
    ("code_500_body", {}, ServerError),
    ("junk", {}, UnexpectedReplyError),
    ("half_json", {}, UnexpectedReplyError),
    ("wrong_types", {}, UnexpectedReplyError),
    ("missing_fields", {}, UnexpectedReplyError),
    ("null_data", {}, UnexpectedReplyError),
    ("no_data", {}, UnexpectedReplyError),
    ("huge_body", {}, UnexpectedReplyError),
]


async def wait_for_request(requests: Callable[[], Sequence[object]]) -> None:
    """Waits for a request: on a busy machine, the client may give up before the server has read what was sent."""

    async def any_request() -> bool:
        return len(requests()) > 0

    await until(any_request, what="the server to read the request", pause=0.01)


@pytest.mark.parametrize(("kind", "options", "expected"), UNCLEAR_FAULTS, ids=[kind for kind, _, _ in UNCLEAR_FAULTS])
async def test_unclear_outcome_sends_one_post(
    realtime_sandbox: SandboxServer,
    make_client: MakeClient,
    sleeps: SleepRecorder,
    kind: str,
    options: dict[str, Any],
    expected: type[ApixoError],
) -> None:
    realtime_sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "times": -1, **options}))
    # A third of it is for connecting, which must be enough on a busy machine.
    timeout_seconds = 2 if kind in ("hang", "hang_after", "slow") else 10
    client = make_client(realtime_sandbox.base_url, submit_timeout_seconds=timeout_seconds)
    with pytest.raises(ApixoError) as raised:
        await client.submit_once(KITE)
    assert type(raised.value) is expected
    await wait_for_request(realtime_sandbox.record.submits)
    assert len(realtime_sandbox.record.submits()) == 1
    assert sleeps == []


HEADERS_ONLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 60\r\n\r\n"
UNCLEAR_REPLIES: list[tuple[str, Answer, type[ApixoError]]] = [
    ("no answer at all", hang, NoReplyError),
    ("reset", reset, NoReplyError),
    ("closed without a reply", cut(), NoReplyError),
    ("closed inside the status line", cut(b"HTTP/1.1 2"), NoReplyError),
    ("closed inside the headers", cut(b"HTTP/1.1 200 OK\r\ncontent-le"), NoReplyError),
    ("closed after the headers", cut(HEADERS_ONLY), NoReplyError),
    ("closed inside the body", cut(HEADERS_ONLY + b'{"code": 200, "data": {'), NoReplyError),
    ("closed inside a chunk", cut(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{"), NoReplyError),
    ("a trickle", trickle(ACCEPTED), NoReplyError),
    ("headers, then silence", reply(HEADERS_ONLY), NoReplyError),
    ("junk for a status line", cut(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), NoReplyError),
    ("junk bytes", cut(b"\x00\xff" * 100), NoReplyError),
    ("endless headers", cut(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000), NoReplyError),
    ("a body that is not the announced gzip", reply(http(200, b"no gzip", content_encoding="gzip")), NoReplyError),
    ("an early hint and nothing more", cut(b"HTTP/1.1 103 Early Hints\r\n\r\n"), NoReplyError),
    ("204", reply(b"HTTP/1.1 204 No Content\r\n\r\n"), UnexpectedReplyError),
    ("304", reply(b"HTTP/1.1 304 Not Modified\r\n\r\n"), ServerError),
    ("400 with an acceptance in it", reply(http(400, envelope({"taskId": "task_1"}))), ServerError),
    ("408", reply(http(408, "time-out")), ServerError),
    ("425", reply(http(425)), ServerError),
]  # fmt: skip


@pytest.mark.parametrize(("name", "answer", "expected"), UNCLEAR_REPLIES, ids=[row[0] for row in UNCLEAR_REPLIES])
async def test_unusable_reply_sends_one_post(
    make_client: MakeClient, sleeps: SleepRecorder, name: str, answer: Answer, expected: type[ApixoError]
) -> None:
    async with serving(answer) as server:
        is_silent = name in ("no answer at all", "a trickle", "headers, then silence")
        client = make_client(server.url, submit_timeout_seconds=2 if is_silent else 20)
        with pytest.raises(ApixoError) as raised:
            await client.submit_once(KITE)
        assert type(raised.value) is expected
        await wait_for_request(lambda: server.requests)
        assert len(server.requests) == server.connections == 1
    assert sleeps == []


async def test_request_is_as_documented(make_client: MakeClient) -> None:
    async with serving(reply(ACCEPTED)) as server:
        task_id = await make_client(server.url + "/").submit_once(KITE, callback_url="https://cb.example.com/apixo/k/t")
        assert task_id == "task_1"
        (request,) = server.requests
        assert request.head.startswith("POST /api/v1/generateTask/sora-2 HTTP/1.1\r\n")
        assert request.header("authorization") == f"Bearer {KEY}"
        assert request.header("content-type") == "application/json"
        assert json.loads(request.body) == KITE.body("https://cb.example.com/apixo/k/t")


@pytest.mark.parametrize("key", ["k", "ask", "1234567"])
async def test_reply_that_contains_a_short_api_key_is_not_damaged(make_client: MakeClient, key: str) -> None:
    accepted = http(200, envelope({"taskId": "task_12345678"}))
    finished = http(
        200,
        envelope({"taskId": "task_12345678", "state": "success", "resultJson": {"resultUrls": ["https://h/k.mp4"]}}),
    )
    async with serving(reply(accepted), reply(finished)) as server:
        client = make_client(server.url, api_key=key)
        assert await client.submit_once(KITE) == "task_12345678"
        status = await client.status_once("task_12345678")
    assert isinstance(status, Succeeded)
    assert status.result_urls == ("https://h/k.mp4",)


async def test_sandbox_charges_once_per_submission(realtime_sandbox: SandboxServer, make_client: MakeClient) -> None:
    task_id = await make_client(realtime_sandbox.base_url).submit_once(KITE)
    assert [request.task_id for request in realtime_sandbox.record.charged()] == [task_id]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("http_400", BadRequestError),
        ("http_401", AuthenticationError),
        ("http_402", InsufficientBalanceError),
        ("http_403", PermissionDeniedError),
        ("http_404", ModelNotFoundError),
        ("http_429", RateLimitError),
    ],
)
async def test_documented_rejection_sends_one_post(
    realtime_sandbox: SandboxServer,
    make_client: MakeClient,
    sleeps: SleepRecorder,
    kind: str,
    expected: type[ApixoError],
) -> None:
    realtime_sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    with pytest.raises(expected):
        await make_client(realtime_sandbox.base_url).submit_once(KITE)
    assert len(realtime_sandbox.record.submits()) == 1
    assert sleeps == []


async def test_failed_connection_means_nothing_was_sent(make_client: MakeClient) -> None:
    with pytest.raises(NotSentError, match=r"No connection to 127\.0\.0\.1.*Nothing was sent"):
        await make_client(f"http://127.0.0.1:{closed_port()}").submit_once(KITE)


async def test_each_post_opens_a_connection_and_status_calls_share_one(
    realtime_sandbox: SandboxServer, make_client: MakeClient
) -> None:
    client = make_client(realtime_sandbox.base_url)
    task_ids = [await client.submit_once(KITE) for _ in range(3)]
    for task_id in task_ids:
        await client.status(task_id)
    posts = {request.client_port for request in realtime_sandbox.record.submits()}
    polls = {request.client_port for request in realtime_sandbox.record.statuses()}
    assert len(posts) == 3
    assert len(polls) == 1
    assert posts.isdisjoint(polls)


class StaleClaimError(Exception):
    """An error that the caller may raise at the last moment."""


async def test_error_in_before_sending_stops_the_call(make_client: MakeClient) -> None:
    async def abort() -> None:
        raise StaleClaimError

    async def proceed() -> None:
        return None

    async with serving(reply(ACCEPTED)) as server:
        client = make_client(server.url)
        with pytest.raises(StaleClaimError):
            await client.submit_once(KITE, before_sending=abort)
        assert (server.connections, server.requests) == (0, [])
        assert await client.submit_once(KITE, before_sending=proceed) == "task_1"


async def test_only_the_paid_call_carries_the_idempotency_key(make_client: MakeClient) -> None:
    async with serving(reply(ACCEPTED)) as server:
        client = make_client(server.url)
        await client.submit_once(KITE, idempotency_key="spring-01/2")
        await client.submit_once(KITE)
        with contextlib.suppress(ApixoError):
            await client.status_once("task_1")
        with contextlib.suppress(ApixoError):
            await client.balance_once()
    keys = [re.findall(r"(?i)\r\nidempotency-key: (\S+)", request.head) for request in server.requests]
    assert keys == [["spring-01/2"], [], [], []]


async def test_before_sending_is_called_after_the_rate_limit_wait(make_client: MakeClient) -> None:
    async with serving(reply(ACCEPTED)) as server:
        # Two per minute: the first call empties the bucket, so the second has to wait.
        client = make_client(server.url, requests_per_minute=2)
        await client.submit_once(KITE)
        called = False

        async def mark_called() -> None:
            nonlocal called
            called = True

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.submit_once(KITE, before_sending=mark_called)
        assert not called
        assert len(server.requests) == 1


async def test_cancellation_propagates_and_nothing_is_resent(make_client: MakeClient, sleeps: SleepRecorder) -> None:
    async with serving(hang) as server:
        submitting = asyncio.create_task(make_client(server.url).submit_once(KITE))
        async with asyncio.timeout(60):
            while not server.requests:
                await asyncio.sleep(0.005)
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert len(server.requests) == server.connections == 1
    assert sleeps == []


async def test_reply_is_not_read_beyond_one_mebibyte(make_client: MakeClient) -> None:
    async with serving(reply(http(200, b"x" * 50_000_000))) as server:
        with pytest.raises(UnexpectedReplyError, match="1,048,576"):
            await make_client(server.url).submit_once(KITE)
        transport = server.requests[0].writer.transport
        async with asyncio.timeout(60):
            while not transport.is_closing():  # the client hung up in the middle
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", [1_048_576, 1_048_577])
async def test_reply_size_limit_is_exact(make_client: MakeClient, size: int) -> None:
    body = json.dumps(envelope({"taskId": "task_1"}))
    async with serving(reply(http(200, body + " " * (size - len(body))))) as server:
        client = make_client(server.url)
        if size == 1_048_576:
            assert await client.submit_once(KITE) == "task_1"
        else:
            with pytest.raises(UnexpectedReplyError):
                await client.submit_once(KITE)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_api_key_is_not_sent_to_a_redirect_target(make_client: MakeClient, status: int) -> None:
    async with (
        serving(reply(ACCEPTED)) as redirect_target,
        serving(reply(http(status, location=redirect_target.url))) as server,
    ):
        client = make_client(server.url)
        with pytest.raises(ServerError):
            await client.submit_once(KITE)
        with pytest.raises(ServerError):
            await client.status_once("task_1")
        assert len(server.requests) == 2
        assert redirect_target.connections == 0


@pytest.mark.parametrize("location", ["https:\\/\\/h.example\\/v", "https:v", "http://[", "//", "\x80", ""])
async def test_redirect_to_an_invalid_url_is_unclear(make_client: MakeClient, location: str) -> None:
    async with serving(reply(http(302, location=location))) as server:
        client = make_client(server.url, max_tries=1)
        for call in (client.submit_once(KITE), client.status_once("task_1")):
            with pytest.raises(UnclearError):
                await call
