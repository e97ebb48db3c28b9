"""Which replies are acceptances, which are rejections, and which are unclear."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apixo import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    InsufficientBalanceError,
    ModelNotFoundError,
    PermissionDeniedError,
    ProvablyUnpaidError,
    RateLimitError,
    ServerError,
    UnclearError,
    UnexpectedReplyError,
)
from apixo.replies import parse_envelope, parse_status, parse_submitted

from .wire import envelope

ACCEPTED = envelope({"taskId": "task_1"})
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def rejection(code: int, message: Any = "Invalid parameters") -> dict[str, Any]:
    return {"code": code, "message": message, "data": None}


def deep(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


def submit(http_status: int, body: bytes) -> str:
    return parse_submitted(parse_envelope(http_status, body, submission=True))


INVALID_TASK_IDS: list[Any] = [
    None, "", "  ", " null ", "undefined", "None", True, 0, -7, 10**100, 1.5, [], {"id": 1}, "x" * 201, "task\n1",
    "task\x00", "\ud800",
]  # fmt: skip

SUBMITS: list[tuple[int, bytes | dict[str, Any], str | type[ApixoError]]] = [
    # An acceptance: HTTP status and code agree.
    (200, ACCEPTED, "task_1"),
    (201, ACCEPTED, "task_1"),
    (200, ACCEPTED | {"message": None}, "task_1"),
    (200, ACCEPTED | {"code": "200"}, "task_1"),
    (200, ACCEPTED | {"code": " 200 "}, "task_1"),
    (200, ACCEPTED | {"code": 200.0}, "task_1"),
    (402, rejection(402) | {"code": 402.0}, ServerError),
    (200, envelope({"taskId": 1234567}), "1234567"),
    (200, b'{"code": "200", "data": {"taskId": 12345678901234567890}}', "12345678901234567890"),
    (200, ACCEPTED | {"message": 7}, "task_1"),
    (200, ACCEPTED | {"traceId": "x"}, "task_1"),
    (200, envelope({"taskId": " task_1 "}), "task_1"),
    (200, envelope({"taskId": "task_1\n"}), "task_1"),
    (200, envelope({"taskId": "x" * 200}), "x" * 200),
    (200, b"\xef\xbb\xbf" + json.dumps(ACCEPTED).encode(), "task_1"),
    # An acceptance that names its task once, but in another spelling or place.
    (200, envelope({"task_id": "task_1"}), "task_1"),
    (200, envelope({"taskId": None, "TaskID": 7}), "7"),
    (200, envelope(None) | {"taskId": "task_1"}, "task_1"),
    (200, envelope({"task_id": "task_1"}) | {"task-id": "task_1"}, "task_1"),
    (200, envelope('{"taskId": "task_1"}'), "task_1"),
    (200, envelope({"taskId": "task_1", "task_id": "task_2"}) | {"taskId": "task_3"}, "task_1"),
    (200, envelope({"task_id": "task_1"}) | {"taskId": "task_2"}, UnexpectedReplyError),
    (200, envelope({"id": "task_1"}), UnexpectedReplyError),
    (200, envelope({"task": {"task_id": "task_1"}}), UnexpectedReplyError),
    # A documented rejection: HTTP status and code agree, or one of them rejects and the other says nothing.
    (400, rejection(400), BadRequestError),
    (401, rejection(401), AuthenticationError),
    (429, rejection(429), RateLimitError),
    (200, rejection(400), BadRequestError),
    (200, rejection(401), AuthenticationError),
    (200, rejection(429), RateLimitError),
    (200, rejection(429) | {"message": None}, RateLimitError),
    (200, rejection(429) | {"message": {"why": ["?"]}}, RateLimitError),
    (400, HTML, BadRequestError),
    (401, b"", AuthenticationError),
    (429, HTML, RateLimitError),
    (400, rejection(400, "Insufficient credits"), InsufficientBalanceError),
    (400, rejection(401), AuthenticationError),
    (401, rejection(429), RateLimitError),
    (429, rejection(400), BadRequestError),
    # The two disagree, and one of them is not a rejection: unclear.
    (400, ACCEPTED, ServerError),
    (401, ACCEPTED, ServerError),
    (429, ACCEPTED, ServerError),
    (500, ACCEPTED, ServerError),
    (500, rejection(400), ServerError),
    (502, rejection(429), ServerError),
    (302, rejection(400), ServerError),
    (404, rejection(401), AuthenticationError),
    (400, rejection(500), ServerError),
    (429, rejection(503), ServerError),
    # A rejection with a task id, data or a second code may be an acceptance, however that is spelled.
    (400, rejection(400) | {"data": {"taskId": "task_1"}}, ServerError),
    (400, rejection(400) | {"taskId": "task_1"}, ServerError),
    (400, rejection(400) | {"result": [{"TaskID": "task_1"}]}, ServerError),
    (200, b'{"code": 400, "message": "no", "data": null, "task\\u0049d": "task_1"}', ServerError),
    (200, b'{"code": 200, "code": 400, "message": "no", "data": null}', ServerError),
    (400, b'{"code": 400, "data": {"id": "task_1"}, "data": null}', ServerError),
    (400, json.dumps(rejection(400) | {"taskId": "task_1"}).encode("utf-16-le"), ServerError),
    (400, json.dumps(envelope({"taskId": "task_1"})).encode("utf-16-le")[:50], ServerError),
    (400, b'{"message": "no", "data": {"taskId": "task_1"', ServerError),  # cut off before its code
    (429, {"message": "no", "data": {"state": "pending"}}, ServerError),
    (429, {"message": "no", "data": None}, RateLimitError),
    (429, b'{"code": 429, "message": "no", "data": ' + deep(900) + b"}", ServerError),
    (400, rejection(400, "Unknown code 17") | {"detail": {"code": 17}}, BadRequestError),
    (400, rejection(400) | {"data": {}}, BadRequestError),
    # Neither an acceptance nor a documented rejection.
    (500, rejection(500), ServerError),
    (200, rejection(500), ServerError),
    (200, rejection(403), PermissionDeniedError),
    (200, rejection(0), ServerError),
    (200, rejection(-400), ServerError),
    (200, rejection(10**30), ServerError),
    (200, rejection(201), ServerError),
    (502, HTML, ServerError),
    (503, b"", ServerError),
    (404, rejection(404), ModelNotFoundError),
    (403, HTML, ServerError),
    (402, rejection(402), InsufficientBalanceError),
    (403, rejection(403), PermissionDeniedError),
    (402, {"code": 402, "message": "no"}, InsufficientBalanceError),
    (402, rejection(402) | {"data": {"taskId": "task_1"}}, ServerError),
    (404, rejection(404) | {"task_id": "task_1"}, ServerError),
    (400, rejection(400) | {"data": {"error": "Missing required field: input.prompt"}}, BadRequestError),
    (403, rejection(403) | {"data": {"error": "not allowed"}}, PermissionDeniedError),
    (400, rejection(400) | {"data": {"error": "see taskId 17"}}, ServerError),
    (400, rejection(400) | {"data": {"error": "task_12345678 was not queued"}}, ServerError),
    (400, rejection(400) | {"data": {"error": "0123456789abcdef0123456789abcdef"}}, ServerError),
    (400, rejection(400) | {"data": {"error": {"id": 1}}}, ServerError),
    (400, rejection(400) | {"data": {"error": "odd", "id": "task_1"}}, ServerError),
    # A task id anywhere.
    (400, rejection(400, "duplicate of task_12345678"), ServerError),
    (400, rejection(400, "0123456789abcdef0123456789abcdef is under way"), ServerError),
    (400, rejection(400) | {"task": {"id": "task_12345678"}}, ServerError),
    (400, rejection(400) | {"id": "task_12345678"}, ServerError),
    (400, rejection(400) | {"tasks": ["0123456789ABCDEF0123456789ABCDEF"]}, ServerError),
    # What a rejection quotes, and the id of the request itself, are not task ids.
    (429, rejection(429) | {"data": {"error": "Too many concurrent tasks"}}, RateLimitError),
    (400, rejection(400, "Request id: 0123456789abcdef0123456789abcdef"), BadRequestError),
    (400, rejection(400) | {"request_id": "0123456789abcdef0123456789abcdef"}, BadRequestError),
    (400, rejection(400, "https://h.example/0123456789abcdef0123456789abcdef.jpg is no image"), BadRequestError),
    (402, HTML, ServerError),
    (404, HTML, ServerError),
    (404, b'{"message": "no Route matched"}', ServerError),
    (404, rejection(500), ServerError),
    (404, ACCEPTED, ServerError),
    (408, b"", ServerError),
    (409, rejection(409), ServerError),
    (307, b"", ServerError),
    (100, b"", ServerError),
    # An acceptance that makes no sense.
    (200, b"", UnexpectedReplyError),
    (204, b"", UnexpectedReplyError),
    (200, HTML, UnexpectedReplyError),
    (200, b'{"code": 200, "message": "success", "data": {"taskId": "ta', UnexpectedReplyError),
    (200, b"null", UnexpectedReplyError),
    (200, b"200", UnexpectedReplyError),
    (200, b'"code"', UnexpectedReplyError),
    (200, b"[]", UnexpectedReplyError),
    (200, b'[{"code": 400}]', UnexpectedReplyError),
    (200, b"{}", UnexpectedReplyError),
    (200, b"\xff\xfe\x00", UnexpectedReplyError),
    (200, b"NaN", UnexpectedReplyError),
    (200, b'{"code": NaN}', UnexpectedReplyError),
    (200, b'{"code": Infinity}', UnexpectedReplyError),
    (200, b'{"code": ' + b"9" * 5_000 + b"}", UnexpectedReplyError),
    (200, deep(100_000), UnexpectedReplyError),
    (200, deep(100_000, b'{"code":', b"}"), UnexpectedReplyError),
    (200, b'{"code": 200, "message": null, "data": ' + deep(900) + b"}", UnexpectedReplyError),
    (200, ACCEPTED | {"code": True}, UnexpectedReplyError),
    (200, rejection(400) | {"code": "400"}, UnexpectedReplyError),  # a rejection must be exactly as documented
    (400, rejection(400) | {"code": "400"}, ServerError),
    (400, ACCEPTED | {"code": "200"}, ServerError),
    (200, rejection(400) | {"code": 400.0}, UnexpectedReplyError),
    (200, rejection(400) | {"code": None}, UnexpectedReplyError),
    (200, {"message": "success", "data": {"taskId": "task_1"}}, UnexpectedReplyError),
    (200, {"code": 200, "message": "success"}, UnexpectedReplyError),
    (200, envelope(None), UnexpectedReplyError),
    (200, envelope([]), UnexpectedReplyError),
    (200, envelope("task_1"), UnexpectedReplyError),
    (200, envelope([{"taskId": "task_1"}]), UnexpectedReplyError),
    (200, envelope({}), UnexpectedReplyError),
    *((200, envelope({"taskId": task_id}), UnexpectedReplyError) for task_id in INVALID_TASK_IDS),
]


@pytest.mark.parametrize(("http_status", "body", "expected"), SUBMITS)
def test_submission_reply_yields_task_id_or_error(
    http_status: int, body: bytes | dict[str, Any], expected: str | type[ApixoError]
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    if isinstance(expected, str):
        assert submit(http_status, content) == expected
        return
    with pytest.raises(ApixoError) as raised:
        submit(http_status, content)
    assert type(raised.value) is expected
    assert isinstance(raised.value, UnclearError) != isinstance(raised.value, ProvablyUnpaidError)


@pytest.mark.parametrize(
    "body",
    [
        {"code": 0, "message": "SUCCEED", "data": {"task_id": "task_1"}},
        {"code": 0, "message": "SUCCEED", "task": "task_1"},
        {"code": 200, "message": "success", "data": None, "id": "task_1"},
        {"code": 200, "message": "success", "data": {"id": "task_1"}},
        {"code": 400, "message": "duplicate", "data": {"taskId": "task_1"}},
    ],
)
def test_unclear_error_shows_the_possible_task_id(body: dict[str, Any]) -> None:
    with pytest.raises(UnclearError, match="task_1"):
        submit(200, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("http_status", "body", "code"),
    [
        (400, rejection(401), 401),
        (200, rejection(400), 400),
        (429, HTML, 429),
        (500, ACCEPTED, 500),
        (200, rejection(503), 503),
        (200, b"", 200),
    ],
)
def test_error_keeps_code_and_retry_after(http_status: int, body: bytes | dict[str, Any], code: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApixoError) as raised:
        parse_envelope(http_status, content, submission=False, retry_after_seconds=7.5, task_id="task_1")
    assert (raised.value.code, raised.value.task_id) == (code, "task_1")
    assert raised.value.retry_after_seconds == (None if type(raised.value) is UnexpectedReplyError else 7.5)


def test_only_a_rejected_submission_says_nothing_was_paid() -> None:
    body = json.dumps(rejection(400)).encode()
    with pytest.raises(BadRequestError, match=r"Invalid parameters.*Nothing was paid"):
        parse_envelope(400, body, submission=True)
    with pytest.raises(BadRequestError) as raised:
        parse_envelope(400, body, submission=False, task_id="task_1")
    assert "paid" not in str(raised.value)


@pytest.mark.parametrize(("http_status", "code"), [(400, 400), (200, 401), (500, 500), (200, 503)])
def test_provider_message_is_shortened_and_shows_no_signature(http_status: int, code: int) -> None:
    original = "cannot read https://bucket.example.com/a.jpg?X-Amz-Signature=5ec7e7 " + "x" * 5_000
    with pytest.raises(ApixoError) as raised:
        parse_envelope(http_status, json.dumps(rejection(code, original)).encode(), submission=True)
    assert "https://bucket.example.com/a.jpg" in str(raised.value)
    assert "5ec7e7" not in str(raised.value)
    assert len(str(raised.value)) < 800


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
near_envelopes = st.fixed_dictionaries(
    {},
    optional={
        "code": st.sampled_from([200, 400, 401, 429, 500, "200", True, None, 200.0]) | json_values,
        "message": json_values,
        "data": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "taskId": st.sampled_from(["task_1", "task_2", 1, ""]) | json_values,
                "state": st.sampled_from(["pending", "processing", "success", "failed"]) | json_values,
                "resultJson": st.sampled_from(['{"resultUrls": ["https://example.com/v.mp4"]}', "{", "null"])
                | json_values,
                "failCode": json_values,
                "failMsg": json_values,
                "createTime": json_values,
                "task_id": json_values,
                "result_urls": json_values,
            },
        ),
    },
).map(lambda value: json.dumps(value).encode())
bodies = st.binary(max_size=100) | json_values.map(lambda value: json.dumps(value).encode()) | near_envelopes
http_statuses = st.sampled_from([200, 201, 204, 302, 400, 401, 403, 404, 429, 500, 502, 503]) | st.integers(100, 599)


def _code_of(body: bytes) -> object:
    """The code. In an acceptance, it may also be text or 200.0."""
    try:
        loose = json.loads(body)
    except (ValueError, RecursionError):
        return None
    code = loose.get("code") if isinstance(loose, dict) else None
    if code == 200.0 or (isinstance(code, str) and code.strip() == "200"):
        return 200
    return code if type(code) is int else None


@given(http_statuses, bodies)
@example(200, b'{"code": 400}')
@example(400, b'{"code": 200}')
@example(200, b"\xed\xa0\x80")
@example(200, b'{"code": "200", "data": {"taskId": "task_1"}}')
@example(200, b'{"code": 200.0, "data": {"taskId": 1}}')
def test_junk_is_neither_an_acceptance_nor_a_provable_rejection(http_status: int, body: bytes) -> None:
    plain = {400, 401, 429}
    rejections = plain | {402, 403, 404}
    code = _code_of(body)
    try:
        task_id = submit(http_status, body)
    except ProvablyUnpaidError:
        assert http_status in rejections or 200 <= http_status < 300
        assert code in rejections or (code is None and http_status in plain)
    except UnclearError:
        pass
    else:
        assert 200 <= http_status < 300
        assert code == 200
        assert task_id == str(json.loads(body)["data"]["taskId"]).strip()


@given(http_statuses, bodies)
@example(200, b'{"code":200,"data":{"resultJson":"{\\"resultUrls\\":[\\"h\\"]}"}}')  # a result without a state
def test_no_reply_crashes_the_status_parser(http_status: int, body: bytes) -> None:
    try:
        status = parse_status(parse_envelope(http_status, body, submission=False, task_id="task_1"), task_id="task_1")
    except ApixoError as error:
        named = error.task_id
    else:
        named = status.task_id
        original = json.loads(body)["data"].get("state")
        assert not isinstance(original, str) or status.state == original
    assert named == "task_1"


@pytest.mark.parametrize("levels", [*range(100, 1_000, 50), *range(900, 1_000, 3)])
@pytest.mark.parametrize("field", ["data", "message"])
def test_no_nesting_depth_crashes_the_parsers(levels: int, field: str) -> None:
    body = json.dumps(envelope({"taskId": True})).encode()
    nested = b'"' + field.encode() + b'": ' + deep(levels)
    body = body[:-1] + b", " + nested + b"}"
    with pytest.raises(UnexpectedReplyError):
        submit(200, body)
    with pytest.raises(UnexpectedReplyError):
        parse_status(parse_envelope(200, body, submission=False), task_id="task_1")
