"""Every fault of the sandbox's two API calls: what the caller sees, and whether it was charged."""

from __future__ import annotations

import json
import time
from typing import Any, get_args

import httpx
import pytest
from pydantic import ValidationError

from deployments.sandbox import Fault, FaultScript, SandboxServer
from deployments.sandbox.faults import KINDS, ApiKind, StatusKind, SubmitKind
from tests.deployments.sandbox.caller import Caller, urls
from tests.deployments.sandbox.test_results import DOWNLOADS

#: For each kind of fault: whether a submit with it is charged, and what the caller sees. A number is an HTTP status,
#: an exception means a broken connection, and a string describes what is wrong with the reply.
EXPECTED: dict[str, tuple[bool, Any]] = {
    "reset_before": (False, httpx.ReadError),
    "reset_after": (True, httpx.ReadError),
    "hang": (False, httpx.ReadTimeout),
    "hang_after": (True, httpx.ReadTimeout),
    "slow": (True, 200),
    "http_429": (False, 429),
    "http_500": (False, 500),
    "http_500_after": (True, 500),
    "http_502_html": (False, "not json"),
    "http_503": (False, 503),
    "http_402": (False, 402),
    "http_403": (False, 403),
    "http_404": (False, 404),
    "http_403_html": (False, "not json"),
    "http_404_html": (False, "not json"),
    "http_400": (False, 400),
    "http_400_credits": (False, 400),
    "http_400_model": (False, 400),
    "http_400_html": (False, "not json"),
    "http_400_error": (False, (400, {"error": "Missing required field: input.prompt"})),
    "http_400_code_200": (False, "400, code 200"),
    "http_400_code_500": (False, "400, code 500"),
    "http_401": (False, 401),
    "http_401_error": (False, (401, {"error": "No such key"})),
    "http_402_code_403": (False, "402, code 403"),
    "http_402_no_data": (False, (402, "no data")),
    "http_403_content": (False, 403),
    "http_404_no_data": (False, (404, "no data")),
    "http_500_code_400": (False, "500, code 400"),
    "http_503_code_200": (False, "503, code 200"),
    "redirect": (False, "redirect"),
    **{f"code_{code}_body": (False, f"code {code}") for code in (400, 401, 402, 403, 404, 429, 500, 503)},
    "code_400_after": (True, "code 400"),
    "junk": (True, "not json"),
    "half_json": (True, "not json"),
    "wrong_types": (True, "wrong types"),
    "missing_fields": (True, "empty data"),
    "null_data": (True, "null data"),
    "no_data": (True, "no data"),
    "text_code": (True, "code as text"),
    "huge_body": (True, "huge"),
}


def test_tables_cover_every_kind_of_fault() -> None:
    assert set(EXPECTED) == set(get_args(ApiKind))
    assert set(ALTERED) | NOT_ALTERED == set(get_args(StatusKind))
    assert set(get_args(SubmitKind)) == {"number_id"}  # has its own test below
    assert set(DOWNLOADS) == KINDS["result"]


def describe_reply(reply: httpx.Response) -> Any:
    """Describes a reply in the terms of the table EXPECTED, as a caller that trusts nothing sees it."""
    if reply.is_redirect:
        assert reply.headers["location"].startswith("/api/v1/")
        return "redirect"
    try:
        content = reply.json()
    except ValueError:
        return "not json"
    if reply.status_code != 200:
        data = content.get("data", "no data")
        reported = reply.status_code if data is None else (reply.status_code, data)
        return reported if content["code"] == reply.status_code else f"{reply.status_code}, code {content['code']}"
    if content["code"] != 200:
        return "code as text" if content["code"] == "200" else f"code {content['code']}"
    return describe_data(content.get("data", "missing"), len(reply.content))


def describe_data(data: Any, size: int) -> Any:
    match data:
        case "missing":
            return "no data"
        case None:
            return "null data"
        case {"taskId": str()}:
            return "huge" if size > 50_000_000 else 200
        case {"taskId": _}:
            return "wrong types"
    return "empty data"


@pytest.mark.parametrize("call_name", ["submit", "status"])
@pytest.mark.parametrize("kind", EXPECTED)
def test_each_fault_has_the_expected_reply_and_charge(
    sandbox: SandboxServer, call: Caller, call_name: str, kind: str
) -> None:
    charged, expected = EXPECTED[kind]
    task_id = call.task()
    tasks_before = len(sandbox.tasks)
    sandbox.record.clear()
    sandbox.faults.add(Fault.model_validate({"call": call_name, "kind": kind, "seconds": 0.4 if kind == "slow" else 0}))
    timeout = 0.3 if kind.startswith("hang") else 10
    started = time.monotonic()

    def send_request() -> httpx.Response:
        return call.submit(None, timeout) if call_name == "submit" else call.status(task_id, timeout)

    if isinstance(expected, type):
        with pytest.raises(expected):
            send_request()
    else:
        assert describe_reply(send_request()) == expected
    if kind == "slow":
        assert time.monotonic() - started > 0.35
    (request,) = sandbox.record.all()
    assert (request.call, request.fault) == (call_name, kind)
    assert len(sandbox.record.charged()) == (charged and call_name == "submit")
    assert len(sandbox.tasks) == tasks_before + (charged and call_name == "submit")
    assert sandbox.faults.pending() == []
    assert send_request().json()["code"] == 200


@pytest.mark.parametrize("kind", ["hang", "hang_after"])
def test_hang_with_a_duration_cuts_the_connection(sandbox: SandboxServer, call: Caller, kind: str) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "seconds": 0.2}))
    started = time.monotonic()
    with pytest.raises(httpx.ReadError):
        call.submit()
    assert time.monotonic() - started > 0.15  # an endless hang would be a ReadTimeout


@pytest.mark.parametrize("kind", ["http_429", "http_503"])
def test_retry_after_header_is_sent_verbatim(sandbox: SandboxServer, call: Caller, kind: str) -> None:
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "retry_after": "soon-ish"}))
    assert call.submit().headers["retry-after"] == "soon-ish"
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind}))
    assert "retry-after" not in call.submit().headers


ALTERED: dict[str, dict[str, Any]] = {
    "unknown_state": {"state": "queued_v2"},
    "stuck_state": {"state": "expired"},
    "failed_once": {"state": "failed", "failCode": "SOMETHING_NEW"},
    "result_json_broken": {"state": "success"},
    "result_json_empty": {"state": "success", "resultJson": '{"resultUrls": []}'},
    "result_json_object": {"state": "success"},
    "result_json_two": {"state": "success"},
    "result_json_elsewhere": {"state": "success"},
    "success_upper": {"state": "SUCCESS"},
    "success_completed": {"state": "completed"},
    "other_task": {"state": "success", "taskId": "task_0ddba11"},
}
NOT_ALTERED = {"task_unknown", "failed"}
"""These have their own tests below."""


@pytest.mark.parametrize("kind", ALTERED)
def test_status_fault_alters_one_reply(sandbox: SandboxServer, call: Caller, kind: str) -> None:
    task_id = call.task()
    unaltered = call.final_status(task_id)
    sandbox.faults.add(Fault.model_validate({"call": "status", "kind": kind}))
    reply = call.status(task_id)
    data = reply.json()["data"]
    assert (reply.status_code, reply.json()["code"]) == (200, 200)
    assert ALTERED[kind].items() <= data.items()
    match kind:
        case "result_json_broken":
            with pytest.raises(json.JSONDecodeError):
                urls(data)
        case "result_json_object":
            assert data["resultJson"] == json.loads(unaltered["resultJson"])
        case "result_json_elsewhere":
            assert "resultJson" not in data
            assert [video["url"] for video in data["videos"]] == urls(unaltered)
        case "result_json_two":
            videos = [call.http.get(url) for url in urls(data)]
            assert [video.status_code for video in videos] == [200, 200]
            assert len({str(video.url) for video in videos}) == 2
    assert call.status(task_id).json()["data"] == unaltered


@pytest.mark.parametrize("ended", [True, False])
def test_task_failed_by_a_fault_stays_failed(sandbox: SandboxServer, call: Caller, ended: bool) -> None:
    task_id = call.task()
    if ended:
        call.final_status(task_id)
    sandbox.faults.add(Fault(call="status", kind="failed", fail_code="PROCESSING_TIMEOUT"))
    data = call.status(task_id).json()["data"]
    assert (data["state"], data["failCode"]) == ("failed", "PROCESSING_TIMEOUT")
    assert "resultJson" not in data
    deadline = time.monotonic() + 60
    while sandbox.tasks.unfinished and time.monotonic() < deadline:
        time.sleep(0.02)
    assert call.status(task_id).json()["data"] == data


def test_task_id_can_be_a_number(sandbox: SandboxServer, call: Caller) -> None:
    sandbox.faults.add(Fault(call="submit", kind="number_id"))
    task_id = call.submit().json()["data"]["taskId"]
    (paid,) = sandbox.record.charged()
    assert isinstance(task_id, int)
    assert paid.task_id == str(task_id)
    assert call.final_status(str(task_id))["state"] == "success"


def test_task_can_be_unknown_for_one_poll(sandbox: SandboxServer, call: Caller) -> None:
    task_id = call.task()
    sandbox.faults.add(Fault(call="status", kind="task_unknown"))
    assert call.status(task_id).json() == {"code": 400, "message": "task not found", "data": None}
    assert call.status(task_id).status_code == 200


def test_result_fault_applies_only_once_there_is_a_result(sandbox: SandboxServer, call: Caller) -> None:
    sandbox.faults.add(Fault(call="status", kind="result_json_empty"))
    data = call.final_status(call.task())
    assert urls(data) == []
    pending = [request.fault for request in sandbox.record.statuses()][:-1]
    assert set(pending) <= {None}


def test_skip_times_and_prompt_select_the_faulty_requests(sandbox: SandboxServer, call: Caller) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_500", skip=1, times=2, prompt_contains="fox"))
    prompts = ["fox 1", "bear", "fox 2", "fox 3", "fox 4"]
    codes = [call.submit({"input": {"mode": "text-to-video", "prompt": p, "duration": 4}}).status_code for p in prompts]
    assert codes == [200, 200, 500, 500, 200]


def test_prompt_filter_applies_to_status_requests(sandbox: SandboxServer, call: Caller) -> None:
    fox, bear = call.task(prompt="a fox"), call.task(prompt="a bear")
    sandbox.faults.add(Fault(call="status", kind="http_503", times=-1, prompt_contains="fox"))
    assert [call.status(task).status_code for task in (bear, fox, fox, bear, fox)] == [200, 503, 503, 200, 503]
    sandbox.faults.clear()
    assert call.status(fox).status_code == 200


def test_faults_apply_in_the_order_added() -> None:
    script = FaultScript()
    script.add(Fault(call="submit", kind="http_429", times=2), Fault(call="submit", kind="junk", skip=1))
    faults = [script.take("submit") for _ in range(5)]
    assert [fault and fault.kind for fault in faults] == ["http_429", "http_429", None, "junk", None]


@pytest.mark.parametrize(
    ("call_name", "kind"), [("submit", "cut"), ("submit", "unknown_state"), ("result", "junk"), ("image", "cut")]
)
def test_kind_that_does_not_fit_the_call_is_rejected(call_name: str, kind: str) -> None:
    with pytest.raises(ValidationError, match="is not for"):
        Fault.model_validate({"call": call_name, "kind": kind})


def test_faults_can_be_controlled_over_http(sandbox: SandboxServer, call: Caller) -> None:
    control_url = f"{sandbox.base_url}/sandbox"
    reply = call.http.post(f"{control_url}/faults", json=[{"call": "submit", "kind": "http_500", "times": -1}])
    assert [fault["kind"] for fault in reply.json()] == ["http_500"]
    assert call.submit().status_code == 500
    assert call.http.post(f"{control_url}/faults", json=[{"call": "submit", "kind": "cut"}]).status_code == 400
    assert call.http.delete(f"{control_url}/faults").status_code == 204
    task_id = call.task()
    requests = call.http.get(f"{control_url}/requests").json()
    assert [(request["fault"], request["charged"]) for request in requests] == [("http_500", False), (None, True)]
    task = call.http.get(f"{control_url}/tasks").json()[-1]
    assert (task["taskId"], task["request"]["input"]["duration"]) == (task_id, 4)


def test_rejection_with_a_task_id_is_charged(sandbox: SandboxServer, call: Caller) -> None:
    sandbox.faults.add(Fault(call="submit", kind="code_400_after"))
    reply = call.submit().json()
    (paid,) = sandbox.record.charged()
    assert (reply["code"], reply["data"]) == (400, {"taskId": paid.task_id})
