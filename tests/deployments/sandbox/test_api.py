"""The sandbox's two documented API calls: submitting a task and polling its status."""

from __future__ import annotations

import re
import time
from typing import Any

import httpx
import pytest

from deployments.sandbox import SandboxServer
from tests.deployments.sandbox.caller import KEY, STATUS, SUBMIT, Caller, body, urls
from tests.deployments.sandbox.conftest import StartSandbox


def test_task_goes_from_pending_to_processing_to_a_video(start_sandbox: StartSandbox, http: httpx.Client) -> None:
    sandbox = start_sandbox(speed=300)
    call = Caller(sandbox.base_url, http, KEY)
    before = time.time() * 1000
    reply = call.submit()
    assert reply.status_code == 200
    assert reply.json()["code"] == 200
    task_id = reply.json()["data"]["taskId"]
    assert re.fullmatch(r"task_[0-9a-f]{8,}", task_id)

    states: list[str] = []
    data = call.status(task_id).json()["data"]
    while data["state"] != "success":
        assert {"resultJson", "completeTime", "costTime", "failCode"}.isdisjoint(data)
        if data["state"] not in states:
            states.append(data["state"])
        data = call.status(task_id).json()["data"]
    assert states == ["pending", "processing"]

    assert data["taskId"] == task_id
    assert isinstance(data["resultJson"], str)
    assert len(urls(data)) == 1
    assert before - 1 <= data["createTime"] <= data["completeTime"] <= time.time() * 1000 + 1
    assert 0 < data["costTime"] <= data["completeTime"] - data["createTime"] + 1
    assert {"failCode", "failMsg"}.isdisjoint(data)


@pytest.mark.parametrize(("duration", "shortest", "longest"), [(4, 120, 240), (8, 180, 300), (12, 240, 360)])
def test_generation_takes_as_long_as_documented(
    start_sandbox: StartSandbox, http: httpx.Client, duration: int, shortest: float, longest: float
) -> None:
    sandbox = start_sandbox(speed=1)
    call = Caller(sandbox.base_url, http, KEY)
    for _ in range(20):
        call.task(duration=duration)
    planned = [task.planned_seconds for task in sandbox.tasks.all()]
    assert shortest <= min(planned) < max(planned) <= longest


def test_durations_are_the_same_in_each_sandbox_but_not_task_ids(
    start_sandbox: StartSandbox, http: httpx.Client
) -> None:
    plans, ids = [], []
    for _ in range(2):
        sandbox = start_sandbox(speed=1)
        call = Caller(sandbox.base_url, http, KEY)
        ids += [call.task() for _ in range(5)]
        plans.append([task.planned_seconds for task in sandbox.tasks.all()])
    assert plans[0] == plans[1]
    assert len(set(ids)) == 10


@pytest.mark.parametrize(
    "authorization", [None, "", "sandbox-key", "Bearer", "Bearer wrong", "Basic sandbox-key", "Bearer ü"]
)
def test_missing_or_wrong_key_is_401(sandbox: SandboxServer, http: httpx.Client, authorization: str | None) -> None:
    headers = httpx.Headers({} if authorization is None else {"Authorization": authorization}, encoding="latin-1")
    for reply in (
        http.post(sandbox.base_url + SUBMIT, json=body(), headers=headers),
        http.get(sandbox.base_url + STATUS, params={"taskId": "task_1"}, headers=headers),
    ):
        assert reply.status_code == 401
        assert reply.json() == {"code": 401, "message": "Invalid or missing API key", "data": None}
    assert not sandbox.record.charged()


INVALID_BODIES: list[tuple[str, Any]] = [
    ("input", {}),
    ("input", {"input": None}),
    ("input.mode", {"input": {"prompt": "p", "duration": 4}}),
    ("input.mode", body(mode="video-to-video")),
    ("input.prompt", {"input": {"mode": "text-to-video", "duration": 4}}),
    ("input.prompt", body(prompt="")),
    ("input.prompt", body(prompt="  \n ")),
    ("input.prompt", body(prompt="p" * 10_001)),
    ("input.prompt", body(prompt=7)),
    ("input.duration", {"input": {"mode": "text-to-video", "prompt": "p"}}),
    ("input.duration", body(duration=5)),
    ("input.duration", body(duration="4")),
    ("input.duration", body(duration=4.0)),
    ("input.duration", body(duration=True)),
    ("input.duration", body(duration=None)),
    ("input.aspect_ratio", body(aspect_ratio="square")),
    ("input.aspect_ratio", body(aspect_ratio=None)),
    ("input.image_urls", body(mode="image-to-video")),
    ("input.image_urls", body(mode="image-to-video", image_urls=[])),
    ("input.image_urls", body(mode="image-to-video", image_urls="http://x/y.jpg")),
    ("input.image_urls", body(mode="image-to-video", image_urls=[7])),
    ("input.remove_watermark", body(remove_watermark="no")),
    ("provider", body(top={"provider": "cheap"})),
    ("request_type", body(top={"request_type": "sync"})),
    ("callback_url", body(top={"request_type": "callback"})),
    ("callback_url", body(top={"request_type": "callback", "callback_url": ""})),
    ("callback_url", body(top={"request_type": "callback", "callback_url": "ftp://x"})),
    ("callback_url", body(top={"request_type": "callback", "callback_url": 7})),
    ("Input should be", []),
    ("Input should be", "text"),
]


@pytest.mark.parametrize(("field", "content"), INVALID_BODIES)
def test_invalid_body_is_400_and_names_the_field(
    sandbox: SandboxServer, call: Caller, field: str, content: Any
) -> None:
    reply = call.submit(content)
    assert reply.status_code == 400
    assert (reply.json()["code"], reply.json()["data"]) == (400, None)
    assert field in reply.json()["message"]
    assert not sandbox.record.charged()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"x" * 5_000_000])
def test_non_json_or_oversized_body_is_rejected(sandbox: SandboxServer, http: httpx.Client, content: bytes) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Connection": "close"}
    reply = http.post(sandbox.base_url + SUBMIT, content=content, headers=headers)
    assert reply.status_code == (413 if len(content) > 4_194_304 else 400)
    assert reply.json()["data"] is None


def test_longest_prompt_and_unknown_fields_are_accepted(call: Caller) -> None:
    assert call.submit(body(prompt="ä" * 10_000, top={"more": 1})).json()["code"] == 200


def test_status_of_unknown_or_missing_task_is_400(sandbox: SandboxServer, http: httpx.Client, call: Caller) -> None:
    unknown = call.status("task_00000000")
    assert unknown.status_code == 400
    assert unknown.json() == {"code": 400, "message": "task not found", "data": None}
    missing = http.get(sandbox.base_url + STATUS, headers=call.headers)
    assert "taskId" in missing.json()["message"]


def test_requests_over_the_rate_limit_are_429_until_the_minute_ends(
    start_sandbox: StartSandbox, http: httpx.Client
) -> None:
    sandbox = start_sandbox(requests_per_minute=3, speed=60)
    call = Caller(sandbox.base_url, http, KEY)
    codes = [call.status("task_00000000").status_code for _ in range(5)]
    assert codes == [400, 400, 400, 429, 429]
    rejected = call.submit()
    assert rejected.json() == {"code": 429, "message": "Rate limit exceeded", "data": None}
    assert not len(sandbox.tasks)
    time.sleep(1.05)
    assert call.submit().status_code == 200


def test_tasks_over_the_concurrency_limit_are_429_until_one_ends(
    start_sandbox: StartSandbox, http: httpx.Client
) -> None:
    sandbox = start_sandbox(max_concurrent_tasks=2, speed=400)
    call = Caller(sandbox.base_url, http, KEY)
    first = call.task()
    call.task()
    assert call.submit().status_code == 429
    assert len(sandbox.record.charged()) == 2
    call.final_status(first)
    assert call.submit().status_code == 200


def test_forbidden_prompt_fails_the_task(call: Caller) -> None:
    data = call.final_status(call.task(prompt="Something Forbidden in the mist"))
    assert (data["state"], data["failCode"]) == ("failed", "CONTENT_VIOLATION")
    assert data["failMsg"]
    assert data["completeTime"] >= data["createTime"]
    assert "resultJson" not in data


def test_record_lists_charged_requests_and_contains_no_key(sandbox: SandboxServer, call: Caller) -> None:
    task_id = call.task()
    call.submit({})
    call.status(task_id)
    call.status("task_else")
    good, bad = sandbox.record.submits()
    assert (good.charged, good.task_id, bad.charged) == (True, task_id, False)
    assert sandbox.record.charged() == [good]
    assert '"prompt"' in good.body
    assert [request.task_id for request in sandbox.record.statuses()] == [task_id, "task_else"]
    assert len(sandbox.record.statuses(task_id)) == 1
    assert all(request.carried_api_key and request.client_port for request in sandbox.record.all())
    assert KEY not in str(sandbox.record.all())
    sandbox.record.clear()
    assert sandbox.record.all() == []


def test_api_key_in_url_is_detected(sandbox: SandboxServer, http: httpx.Client) -> None:
    http.get(f"{sandbox.base_url}/samples/harbor.jpg?key={KEY}")
    http.get(f"{sandbox.base_url}/samples/harbor.jpg")
    assert [request.carried_api_key for request in sandbox.record.images()] == [True, False]


def test_front_page_shows_tasks_and_escapes_prompts(sandbox: SandboxServer, call: Caller) -> None:
    call.final_status(call.task(prompt="<script>alert(1)</script>"))
    page = call.http.get(sandbox.base_url + "/").text
    assert "&lt;script&gt;" in page
    assert "<script>" not in page
    assert "/video.mp4?expires=" in page
