"""The free calls: the state of a task, repeated where that can help, and the balance."""

import asyncio
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from apixo import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    NoReplyError,
    Pending,
    Succeeded,
    UnexpectedReplyError,
    UnknownState,
    wait_for_end,
)
from deployments.sandbox import Fault, SandboxServer

from .conftest import KITE, Connect, Naps
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
async def test_a_transient_answer_is_asked_for_again(
    own_sandbox: SandboxServer, own_connect: Connect, own_naps: Naps, kind: str
) -> None:
    client = own_connect(own_sandbox.base_url)
    task_id = await client.submit_once(KITE)
    own_sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": 2}))
    assert (await client.status(task_id)).task_id == task_id
    assert len(own_sandbox.record.statuses(task_id)) == 3
    assert own_naps == [1.5, 3.0]


@pytest.mark.parametrize(("kind", "expected"), [("http_401", AuthenticationError), ("task_unknown", BadRequestError)])
async def test_a_no_that_stays_is_not_asked_again(
    own_sandbox: SandboxServer, own_connect: Connect, own_naps: Naps, kind: str, expected: type[ApixoError]
) -> None:
    own_sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind, "times": -1}))
    with pytest.raises(expected) as raised:
        await own_connect(own_sandbox.base_url).status("task_1")
    assert raised.value.task_id == "task_1"
    assert len(own_sandbox.record.statuses()) == 1
    assert own_naps == []


async def test_a_fault_that_stays_comes_out_in_the_end(own_connect: Connect, own_naps: Naps) -> None:
    async with serving(reset) as server:
        with pytest.raises(NoReplyError) as raised:
            await own_connect(server.url).status("task_1")
        assert raised.value.task_id == "task_1"
        assert len(server.requests) == 3
    assert len(own_naps) == 2


async def test_a_kept_connection_that_has_died_costs_one_more_question(own_connect: Connect) -> None:
    async with serving(PENDING, cut(), PENDING) as server:
        client = own_connect(server.url)
        await client.status("task_1")
        await client.status("task_1")
        assert len(server.requests) == 3


async def test_an_unknown_state_is_an_answer(own_sandbox: SandboxServer, own_connect: Connect) -> None:
    client = own_connect(own_sandbox.base_url)
    task_id = await client.submit_once(KITE)
    own_sandbox.faults.add(Fault(call="status", kind="unknown_state"))
    status = await client.status(task_id)
    assert (type(status), status.state) == (UnknownState, "queued_v2")
    assert isinstance(await client.status(task_id), Pending)


@pytest.mark.parametrize("task_id", ["task_1", "a b&c=d", "täsk", "../../x?y#z"])
async def test_the_task_id_arrives_as_it_is(own_connect: Connect, task_id: str) -> None:
    async with serving(reply(http(200, envelope({"taskId": task_id, "state": "pending"})))) as server:
        await own_connect(server.url + "/prefix").status(task_id)
        method, target, _ = server.lines()[0].split(" ")
        assert method == "GET"
        assert urlsplit(target).path == "/prefix/api/v1/statusTask/sora-2"
        assert parse_qs(urlsplit(target).query) == {"taskId": [task_id]}


@pytest.mark.parametrize("read_timeout_seconds", [0.1])
async def test_silence_ends_a_question(own_connect: Connect, read_timeout_seconds: float) -> None:
    async with serving(hang) as server:
        client = own_connect(server.url, read_timeout_seconds=read_timeout_seconds)
        with pytest.raises(NoReplyError):
            await client.status_once("task_1")


async def test_a_trickle_ends_a_question(own_connect: Connect) -> None:
    async def drip(exchange: Any) -> None:
        while True:
            await exchange.send(b"HTTP/1.1 200 OK\r\n" if not exchange.body else b"x: y\r\n")
            exchange.body = b"started"
            await asyncio.sleep(0.02)

    async with serving(drip) as server:
        with pytest.raises(NoReplyError, match="task_1"):
            await own_connect(server.url, read_timeout_seconds=0.1).status_once("task_1")


async def test_waiting_ends_with_the_result(own_connect: Connect, own_naps: Naps) -> None:
    async with serving(PENDING, reset, reply(http(429, retry_after="30")), DONE) as server:
        client = own_connect(server.url)
        status = await wait_for_end(
            lambda: client.status_once("task_1"), task_id="task_1", sleep=own_naps, rng=lambda: 0.5
        )
        assert isinstance(status, Succeeded)
        assert status.result_urls == ("https://x.example/v",)
        assert len(server.requests) == 4
    assert own_naps == [180, 10, 10, 30]


@pytest.mark.parametrize("data", [74.87, 0, 12])
async def test_the_balance_is_a_bare_number(data: float, own_connect: Connect) -> None:
    async with serving(reply(http(200, envelope(data)))) as server:
        assert await own_connect(server.url).balance_once() == Decimal(str(data))
        assert server.lines() == ["GET /api/v1/apikeys/current-balance HTTP/1.1"]


@pytest.mark.parametrize("data", [None, "74.87", True, {"balance": 1}, [1]])
async def test_a_balance_that_is_no_number_is_an_error(data: Any, own_connect: Connect) -> None:
    async with serving(reply(http(200, envelope(data)))) as server:
        with pytest.raises(UnexpectedReplyError, match="no balance"):
            await own_connect(server.url).balance_once()
