"""The free calls: the state of a task, with retries where they can help, and the balance."""

import asyncio
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from apixo import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    InProgress,
    NoReplyError,
    Succeeded,
    UnexpectedReplyError,
    wait_for_end,
)
from deployments.sandbox import Fault, SandboxServer

from .conftest import KITE, MakeClient, SleepRecorder
from .wire import Answer, cut, envelope, hang, http, reply, reset, serving

PENDING = reply(http(200, envelope({"taskId": "task_1", "state": "pending"})))
DONE = reply(
    http(
        200, envelope({"taskId": "task_1", "state": "success", "resultJson": '{"resultUrls": ["https://x.example/v"]}'})
    )
)


def failed(code: str) -> Answer:
    return reply(http(200, envelope({"taskId": "task_1", "state": "failed", "failCode": code, "failMsg": "words"})))


@pytest.mark.parametrize(
    "kind",
    [
        "reset_before", "reset_after", "http_429", "http_500", "http_502_html", "http_503", "http_404", "redirect",
        "code_500_body", "junk", "half_json", "wrong_types", "missing_fields", "null_data", "no_data", "huge_body",
        "other_task",
    ],
)  # fmt: skip
async def test_transient_status_reply_is_retried(
    realtime_sandbox: SandboxServer, make_client: MakeClient, sleeps: SleepRecorder, kind: str
) -> None:
    client = make_client(realtime_sandbox.base_url)
    task_id = await client.submit_once(KITE)
    realtime_sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": 2}))
    assert (await client.status(task_id)).task_id == task_id
    assert len(realtime_sandbox.record.statuses(task_id)) == 3
    assert sleeps == [1.5, 3.0]


@pytest.mark.parametrize(("kind", "expected"), [("http_401", AuthenticationError), ("task_unknown", BadRequestError)])
async def test_permanent_rejection_is_not_retried(
    realtime_sandbox: SandboxServer,
    make_client: MakeClient,
    sleeps: SleepRecorder,
    kind: str,
    expected: type[ApixoError],
) -> None:
    realtime_sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    with pytest.raises(expected) as raised:
        await make_client(realtime_sandbox.base_url).status("task_1")
    assert raised.value.task_id == "task_1"
    assert len(realtime_sandbox.record.statuses()) == 1
    assert sleeps == []


async def test_persistent_fault_is_raised_after_max_tries(make_client: MakeClient, sleeps: SleepRecorder) -> None:
    async with serving(reset) as server:
        with pytest.raises(NoReplyError) as raised:
            await make_client(server.url).status("task_1")
        assert raised.value.task_id == "task_1"
        assert len(server.requests) == 3
    assert len(sleeps) == 2


async def test_dead_kept_alive_connection_costs_one_extra_request(make_client: MakeClient) -> None:
    async with serving(PENDING, cut(), PENDING) as server:
        client = make_client(server.url)
        await client.status("task_1")
        await client.status("task_1")
        assert len(server.requests) == 3


async def test_undocumented_state_is_returned_and_not_retried(
    realtime_sandbox: SandboxServer, make_client: MakeClient
) -> None:
    client = make_client(realtime_sandbox.base_url)
    task_id = await client.submit_once(KITE)
    realtime_sandbox.faults.add(Fault(call="status", kind="unknown_state"))
    status = await client.status(task_id)
    assert (type(status), status.state) == (InProgress, "queued_v2")
    assert (await client.status(task_id)).state == "pending"


@pytest.mark.parametrize("task_id", ["task_1", "a b&c=d", "täsk", "../../x?y#z"])
async def test_task_id_reaches_the_server_unchanged(make_client: MakeClient, task_id: str) -> None:
    async with serving(reply(http(200, envelope({"taskId": task_id, "state": "pending"})))) as server:
        await make_client(server.url + "/prefix").status(task_id)
        method, target, _ = server.lines()[0].split(" ")
        assert method == "GET"
        assert urlsplit(target).path == "/prefix/api/v1/statusTask/sora-2"
        assert parse_qs(urlsplit(target).query) == {"taskId": [task_id]}


async def test_silent_server_times_out_a_status_request(make_client: MakeClient) -> None:
    async with serving(hang) as server:
        with pytest.raises(NoReplyError):
            await make_client(server.url, read_timeout_seconds=0.1).status_once("task_1")


async def test_trickling_headers_time_out_a_status_request(make_client: MakeClient) -> None:
    async def drip(exchange: Any) -> None:
        while True:
            await exchange.send(b"HTTP/1.1 200 OK\r\n" if not exchange.body else b"x: y\r\n")
            exchange.body = b"started"
            await asyncio.sleep(0.02)

    async with serving(drip) as server:
        with pytest.raises(NoReplyError, match="task_1"):
            await make_client(server.url, read_timeout_seconds=0.1).status_once("task_1")


async def test_wait_for_end_polls_through_errors_until_the_result(
    make_client: MakeClient, sleeps: SleepRecorder
) -> None:
    async with serving(PENDING, reset, reply(http(429, retry_after="30")), DONE) as server:
        client = make_client(server.url)
        status = await wait_for_end(
            lambda: client.status_once("task_1"), task_id="task_1", sleep=sleeps, rng=lambda: 0.5
        )
        assert isinstance(status, Succeeded)
        assert status.result_urls == ("https://x.example/v",)
        assert len(server.requests) == 4
    assert sleeps == [180, 10, 10, 30]


@pytest.mark.parametrize("data", [74.87, 0, 12])
async def test_balance_is_read_from_a_bare_number(data: float, make_client: MakeClient) -> None:
    async with serving(reply(http(200, envelope(data)))) as server:
        assert await make_client(server.url).balance_once() == Decimal(str(data))
        assert server.lines() == ["GET /api/v1/apikeys/current-balance HTTP/1.1"]


@pytest.mark.parametrize("data", [None, "74.87", True, {"balance": 1}, [1]])
async def test_balance_that_is_not_a_number_raises_error(data: Any, make_client: MakeClient) -> None:
    async with serving(reply(http(200, envelope(data)))) as server:
        with pytest.raises(UnexpectedReplyError, match="no balance"):
            await make_client(server.url).balance_once()
