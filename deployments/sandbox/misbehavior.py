"""Faults of the two API calls, carried out."""

from __future__ import annotations

import json
from typing import get_args

from starlette.types import ASGIApp

from deployments.sandbox.envelopes import DAMAGED, Json, altered, damaged, failure
from deployments.sandbox.faults import Fault, StatusKind
from deployments.sandbox.wire import PIECE_BYTES, Exchange, Reply

#: Size of the padding of `huge_body`, in bytes.
HUGE_BYTES = 50 * 1024 * 1024
#: In how many pieces a slow answer comes.
SLOW_PIECES = 20
PAGES: dict[str, tuple[int, str]] = {
    "http_400_html": (400, "400 Bad Request"),
    "http_502_html": (502, "502 Bad Gateway"),
}
PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1>nginx</body></html>"

#: Refusals that are sent before anything is done: HTTP status and the envelope's message.
REFUSALS: dict[str, tuple[int, str]] = {
    "http_400": (400, "Insufficient credits"),
    "http_401": (401, "Invalid API key"),
    "http_404": (404, "Not found"),
    "http_429": (429, "Rate limit exceeded"),
    "http_500": (500, "Internal server error"),
    "http_503": (503, "Service unavailable"),
    "task_unknown": (400, "task not found"),
}

#: HTTP 200 with the error in the body, before anything is done.
IN_THE_BODY: dict[str, tuple[int, str]] = {
    "code_400_body": (400, "Insufficient credits"),
    "code_429_body": (429, "Rate limit exceeded"),
    "code_500_body": (500, "Internal server error"),
}


async def misbehave(exchange: Exchange, app: ASGIApp, fault: Fault, second_url: str | None = None) -> None:
    """Answers a submit or status call as the fault says. `second_url` is another address of the task's video."""
    match fault.kind:
        case "reset_before":
            await exchange.reset()
        case "hang":
            await hang(exchange, fault)
        case "redirect":
            again = exchange.scope["path"]
            query = exchange.scope["query_string"].decode("latin-1")
            await exchange.answer(307, headers={"location": f"{again}?{query}" if query else f"{again}?again=1"})
        case kind if kind in PAGES:
            status, title = PAGES[kind]
            await exchange.answer(status, PAGE.format(title))
        case kind if kind in IN_THE_BODY:
            await exchange.answer(200, failure(*IN_THE_BODY[kind]))
        case kind if kind in REFUSALS:
            status, message = REFUSALS[kind]
            if kind == "http_400" and fault.call == "status":
                message = "Invalid parameters"
            headers = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
            await exchange.answer(status, failure(status, message), headers)
        case _:
            await _act_then_misbehave(exchange, await exchange.act(app), fault, second_url)


async def _act_then_misbehave(exchange: Exchange, reply: Reply, fault: Fault, second_url: str | None) -> None:
    match fault.kind:
        case "reset_after":
            await exchange.reset()
        case "hang_after":
            await hang(exchange, fault)
        case "http_500_after":
            await exchange.answer(500, failure(500, "Internal server error"))
        case "code_400_after":
            await exchange.answer(200, {**reply.json(), "code": 400, "message": "Invalid parameters"})
        case "slow":
            await trickle(exchange, reply, fault.seconds)
        case "junk":
            await exchange.answer(
                reply.status, b"\x00\xff\xfeOK this is not JSON", {"content-type": "application/json"}
            )
        case "half_json":
            await exchange.answer(
                reply.status, reply.body[: len(reply.body) // 2], {"content-type": "application/json"}
            )
        case "huge_body":
            await _pad(exchange, reply)
        case kind if reply.json().get("code") != 200:
            # An error has no content to damage: it goes out as it is, and the record still names the fault.
            await exchange.answer(reply.status, reply.body, reply.headers)
        case kind if kind in DAMAGED:
            await exchange.answer(200, damaged(kind, reply.json()))
        case kind if kind in get_args(StatusKind):
            await exchange.answer(200, altered(kind, reply.json(), second_url))
        case kind:
            raise NotImplementedError(kind)


async def hang(exchange: Exchange, fault: Fault) -> None:
    """Says nothing until the caller gives up, or the fault's time is over."""
    if not await exchange.gone_within(fault.seconds or None):
        await exchange.reset()


async def trickle(exchange: Exchange, reply: Reply, seconds: float) -> None:
    """Sends a reply a little at a time."""
    await exchange.begin(reply.status, reply.headers)
    size = -(-len(reply.body) // SLOW_PIECES)
    for start in range(0, len(reply.body), size):
        if await exchange.gone_within(seconds / SLOW_PIECES):
            return
        await exchange.piece(reply.body[start : start + size])
    await exchange.end()


async def _pad(exchange: Exchange, reply: Reply) -> None:
    envelope: Json = reply.json()
    head, tail = b'{"padding": "', b'", ' + json.dumps(envelope).encode()[1:]
    length = len(head) + HUGE_BYTES + len(tail)
    await exchange.begin(reply.status, {"content-type": "application/json", "content-length": str(length)})
    await exchange.piece(head)
    for _ in range(HUGE_BYTES // PIECE_BYTES):
        await exchange.piece(b"x" * PIECE_BYTES)
    await exchange.piece(tail)
    await exchange.end()
