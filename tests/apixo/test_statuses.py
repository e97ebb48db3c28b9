"""The state of a task, parsed from every kind of status reply."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apixo import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    Failed,
    InProgress,
    RateLimitError,
    ServerError,
    Status,
    Succeeded,
    UnexpectedReplyError,
    UnknownState,
)
from apixo.replies import parse_envelope, parse_status
from apixo.results import DOCUMENTED

from .wire import envelope

URL = "https://files.example.com/v.mp4?X-Amz-Signature=5ec7e7"
RESULT = json.dumps({"resultUrls": [URL]})


def status(http_status: int, body: bytes | dict[str, Any]) -> Status:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_status(parse_envelope(http_status, content, submission=False, task_id="task_1"), task_id="task_1")


def data(**fields: Any) -> dict[str, Any]:
    return envelope({"taskId": "task_1", **fields})


STATES: list[tuple[dict[str, Any], type[Status], dict[str, Any]]] = [
    ({"state": "pending"}, InProgress, {"state": "pending", "create_time_ms": None}),
    ({"state": "processing", "createTime": 1_700_000_000_000}, InProgress, {"create_time_ms": 1_700_000_000_000}),
    ({"state": "queued_v2"}, InProgress, {"state": "queued_v2"}),
    ({"state": "processing_r2"}, InProgress, {"state": "processing_r2", "remarks": ()}),
    ({"state": "processing_r2", "resultJson": RESULT, "failCode": "X"}, InProgress, {"state": "processing_r2"}),
    ({"state": "QUEUED_V2", "resultJson": RESULT, "failCode": "X"}, InProgress, {"state": "QUEUED_V2"}),
    ({"state": "error", "failMsg": "?"}, UnknownState, {"state": "error"}),
    ({"state": "completed", "failCode": None, "resultJson": "{}"}, UnknownState, {"state": "completed"}),
    ({"state": "expired", "failMsg": "?", "failCode": 0}, UnknownState, {"state": "expired"}),
    ({"state": "Success", "resultJson": RESULT}, Succeeded, {"state": "Success", "result_urls": (URL,), "remarks": ()}),
    ({"state": " SUCCESS\n", "resultJson": RESULT}, Succeeded, {"result_urls": (URL,), "remarks": ()}),
    ({"state": "Failed ", "failCode": "X"}, Failed, {"fail_code": "X", "remarks": ()}),
    ({"state": "PENDING"}, InProgress, {"state": "PENDING"}),
    ({"state": " Processing"}, InProgress, {"state": " Processing"}),
    ({"state": "succeeded", "resultJson": RESULT}, Succeeded, {"state": "succeeded", "result_urls": (URL,)}),
    ({"state": "processed", "resultJson": RESULT}, Succeeded, {"result_urls": (URL,)}),
    ({"state": 2, "resultJson": RESULT}, Succeeded, {"state": "2", "result_urls": (URL,)}),
    ({"resultJson": RESULT}, Succeeded, {"state": "", "result_urls": (URL,)}),
    ({"state": "completed", "videos": [{"url": URL}]}, Succeeded, {"result_urls": (URL,)}),
    (
        {"successFlag": 1, "paramJson": json.dumps({"imageUrls": [URL]}), "response": {"resultUrls": [URL]}},
        Succeeded,
        {"state": "", "result_urls": (URL,)},
    ),
    ({"state": "fail", "failCode": "500", "failMsg": "x"}, Failed, {"fail_code": "500", "fail_message": "x"}),
    ({"state": "cancelled", "failCode": 7}, Failed, {"fail_code": "7"}),
    ({"state": ""}, UnknownState, {"state": ""}),
    # In progress, in the words of other video APIs, with a placeholder for the result or the failCode.
    (
        {"state": "wait", "videoInfo": {"videoUrl": URL}, "failCode": 400, "failMsg": "please try again later"},
        InProgress,
        {"state": "wait"},
    ),
    ({"state": "initializing", "task_result": {"videos": [{"url": URL}]}}, InProgress, {"state": "initializing"}),
    *(
        ({"state": state, "failCode": "400"}, InProgress, {"state": state})
        for state in ("queuing", "generating", "Rendering ", "submitted", "created", "NOT_START", "THROTTLED")
    ),
    ({"state": "missing", "failCode": "404"}, Failed, {"fail_code": "404"}),
    *(
        ({"state": "completed", "failCode": code}, UnknownState, {"state": "completed"})
        for code in ("NONE", "N/A", "ok", "SUCCESS", 200)
    ),
    (
        {"state": "success", "resultJson": RESULT, "completeTime": 5, "costTime": 3},
        Succeeded,
        {"result_urls": (URL,), "complete_time_ms": 5, "cost_time_ms": 3},
    ),
    ({"state": "success", "resultJson": {"resultUrls": [URL]}}, Succeeded, {"result_urls": (URL,)}),
    # Half a surrogate pair in the inner JSON: it cannot be stored, and must not lose the good URL next to it.
    (
        {"state": "success", "resultJson": '{"resultUrls": ["https://h/a.mp4", "https://h/\\ud83d.mp4"]}'},
        Succeeded,
        {"result_urls": ("https://h/a.mp4", "https://h/?.mp4")},
    ),
    (
        {"state": "success", "resultJson": json.dumps({"resultUrls": [URL, "b"]})},
        Succeeded,
        {"result_urls": (URL, "b")},
    ),
    ({"state": "success", "resultJson": '{"resultUrls": [" /v.mp4 "]}'}, Succeeded, {"result_urls": ("/v.mp4",)}),
    (
        {"state": "success", "resultJson": '{"resultUrls": ["a"], "cover": 1}', "failCode": None},
        Succeeded,
        {"result_urls": ("a",)},
    ),
    (
        {"state": "failed", "failCode": "CONTENT_VIOLATION", "failMsg": "no"},
        Failed,
        {"fail_code": "CONTENT_VIOLATION", "fail_message": "no"},
    ),
    (
        {"state": "failed", "failCode": "SOMETHING_NEW", "failMsg": "?"},
        Failed,
        {"fail_code": "SOMETHING_NEW", "fail_message": "?"},
    ),
    ({"state": "failed"}, Failed, {"fail_code": "", "fail_message": ""}),
    ({"state": "failed", "failCode": None, "failMsg": None}, Failed, {"fail_code": "", "fail_message": ""}),
    ({"state": "failed", "failCode": 500, "failMsg": ["?"]}, Failed, {"fail_code": "500", "fail_message": "['?']"}),
    ({"state": "failed", "failCode": "X", "resultJson": "{"}, Failed, {"fail_code": "X"}),
]


@pytest.mark.parametrize(("fields", "state", "expected"), STATES)
def test_each_state_is_parsed_to_its_own_class(
    fields: dict[str, Any], state: type[Status], expected: dict[str, Any]
) -> None:
    found = status(200, data(**fields))
    assert type(found) is state
    assert found.task_id == "task_1"
    assert {name: getattr(found, name) for name in expected} == expected
    assert type(found).model_validate_json(found.model_dump_json()) == found, "it must be storable"


@pytest.mark.parametrize("fields", [fields for fields, _, _ in STATES])
def test_undocumented_fields_are_ignored(fields: dict[str, Any]) -> None:
    undocumented = {
        "seed": 7,
        "prompt": "cut in the middle of an emoji: \ud83d",
        "nested": {"a": [1, None]},
        "self": "odd",
        "model_config": {},
        "task_id": "task_0ddba11",
        "result_urls": ["elsewhere"],
        "fail_code": "odd",
        "fail_message": "odd",
        "remarks": ["odd"],
        "create_time_ms": "odd",
    }
    found = status(200, data(**fields, **undocumented))
    assert found == status(200, data(**fields))
    assert found.model_dump_json()


MALFORMED_RESULTS: list[Any] = [
    None, 5, "", "null", "[]", "{}", '{"resultUrls": ["http', '{"resultUrls": []}', '{"resultUrls": null}',
    '{"resultUrls": [" "]}', '{"resultUrls": [7]}', '{"resultUrls": "v.mp4"}', {"resultUrls": []}, "[" * 100_000,
    {"coverUrl": URL}, {"cover": {"url": URL}}, {"url": "https://files.example.com/v.jpg?sig=1"},
]  # fmt: skip

MALFORMED: list[tuple[int, bytes | dict[str, Any], type[ApixoError]]] = [
    (200, envelope(None), UnexpectedReplyError),
    (200, envelope([]), UnexpectedReplyError),
    (200, envelope({}), UnexpectedReplyError),
    (200, data(), UnexpectedReplyError),
    (200, data(state=None), UnexpectedReplyError),
    (200, data(state=3), UnexpectedReplyError),
    (200, data(state=["success"]), UnexpectedReplyError),
    (200, envelope({"taskId": "task_2", "state": "success", "resultJson": RESULT}), UnexpectedReplyError),
    (200, envelope({"taskId": 7, "state": "pending"}), UnexpectedReplyError),
    (200, data(state="success", statusUrl=URL, callback_url=URL, input={"image_urls": [URL]}), UnexpectedReplyError),
    (200, data(state="success"), UnexpectedReplyError),
    *(
        (200, data(state="success", resultJson=result), UnexpectedReplyError)
        for result in MALFORMED_RESULTS
    ),
    (400, {"code": 400, "message": "task not found", "data": None}, BadRequestError),
    (200, {"code": 401, "message": "no", "data": None}, AuthenticationError),
    *((code, {"code": code, "message": "no", "data": None}, ServerError) for code in (402, 403, 404)),  # or too early
    (429, b"slow down", RateLimitError),
    (500, data(state="success", resultJson=RESULT), ServerError),
    (200, b"<html>", UnexpectedReplyError),
]  # fmt: skip


@pytest.mark.parametrize(("http_status", "body", "expected"), MALFORMED)
def test_malformed_status_raises_error_that_names_the_task(
    http_status: int, body: bytes | dict[str, Any], expected: type[ApixoError]
) -> None:
    with pytest.raises(ApixoError) as raised:
        status(http_status, body)
    assert type(raised.value) is expected
    assert raised.value.task_id == "task_1"
    assert "5ec7e7" not in str(raised.value)


SECOND = "https://files.example.com/2.mp4?X-Amz-Signature=5ec7e7"

RESULT_PLACES: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"resultJson": {"resultUrls": URL}}, (URL,), DOCUMENTED),
    ({"resultJson": [URL, SECOND]}, (URL, SECOND), "resultJson"),
    ({"resultJson": URL}, (URL,), "resultJson"),
    ({"resultJson": f" {URL} "}, (URL,), "resultJson"),
    ({"resultJson": json.dumps(json.dumps({"resultUrls": [URL]}))}, (URL,), DOCUMENTED),
    ({"resultJson": {"resultUrls": [{"url": URL}, {"url": SECOND}]}}, (URL, SECOND), "resultJson.resultUrls.url"),
    ({"resultJson": json.dumps({"resultUrl": URL})}, (URL,), "resultJson.resultUrl"),
    ({"resultJson": json.dumps({"video_url": URL, "cover_url": SECOND})}, (URL,), "resultJson.video_url"),
    ({"resultJson": json.dumps({"anything": {"else": URL}})}, (URL,), "resultJson.anything.else"),
    ({"resultJson": {"videos": [{"thumbnail": SECOND, "url": URL}]}}, (URL,), "resultJson.videos.url"),
    ({"resultJson": {"urls": ["https://files.example.com/v.JPG", URL]}}, (URL,), "resultJson.urls"),
    ({"resultJson": {"url": URL, "videoUrl": URL}}, (URL,), "resultJson.url"),
    ({"resultJson": {"url": "//files.example.com/v.mp4"}}, ("//files.example.com/v.mp4",), "resultJson.url"),
    ({"resultJson": {"resultUrls": [f"{URL}&amp;a=1&AMP;b=2&#38;c=3&#x26;d=4&amp;amp;e=5"]}},
     (f"{URL}&a=1&b=2&c=3&d=4&e=5",), DOCUMENTED),
    ({"resultJson": {"url": f"{URL}&amp;a=1"}}, (f"{URL}&a=1",), "resultJson.url"),
    ({"resultJson": None, "resultUrls": [URL]}, (URL,), "resultUrls"),
    ({"resultJson": "", "videoUrl": URL, "statusUrl": SECOND}, (URL,), "videoUrl"),
    ({"output": {"videos": [{"url": URL}]}, "input": {"url": SECOND}}, (URL,), "output.videos.url"),
    ({"response": {"resultUrls": [URL], "originUrls": [SECOND]}}, (URL,), "response.resultUrls"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "urls", "where"), RESULT_PLACES)
def test_result_urls_are_found_wherever_they_are(fields: dict[str, Any], urls: tuple[str, ...], where: str) -> None:
    found = status(200, data(state="success", **fields))
    assert isinstance(found, Succeeded)
    assert found.result_urls == urls
    remark = f"The result of task task_1 was in {where!r}, not in resultJson.resultUrls."
    assert found.remarks == (() if where == DOCUMENTED else (remark,))


def test_undocumented_final_state_is_quoted_in_a_remark() -> None:
    quoted = "APIXO reports task task_1 as '%s', an undocumented state."
    assert status(200, data(state="Completed!", resultJson=RESULT)).remarks == (
        f"{quoted % 'Completed!'} It came with a result, so it counts as a success.",
    )
    assert status(200, data(state="fail", failCode="500")).remarks == (
        f"{quoted % 'fail'} It came with a failCode, so it counts as a failure.",
    )
    assert "5ec7e7" not in str(status(200, data(state=URL, resultJson=RESULT)).remarks)


def test_status_without_task_id_belongs_to_the_polled_task() -> None:
    assert isinstance(status(200, envelope({"state": "success", "resultJson": RESULT})), Succeeded)
    assert isinstance(status(200, envelope({"taskId": None, "state": "success", "resultJson": RESULT})), Succeeded)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(5, 5), ("5", 5), (5.9, 5), ("yesterday", None), (None, None), ([], None), ({}, None), (float("nan"), None),
     (float("inf"), None), (10**30, 10**30), (-1, -1), ("9" * 5_000, None)],
)  # fmt: skip
def test_malformed_times_do_not_lose_the_result(value: object, expected: int | None) -> None:
    found = status(200, data(state="success", resultJson=RESULT, createTime=value, completeTime=value, costTime=value))
    assert isinstance(found, Succeeded)
    assert (found.create_time_ms, found.complete_time_ms, found.cost_time_ms) == (expected, expected, expected)


@given(st.text(min_size=1))
def test_an_unknown_state_keeps_its_raw_value(state: str) -> None:
    if state.strip().lower() not in ("pending", "processing", "success", "failed"):
        assert status(200, data(state=state)).state == state


@pytest.mark.parametrize(
    "damaged",
    [
        json.dumps(data(state="success", resultJson=RESULT))[:-2],
        json.dumps(data(state="success", resultJson=RESULT)).replace("/", "\\/")[:-2],
        json.dumps(data(state="success", resultJson=RESULT.replace("?", "?a=1\\u0026b=2\\u0026")))[:-2],
        json.dumps(data(state="success", resultJson=RESULT + "}")),
        json.dumps(data(state="success", resultJson=RESULT.replace("resultUrls", "coverUrl"))),
        json.dumps(data(state=3, coverUrl=RESULT.replace("?", "?a=1\\u0026"))),
    ],
)
def test_error_messages_show_no_result_signature(damaged: str) -> None:
    with pytest.raises(UnexpectedReplyError) as raised:
        status(200, damaged.encode())
    assert "5ec7e7" not in f"{raised.value!r} {raised.value.__cause__!r} {raised.value.__cause__}"
