"""The API key and the signatures of result URLs stay out of messages, reprs and log records."""

import json
import logging
import traceback
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apixo import ApixoError
from apixo.redaction import QueryFilter, hide_queries, hide_secret

from .conftest import KITE, MakeClient
from .wire import Answer, Exchange, cut, envelope, http, reply, serving

KEY = "sk/5ec7e7+AB=="
SIGNED = "https://files.example.com/v.mp4?X-Amz-Signature=51gned&b=2"
CALLBACK = "https://callbacks.example.com/apixo/kite/70ken"


@pytest.fixture
def log_records() -> Iterator[list[logging.LogRecord]]:
    """Every record of every logger, at every level, as a handler sees it."""
    records: list[logging.LogRecord] = []

    class RecordingHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    handler = RecordingHandler()
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("httpx", "httpcore", "apixo")]
    loggers = [logging.getLogger(name) for name in ["httpx", "httpcore.http11", *names]]
    levels = [(logger, logger.level) for logger in [logging.root, *loggers]]
    logging.root.addHandler(handler)
    for logger, _ in levels:
        logger.setLevel(logging.DEBUG)
    yield records
    logging.root.removeHandler(handler)
    for logger, level in levels:
        logger.setLevel(level)


def error_text(error: BaseException) -> str:
    return "".join([str(error), repr(error), str(vars(error)), *traceback.format_exception(error)])


def log_text(records: list[logging.LogRecord]) -> str:
    return "\n".join(f"{record.getMessage()} {record.msg} {record.args}" for record in records)


def echo(status: int, form: str) -> Answer:
    """Sends the Authorization header back in some form."""

    async def answer(exchange: Exchange) -> None:
        value = exchange.header("authorization") or ""
        match form:
            case "html":
                content = http(status, f"<h1>Bad header: {value}</h1>")
            case "message":
                content = http(status, envelope(None, 400, f"odd header {value}"))
            case "escaped":
                content = http(status, json.dumps(envelope(None, 400, f"odd {value}")).replace("/", "\\/"))
            case "unicode":
                text = json.dumps(envelope({"taskId": None, "got": value}))
                content = http(status, text.replace("/", "\\u002F").replace("+", "\\u002b"))
            case "percent":
                content = http(status, "?key=" + value.replace("/", "%2F").replace("+", "%2b").replace("=", "%3D"))
            case "utf-16":
                content = http(status, json.dumps(envelope(None, 400, f"odd header {value}")).encode("utf-16-le"))
            case "header":
                content = http(status, b"", x_echo=value)
            case "status line":
                content = value.encode() + b"\r\n\r\n"
            case _:
                content = http(status, envelope({"taskId": [value]}))
        await exchange.send(content)

    return answer


FORMS = ["html", "message", "escaped", "unicode", "percent", "utf-16", "header", "data"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [200, 400, 401, 500])
async def test_api_key_echoed_by_the_server_is_never_shown(
    make_client: MakeClient, log_records: list[logging.LogRecord], status: int, form: str
) -> None:
    async with serving(echo(status, form)) as server:
        client = make_client(server.url, api_key=KEY, max_tries=1)
        errors = []
        for call in (client.submit_once(KITE), client.status("task_1")):
            with pytest.raises(ApixoError) as raised:
                await call
            errors.append(raised.value)
        assert server.requests[0].header("authorization") == f"Bearer {KEY}"
    for text in [*map(error_text, errors), log_text(log_records)]:
        assert "5ec7e7" not in text
    assert log_records, "nothing was logged, so the check above proves nothing"


@pytest.mark.parametrize("echoed", [f"Bearer {KEY}", SIGNED, CALLBACK, f"HTTP/1.1 200 OK\r\nno colon {SIGNED}"])
async def test_secret_in_a_malformed_reply_line_is_not_repeated(make_client: MakeClient, echoed: str) -> None:
    async with serving(cut(f"{echoed}\r\n\r\n".encode())) as server:
        with pytest.raises(ApixoError) as raised:
            await make_client(server.url, api_key=KEY).submit_once(KITE, callback_url=CALLBACK)
    for telltale in ("5ec7e7", "51gned", "70ken"):
        assert telltale not in error_text(raised.value)


@pytest.mark.parametrize("form", ["callbacks.example.com/apixo/kite/{}", "/apixo/kite/{}", "{}"])
async def test_callback_token_is_hidden_however_it_is_echoed(make_client: MakeClient, form: str) -> None:
    token = "70ken" + "a" * 59
    message = f"{form.format(token)} is not reachable"
    async with serving(reply(http(400, envelope(None, 400, message)))) as server:
        with pytest.raises(ApixoError, match="not reachable") as raised:
            await make_client(server.url).submit_once(KITE, callback_url=f"https://callbacks.example.com/kite/{token}")
    assert "70ken" not in error_text(raised.value)


@pytest.mark.parametrize("end", ["data", "taskId", "code", "1", "", "task_1/"])
async def test_callback_url_ending_in_a_word_of_the_reply_does_not_hide_that_word(
    make_client: MakeClient, end: str
) -> None:
    async with serving(reply(http(200, envelope({"taskId": "task_1"})))) as server:
        client = make_client(server.url)
        assert await client.submit_once(KITE, callback_url=f"https://h.example/{end}") == "task_1"


@pytest.mark.parametrize(
    "body",
    [
        f"<html>{SIGNED}</html>",
        json.dumps(envelope({"taskId": "task_1", "state": "success", "resultJson": json.dumps({"cover": [SIGNED]})})),
        json.dumps(envelope({"taskId": "task_1", "state": "success", "resultJson": {"statusUrl": SIGNED}})),
        json.dumps(envelope({"taskId": "task_2", "state": "success", "url": SIGNED})),
        json.dumps(envelope({"taskId": SIGNED, "state": "success"})),
        json.dumps(envelope([SIGNED])),
        json.dumps(envelope(None, 500, f"lost {SIGNED}")),
        json.dumps(envelope(None, 400, f"lost {SIGNED}")).replace("/", "\\/").replace("&", "\\u0026"),
    ],
)
async def test_signed_url_in_an_unexpected_reply_is_shown_without_its_signature(
    make_client: MakeClient, log_records: list[logging.LogRecord], body: str
) -> None:
    async with serving(reply(http(200, body, location=SIGNED))) as server:
        client = make_client(server.url, max_tries=1)
        with pytest.raises(ApixoError) as raised:
            await client.status("task_1")
    assert "51gned" not in error_text(raised.value)
    assert "51gned" not in log_text(log_records)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("GET https://a.example/b?sig=1&x=2 done", "GET https://a.example/b?… done"),
        ("http://a.example?sig=1", "http://a.example?…"),
        ("https://a.example/b#access_token=1", "https://a.example/b?…"),
        ("https://me:secret@a.example/b", "https://a.example/b"),
        ("https://me@a.example/b?sig=1", "https://a.example/b?…"),
        ('{"u": "https://a.example/b?sig=1", "v": 2}', '{"u": "https://a.example/b?…", "v": 2}'),
        (r"https:\/\/a.example\/b?sig=1", r"https:\/\/a.example\/b?…"),
        (r"https://a.example/b?x=1\u0026sig=1", "https://a.example/b?…"),
        ("<a href='https://a.example/b?sig=1'>x</a>", "<a href='https://a.example/b?…>x</a>"),
        ("https://a.example/it's.mp4?sig=1 x", "https://a.example/it's.mp4?… x"),
        ("HTTPS://a.example/b?sig=1", "HTTPS://a.example/b?…"),
        (r"https://a.example/b\u003fsig=1 x", "https://a.example/b?… x"),
        (r"https:\\/\\/a.example\\/b\\u003Fsig=1", r"https:\\/\\/a.example\\/b?…"),
        ("next=https%3A%2F%2Fa.example%2Fb%3Fsig%3D1&x=2", "next=https%3A%2F%2Fa.example%2Fb?…&x=2"),
        ("https://a.example/why%3F.mp4 x", "https://a.example/why%3F.mp4 x"),
        ("https://a.example/b", "https://a.example/b"),
        ("why? because", "why? because"),
        ("", ""),
    ],
)
def test_hide_queries_removes_the_queries_of_urls(text: str, hidden: str) -> None:
    assert hide_queries(text) == hidden
    assert hide_queries(hidden) == hidden


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30), st.text(), st.text())
def test_secret_is_hidden_in_any_json_spelling(secret: str, before: str, after: str) -> None:
    for text in (secret, json.dumps(secret)[1:-1], json.dumps(secret).replace("/", "\\/")[1:-1]):
        assert hide_secret(text, secret) == "***"
    assert hide_secret(before + after, "") == before + after


def test_redaction_is_fast_on_adversarial_replies() -> None:
    assert hide_secret("\\" * 1_000_000, KEY)
    assert hide_secret("sk/" * 300_000, KEY)
    for piece in ("https://", "https://a", "https://a\\", "https%3A%2F%2F", "https%3A%2F%2Fa%"):
        assert hide_queries(piece * 30_000)


def test_log_filter_survives_malformed_records() -> None:
    record = logging.LogRecord("httpx", logging.INFO, "", 0, "%s %s", ("GET", SIGNED), None)
    assert QueryFilter().filter(record)
    assert record.getMessage() == "GET https://files.example.com/v.mp4?…"
    for message in (SIGNED, ["no", SIGNED], None):
        odd = logging.LogRecord("httpx", logging.INFO, "", 0, message, None, None)
        assert QueryFilter().filter(odd)
        assert "51gned" not in odd.getMessage()
