"""The sandbox's callback mode, with a real HTTP server as the receiver."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from deployments.sandbox import Fault, SandboxServer
from tests.deployments.sandbox.caller import KEY, Caller, urls
from tests.deployments.sandbox.conftest import StartSandbox
from tests.support.webhook import Webhook, webhook


@pytest.fixture
def receiver() -> Iterator[Webhook]:
    with webhook("/apixo/some-key/token") as opened:
        yield opened


def callback_fields(url: str) -> dict[str, str]:
    return {"request_type": "callback", "callback_url": url}


def test_callback_body_equals_the_status_reply(call: Caller, receiver: Webhook) -> None:
    task_id = call.task(top=callback_fields(receiver.url))
    (envelope,) = receiver.wait_for(1)
    assert envelope == call.status(task_id).json()
    assert call.http.get(urls(envelope["data"])[0]).status_code == 200


def test_failed_task_sends_a_callback(call: Caller, receiver: Webhook) -> None:
    call.task(prompt="forbidden", top=callback_fields(receiver.url))
    assert receiver.wait_for(1)[0]["data"]["failCode"] == "CONTENT_VIOLATION"


def test_polling_mode_sends_no_callback(call: Caller, receiver: Webhook) -> None:
    call.final_status(call.task(top={"callback_url": receiver.url}))
    time.sleep(0.1)
    assert receiver.bodies == []


def test_rejected_callback_is_retried_with_backoff(
    start_sandbox: StartSandbox, http: httpx.Client, receiver: Webhook
) -> None:
    sandbox = start_sandbox(speed=100)
    receiver.statuses = [500, 302]
    Caller(sandbox.base_url, http, KEY).task(prompt="forbidden", top=callback_fields(receiver.url))
    assert len(receiver.wait_for(3)) == 3
    first, second, third = receiver.times
    assert second - first > 0.04
    assert third - second > 0.09  # a busy machine can only make a pause longer
    time.sleep(0.1)
    assert len(receiver.bodies) == 3


def test_callback_is_sent_at_most_three_times(sandbox: SandboxServer, call: Caller, receiver: Webhook) -> None:
    receiver.statuses = [503] * 10
    task_id = call.task(top=callback_fields(receiver.url))
    receiver.wait_for(3)
    time.sleep(0.1)
    task = sandbox.tasks.get(task_id)
    assert task is not None
    assert [attempt.status for attempt in task.callbacks] == [503, 503, 503]


@pytest.mark.parametrize(
    ("url", "error"), [("http://127.0.0.1:9/gone", "ConnectError"), ("http://127.0.0.1:99999/x", "ExceptionGroup")]
)
def test_unreachable_receiver_does_not_affect_the_task(
    sandbox: SandboxServer, call: Caller, url: str, error: str
) -> None:
    task_id = call.task(top=callback_fields(url))
    assert call.final_status(task_id)["state"] == "success"
    task = sandbox.tasks.get(task_id)
    assert task is not None
    deadline = time.monotonic() + 60
    while len(task.callbacks) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [attempt.error for attempt in task.callbacks] == [error] * 3


def test_drop_fault_sends_no_callback(sandbox: SandboxServer, call: Caller, receiver: Webhook) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    call.final_status(call.task(top=callback_fields(receiver.url)))
    time.sleep(0.15)
    assert receiver.bodies == []
    assert sandbox.faults.pending() == []


def test_twice_fault_sends_the_callback_twice(sandbox: SandboxServer, call: Caller, receiver: Webhook) -> None:
    sandbox.faults.add(Fault(call="callback", kind="twice"))
    call.task(top=callback_fields(receiver.url))
    first, second = receiver.wait_for(2)
    assert first == second


def test_early_fault_sends_one_callback_before_the_end(sandbox: SandboxServer, call: Caller, receiver: Webhook) -> None:
    sandbox.faults.add(Fault(call="callback", kind="early"))
    task_id = call.task(top=callback_fields(receiver.url))
    call.final_status(task_id)
    time.sleep(0.1)
    (envelope,) = receiver.wait_for(1)
    assert envelope["data"]["taskId"] == task_id
    assert envelope["data"]["state"] in ("pending", "processing")


def test_junk_fault_sends_invalid_json(sandbox: SandboxServer, call: Caller, receiver: Webhook) -> None:
    sandbox.faults.add(Fault(call="callback", kind="junk"))
    call.task(top=callback_fields(receiver.url))
    with pytest.raises(ValueError, match="Expecting value"):
        receiver.wait_for(1)


def test_late_fault_delays_the_callback(sandbox: SandboxServer, call: Caller, receiver: Webhook) -> None:
    sandbox.faults.add(Fault(call="callback", kind="late", seconds=0.3))
    task_id = call.task(top=callback_fields(receiver.url))
    receiver.wait_for(1)
    task = sandbox.tasks.get(task_id)
    assert task is not None
    assert task.completed_at is not None
    received_at = time.time() - (time.monotonic() - receiver.times[0])
    assert received_at - task.completed_at > 0.2
