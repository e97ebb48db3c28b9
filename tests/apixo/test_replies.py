"""Which replies are a yes, which a no, and which nobody can know."""

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

YES = envelope({"taskId": "task_1"})
HTML = b"<html><body><h1>502 Bad Gateway</h1></body></html>"


def no(code: int, message: Any = "Invalid parameters") -> dict[str, Any]:
    return {"code": code, "message": message, "data": None}


def deep(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


def submit(http_status: int, body: bytes) -> str:
    return parse_submitted(parse_envelope(http_status, body, submission=True))


ODD_IDS: list[Any] = [
    None, "", "  ", " null ", "undefined", "None", True, 0, -7, 10**100, 1.5, [], {"id": 1}, "x" * 201, "task\n1",
    "task\x00", "\ud800",
]  # fmt: skip

SUBMITS: list[tuple[int, bytes | dict[str, Any], str | type[ApixoError]]] = [
    # A yes: both say so.
    (200, YES, "task_1"),
    (201, YES, "task_1"),
    (200, YES | {"message": None}, "task_1"),
    (200, YES | {"code": "200"}, "task_1"),
    (200, YES | {"code": " 200 "}, "task_1"),
    (200, YES | {"code": 200.0}, "task_1"),
    (402, no(402) | {"code": 402.0}, ServerError),
    (200, envelope({"taskId": 1234567}), "1234567"),
    (200, b'{"code": "200", "data": {"taskId": 12345678901234567890}}', "12345678901234567890"),
    (200, YES | {"message": 7}, "task_1"),
    (200, YES | {"traceId": "x"}, "task_1"),
    (200, envelope({"taskId": " task_1 "}), "task_1"),
    (200, envelope({"taskId": "task_1\n"}), "task_1"),
    (200, envelope({"taskId": "x" * 200}), "x" * 200),
    (200, b"\xef\xbb\xbf" + json.dumps(YES).encode(), "task_1"),
    # A yes that names its task in another spelling or place, once.
    (200, envelope({"task_id": "task_1"}), "task_1"),
    (200, envelope({"taskId": None, "TaskID": 7}), "7"),
    (200, envelope(None) | {"taskId": "task_1"}, "task_1"),
    (200, envelope({"task_id": "task_1"}) | {"task-id": "task_1"}, "task_1"),
    (200, envelope('{"taskId": "task_1"}'), "task_1"),
    (200, envelope({"taskId": "task_1", "task_id": "task_2"}) | {"taskId": "task_3"}, "task_1"),
    (200, envelope({"task_id": "task_1"}) | {"taskId": "task_2"}, UnexpectedReplyError),
    (200, envelope({"id": "task_1"}), UnexpectedReplyError),
    (200, envelope({"task": {"task_id": "task_1"}}), UnexpectedReplyError),
    # A documented no: HTTP status and code alike, or only one of them where the other says nothing.
    (400, no(400), BadRequestError),
    (401, no(401), AuthenticationError),
    (429, no(429), RateLimitError),
    (200, no(400), BadRequestError),
    (200, no(401), AuthenticationError),
    (200, no(429), RateLimitError),
    (200, no(429) | {"message": None}, RateLimitError),
    (200, no(429) | {"message": {"why": ["?"]}}, RateLimitError),
    (400, HTML, BadRequestError),
    (401, b"", AuthenticationError),
    (429, HTML, RateLimitError),
    (400, no(400, "Insufficient credits"), InsufficientBalanceError),
    (400, no(401), AuthenticationError),
    (401, no(429), RateLimitError),
    (429, no(400), BadRequestError),
    # The two disagree, and one of them is not a no: unclear.
    (400, YES, ServerError),
    (401, YES, ServerError),
    (429, YES, ServerError),
    (500, YES, ServerError),
    (500, no(400), ServerError),
    (502, no(429), ServerError),
    (302, no(400), ServerError),
    (404, no(401), AuthenticationError),
    (400, no(500), ServerError),
    (429, no(503), ServerError),
    # A no that names a task, brings data or has a second code may be a yes, however that is spelled.
    (400, no(400) | {"data": {"taskId": "task_1"}}, ServerError),
    (400, no(400) | {"taskId": "task_1"}, ServerError),
    (400, no(400) | {"result": [{"TaskID": "task_1"}]}, ServerError),
    (200, b'{"code": 400, "message": "no", "data": null, "task\\u0049d": "task_1"}', ServerError),
    (200, b'{"code": 200, "code": 400, "message": "no", "data": null}', ServerError),
    (400, b'{"code": 400, "data": {"id": "task_1"}, "data": null}', ServerError),
    (400, json.dumps(no(400) | {"taskId": "task_1"}).encode("utf-16-le"), ServerError),
    (400, json.dumps(envelope({"taskId": "task_1"})).encode("utf-16-le")[:50], ServerError),
    (400, b'{"message": "no", "data": {"taskId": "task_1"', ServerError),  # cut off before its code
    (429, {"message": "no", "data": {"state": "pending"}}, ServerError),
    (429, {"message": "no", "data": None}, RateLimitError),
    (429, b'{"code": 429, "message": "no", "data": ' + deep(900) + b"}", ServerError),
    (400, no(400, "Unknown code 17") | {"detail": {"code": 17}}, BadRequestError),
    (400, no(400) | {"data": {}}, BadRequestError),
    # Neither yes nor a documented no.
    (500, no(500), ServerError),
    (200, no(500), ServerError),
    (200, no(403), PermissionDeniedError),
    (200, no(0), ServerError),
    (200, no(-400), ServerError),
    (200, no(10**30), ServerError),
    (200, no(201), ServerError),
    (502, HTML, ServerError),
    (503, b"", ServerError),
    (404, no(404), ModelNotFoundError),
    (403, HTML, ServerError),
    (402, no(402), InsufficientBalanceError),
    (403, no(403), PermissionDeniedError),
    (402, {"code": 402, "message": "no"}, InsufficientBalanceError),
    (402, no(402) | {"data": {"taskId": "task_1"}}, ServerError),
    (404, no(404) | {"task_id": "task_1"}, ServerError),
    (400, no(400) | {"data": {"error": "Missing required field: input.prompt"}}, BadRequestError),
    (403, no(403) | {"data": {"error": "not allowed"}}, PermissionDeniedError),
    (400, no(400) | {"data": {"error": "see taskId 17"}}, ServerError),
    (400, no(400) | {"data": {"error": "task_12345678 was not queued"}}, ServerError),
    (400, no(400) | {"data": {"error": "0123456789abcdef0123456789abcdef"}}, ServerError),
    (400, no(400) | {"data": {"error": {"id": 1}}}, ServerError),
    (400, no(400) | {"data": {"error": "odd", "id": "task_1"}}, ServerError),
    # An id in any place.
    (400, no(400, "duplicate of task_12345678"), ServerError),
    (400, no(400, "0123456789abcdef0123456789abcdef is under way"), ServerError),
    (400, no(400) | {"task": {"id": "task_12345678"}}, ServerError),
    (400, no(400) | {"id": "task_12345678"}, ServerError),
    (400, no(400) | {"tasks": ["0123456789ABCDEF0123456789ABCDEF"]}, ServerError),
    # What a refusal quotes, or says of the call itself, is none.
    (429, no(429) | {"data": {"error": "Too many concurrent tasks"}}, RateLimitError),
    (400, no(400, "Request id: 0123456789abcdef0123456789abcdef"), BadRequestError),
    (400, no(400) | {"request_id": "0123456789abcdef0123456789abcdef"}, BadRequestError),
    (400, no(400, "https://h.example/0123456789abcdef0123456789abcdef.jpg is no image"), BadRequestError),
    (402, HTML, ServerError),
    (404, HTML, ServerError),
    (404, b'{"message": "no Route matched"}', ServerError),
    (404, no(500), ServerError),
    (404, YES, ServerError),
    (408, b"", ServerError),
    (409, no(409), ServerError),
    (307, b"", ServerError),
    (100, b"", ServerError),
    # A yes that makes no sense.
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
    (200, YES | {"code": True}, UnexpectedReplyError),
    (200, no(400) | {"code": "400"}, UnexpectedReplyError),  # a refusal has to be as documented
    (400, no(400) | {"code": "400"}, ServerError),
    (400, YES | {"code": "200"}, ServerError),
    (200, no(400) | {"code": 400.0}, UnexpectedReplyError),
    (200, no(400) | {"code": None}, UnexpectedReplyError),
    (200, {"message": "success", "data": {"taskId": "task_1"}}, UnexpectedReplyError),
    (200, {"code": 200, "message": "success"}, UnexpectedReplyError),
    (200, envelope(None), UnexpectedReplyError),
    (200, envelope([]), UnexpectedReplyError),
    (200, envelope("task_1"), UnexpectedReplyError),
    (200, envelope([{"taskId": "task_1"}]), UnexpectedReplyError),
    (200, envelope({}), UnexpectedReplyError),
    *((200, envelope({"taskId": task_id}), UnexpectedReplyError) for task_id in ODD_IDS),
]


@pytest.mark.parametrize(("http_status", "body", "expected"), SUBMITS)
def test_the_answer_to_a_submission(
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
def test_what_may_be_a_paid_task_is_shown(body: dict[str, Any]) -> None:
    with pytest.raises(UnclearError, match="task_1"):
        submit(200, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("http_status", "body", "code"),
    [(400, no(401), 401), (200, no(400), 400), (429, HTML, 429), (500, YES, 500), (200, no(503), 503), (200, b"", 200)],
)
def test_an_error_keeps_the_code_and_how_long_to_wait(
    http_status: int, body: bytes | dict[str, Any], code: int
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(ApixoError) as raised:
        parse_envelope(http_status, content, submission=False, retry_after_seconds=7.5, task_id="task_1")
    assert (raised.value.code, raised.value.task_id) == (code, "task_1")
    assert raised.value.retry_after_seconds == (None if type(raised.value) is UnexpectedReplyError else 7.5)


def test_a_refused_submission_says_that_nothing_was_paid_and_a_refused_question_does_not() -> None:
    body = json.dumps(no(400)).encode()
    with pytest.raises(BadRequestError, match=r"Invalid parameters.*Nothing was paid"):
        parse_envelope(400, body, submission=True)
    with pytest.raises(BadRequestError) as raised:
        parse_envelope(400, body, submission=False, task_id="task_1")
    assert "paid" not in str(raised.value)


@pytest.mark.parametrize(("http_status", "code"), [(400, 400), (200, 401), (500, 500), (200, 503)])
def test_the_providers_words_are_shortened_and_lose_signatures(http_status: int, code: int) -> None:
    said = "cannot read https://bucket.example.com/a.jpg?X-Amz-Signature=5ec7e7 " + "x" * 5_000
    with pytest.raises(ApixoError) as raised:
        parse_envelope(http_status, json.dumps(no(code, said)).encode(), submission=True)
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
    """The code; an acceptance may also have it as text, or with a fraction of zero."""
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
def test_junk_is_never_a_yes_nor_a_provable_no(http_status: int, body: bytes) -> None:
    plain = {400, 401, 429}
    refusals = plain | {402, 403, 404}
    code = _code_of(body)
    try:
        task_id = submit(http_status, body)
    except ProvablyUnpaidError:
        assert http_status in refusals or 200 <= http_status < 300
        assert code in refusals or (code is None and http_status in plain)
    except UnclearError:
        pass
    else:
        assert 200 <= http_status < 300
        assert code == 200
        assert task_id == str(json.loads(body)["data"]["taskId"]).strip()


@given(http_statuses, bodies)
@example(200, b'{"code":200,"data":{"resultJson":"{\\"resultUrls\\":[\\"h\\"]}"}}')  # a result without a state
def test_no_reply_breaks_the_reading_of_a_status(http_status: int, body: bytes) -> None:
    try:
        status = parse_status(parse_envelope(http_status, body, submission=False, task_id="task_1"), task_id="task_1")
    except ApixoError as error:
        named = error.task_id
    else:
        named = status.task_id
        said = json.loads(body)["data"].get("state")
        assert not isinstance(said, str) or status.state == said
    assert named == "task_1"


@pytest.mark.parametrize("levels", [*range(100, 1_000, 50), *range(900, 1_000, 3)])
@pytest.mark.parametrize("field", ["data", "message"])
def test_no_depth_of_nesting_breaks_the_reading(levels: int, field: str) -> None:
    body = json.dumps(envelope({"taskId": True})).encode()
    nested = b'"' + field.encode() + b'": ' + deep(levels)
    body = body[:-1] + b", " + nested + b"}"
    with pytest.raises(UnexpectedReplyError):
        submit(200, body)
    with pytest.raises(UnexpectedReplyError):
        parse_status(parse_envelope(200, body, submission=False), task_id="task_1")
