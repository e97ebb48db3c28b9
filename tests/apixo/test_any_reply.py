"""Whatever comes back: only documented errors, no unpaid claim without a documented no, and no secret in any text.

The replies are made up by Hypothesis (`strange.py`) and judged by what the provider documents (`oracle.py`), not by the
client's own reading.
"""

import asyncio
import os
import traceback
import zlib
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from hypothesis import HealthCheck, Phase, example, given, note, settings

from apixo import (
    ApixoClient,
    ApixoError,
    AuthenticationError,
    BadRequestError,
    ContentRefusedError,
    Failed,
    InsufficientBalanceError,
    ModelNotFoundError,
    NoReplyError,
    NotSentError,
    PermissionDeniedError,
    ProvablyUnpaidError,
    RateLimitError,
    ServerError,
    Succeeded,
    UnclearError,
    UnexpectedReplyError,
)
from tests.support import KITE

from .oracle import NOES, Reply
from .strange import CALLBACK, KEY, SIGNED, TELLTALES, bodies, encodings, headers, secrets_in, statuses, wires
from .wire import Exchange, serving

DOCUMENTED: Final = {
    NotSentError, BadRequestError, AuthenticationError, InsufficientBalanceError, PermissionDeniedError,
    ContentRefusedError,
    ModelNotFoundError, RateLimitError, NoReplyError, ServerError, UnexpectedReplyError,
}  # fmt: skip
"""What a call may raise (`apixo/errors.py`): the leaves of the tree that are about one call."""

TIMES: Final = int(os.environ.get("REPLIES_TIMES", "1"))
"""How many times more replies than usual. The usual ones are always the same; more are chosen anew each time."""

STATUS_LINES: Final = tuple(str(code).encode() for code in NOES)
TASK: Final = "task_1"


def profile(examples: int) -> settings:
    return settings(
        max_examples=examples * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=set(Phase) - {Phase.explain},
    )


async def opened(base_url: str, **options: Any) -> ApixoClient:
    """A client that asks as fast as it can."""
    given: dict[str, Any] = {"submit_timeout_seconds": 5, "requests_per_minute": 1e9}
    return ApixoClient(KEY, base_url=base_url, **(given | options))


@dataclass(frozen=True)
class Ask:
    """The calls, with what their texts must not hold."""

    runner: asyncio.Runner
    client: ApixoClient

    def submit_once(self, telltales: Sequence[str]) -> Any:
        """The task id, or the error."""
        return self._outcome(self.client.submit_once(KITE, callback_url=CALLBACK), telltales)

    def status_once(self, telltales: Sequence[str]) -> Any:
        """The status, or the error. A question knows nothing of the callback's address."""
        return self._outcome(self.client.status_once(TASK), [t for t in telltales if t != TELLTALES[2]])

    def _outcome(self, call: Coroutine[Any, Any, Any], telltales: Sequence[str]) -> Any:
        try:
            found = self.runner.run(call)
        except ApixoError as error:  # any other one comes out, and fails the test
            found = error
        note(repr(found))
        if isinstance(found, ApixoError):
            shown = "".join([str(found), repr(found), str(vars(found)), *traceback.format_exception(found)])
            assert type(found) in DOCUMENTED
            assert [telltale for telltale in telltales if telltale in shown] == []
            assert len(str(found)) < 1_000
        return found


def check_submit(found: Any, reply: Reply, *, readable: bool) -> None:
    """The line that money depends on."""
    if isinstance(found, str):
        assert found in reply.task_ids()
        return
    assert isinstance(found, UnclearError) != isinstance(found, ProvablyUnpaidError)
    assert not isinstance(found, NotSentError), "it was sent: a reply came back"
    if isinstance(found, ProvablyUnpaidError):
        assert reply.may_be_a_no()
    if readable:
        assert not reply.is_the_documented_no() or isinstance(found, ProvablyUnpaidError)
        assert reply.documented_task_id() is None, "it was taken, and the task is not kept"


def check_status(found: Any, reply: Reply, *, readable: bool) -> None:
    """No task ends because of an answer that does not say so, and one that says so ends it."""
    end = reply.documented_end(TASK) if readable else None
    if isinstance(found, Succeeded):
        assert reply.may_have_succeeded(TASK)
        assert found.result_urls
        assert all(url.strip() for url in found.result_urls)
    elif isinstance(found, Failed):
        assert reply.may_have_failed(TASK)
    elif isinstance(found, ApixoError):
        assert found.task_id == TASK
    if isinstance(end, list):
        assert isinstance(found, Succeeded)
        assert list(found.result_urls) == end
    elif end is not None:
        assert isinstance(found, Failed)
        assert found.fail_code == end.encode("utf-8", "replace").decode()


class Answers:
    """Stands for the network: gives its replies in turn, the last one for ever."""

    def __init__(self) -> None:
        self.replies: list[httpx.Response] = []
        self.requested = 0

    def __call__(self, _: httpx.Request) -> httpx.Response:
        self.requested += 1
        return self.replies[min(self.requested, len(self.replies)) - 1]


def response(reply: Reply, fields: dict[str, str], encoding: str | None) -> httpx.Response:
    """A reply as it comes through the network, its body packed as the encoding wants it, or junk instead."""
    given = [(name.encode(), value.encode("utf-8", "replace")) for name, value in fields.items()]
    if encoding is not None:
        given.append((b"content-encoding", encoding.encode()))
    return httpx.Response(reply.http_status, headers=given, stream=httpx.ByteStream(packed(reply.body, encoding)))


def packed(body: bytes, encoding: str | None) -> bytes:
    """The body as the encoding wants it; for most of them it is junk."""
    if encoding == "gzip":
        packer = zlib.compressobj(wbits=31)
        return packer.compress(body) + packer.flush()
    return zlib.compress(body) if encoding == "deflate" else body


@contextmanager
def asking(answers: Answers, **options: Any) -> Iterator[Ask]:
    """A client before these answers."""
    with asyncio.Runner() as runner:
        client = runner.run(opened("http://api.example.com", **options))
        for http in (client._http, client._paid_http):
            http._transport, http._mounts = httpx.MockTransport(answers), {}
        yield Ask(runner, client)
        runner.run(client.aclose())


async def nap(_: float) -> None:
    """Stands for `asyncio.sleep`."""


def test_no_reply_breaks_the_client_or_is_taken_for_unpaid_without_a_no() -> None:
    answers = Answers()

    @profile(400)
    @given(statuses, headers, bodies, encodings)
    @example(400, {}, b'{"code": 400, "message": "no", "data": null, "task\\u0049d": "task_1"}', None)
    @example(400, {}, '{"code": 400, "message": "no", "data": null, "taskId": "task_1"}'.encode("utf-16-le"), None)
    @example(400, {}, b'{"code": 200, "code": 400, "message": "no", "data": null}', None)
    @example(400, {}, b'{"code": 400, "message": "no", "data": {"taskId": "task_1"}, "data": null}', None)
    @example(302, {"location": "https:v"}, b"", None)
    @example(502, {}, SIGNED.replace("https", "HTTPS").encode(), None)
    @example(502, {}, SIGNED.replace("?", "\\u003f").encode(), None)
    def play(http_status: int, fields: dict[str, str], body: bytes, encoding: str | None) -> None:
        said = Reply(http_status, body)
        telltales = secrets_in(b"\n".join([body, *(value.encode("utf-8", "replace") for value in fields.values())]))
        readable = encoding in (None, "identity", "gzip", "deflate") and not telltales and not _is_too_deep(body)
        for ask_for, check in ((ask.submit_once, check_submit), (ask.status_once, check_status)):
            answers.replies, answers.requested = [response(said, fields, encoding)], 0
            found = ask_for(telltales)
            check(found, said, readable=readable)
            assert answers.requested == 1

    with asking(answers) as ask:
        play()


def _is_too_deep(body: bytes) -> bool:
    """Whether a parser may give up on it. Each parser has a depth of its own, and the documented replies have three."""
    return body.count(b"[") + body.count(b"{") > 100


def test_no_bytes_on_the_wire_break_the_client() -> None:
    sent, seen = b"", 0

    async def answer(exchange: Exchange) -> None:
        nonlocal seen
        seen += 1
        await exchange.send(sent)
        exchange.writer.close()

    with asyncio.Runner() as runner:
        serve = serving(answer)
        server = runner.run(serve.__aenter__())
        client = runner.run(opened(server.url))
        ask = Ask(runner, client)

        @profile(200)
        @given(wires)
        def play(content: bytes) -> None:
            nonlocal sent, seen
            sent, seen = content, 0
            server.requests.clear()
            found = ask.submit_once(secrets_in(content))
            assert seen == 1
            assert not isinstance(found, NotSentError)
            if isinstance(found, ProvablyUnpaidError):
                # A no needs a documented code on its status line, or a 2xx line and one in the body.
                assert found.code in NOES
                in_body = b'"code"' in content.replace(b"\0", b"")  # it may be UTF-16
                assert content[9:12] in STATUS_LINES or (content[9:10] == b"2" and in_body)
            if isinstance(found, str):
                assert content[9:10] == b"2"
                assert b"200" in content.replace(b"\0", b"")
            ask.status_once(secrets_in(content))
            assert 1 <= seen - 1 <= 2  # a kept connection that was closed meanwhile is tried anew

        play()
        runner.run(client.aclose())
        runner.run(serve.__aexit__(None, None, None))
