"""Performs faults that answer before anything is done, and those of the two API calls."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import get_args

from starlette.types import ASGIApp

from deployments.sandbox.faults import Fault, StatusKind
from deployments.sandbox.wire import Exchange, Json, Reply, failure

#: Size of the padding of `huge_body`, in bytes.
HUGE_BYTES = 50 * 1024 * 1024
#: The number of pieces of a slow answer.
SLOW_PIECES = 20
#: A redirect target that must never be followed: the metadata service of cloud machines.
PRIVATE_ADDRESS = "http://169.254.169.254/x"
#: An error page, as from a gateway in front of the API, or from a storage service.
PAGE = "<html><head><title>{0}</title></head><body><h1>{0}</h1>nginx</body></html>"

#: Ways to damage a code-200 envelope, all for both API calls except `number_id`, which is for a submit.
DAMAGE: dict[str, Callable[[Json], Json]] = {
    "missing_fields": lambda envelope: {**envelope, "data": {}},
    "null_data": lambda envelope: {**envelope, "data": None},
    "no_data": lambda _: {"code": 200, "message": "success"},
    # For this fault, the app has created a task id of digits only.
    "number_id": lambda envelope: {**envelope, "data": {"taskId": int(envelope["data"]["taskId"])}},
    "text_code": lambda envelope: {**envelope, "code": str(envelope["code"])},
    "wrong_types": lambda _: {
        "code": 200,
        "message": None,
        "data": {"taskId": [12345678], "state": 3, "resultJson": 5, "createTime": "yesterday", "failCode": ["?"]},
    },
}
#: The failMsg of a scripted failure.
SCRIPTED = "the sandbox was told to say so"
#: The envelope's message for each code.
MESSAGES = {
    400: "Invalid parameters",
    401: "Invalid API key",
    402: "Balance too low",
    403: "This API key lacks the permission",
    404: "Not found",
    200: "success",
    429: "Rate limit exceeded",
    500: "Internal server error",
    503: "Service unavailable",
}


async def refuse(exchange: Exchange, fault: Fault) -> bool:
    """If the fault means that nothing is done, sends its answer. Returns whether it did."""
    path, query = exchange.scope["path"], exchange.scope["query_string"].decode("latin-1")
    match fault.kind.split("_"):
        case ["reset", "before"]:
            await exchange.reset()
        case ["hang"]:
            await hang(exchange, fault)
        case ["redirect"]:
            status = 307 if exchange.scope["method"] == "POST" else 302
            await exchange.answer(status, headers={"location": f"{path}?{query}&again=1"})
        case ["redirect", "private"]:
            await exchange.answer(302, headers={"location": PRIVATE_ADDRESS})
        case ["task", "unknown"]:
            await exchange.answer(400, failure(400, "task not found"))
        case ["code", code, "body"]:
            await exchange.answer(200, failure(int(code), MESSAGES[int(code)]))
        case ["http", code, "code", in_the_body]:
            await exchange.answer(int(code), failure(int(in_the_body), MESSAGES[int(in_the_body)]))
        case ["http", code, *kind] if kind != ["after"]:
            headers = {} if fault.retry_after is None else {"retry-after": fault.retry_after}
            await exchange.answer(int(code), _rejection_body(fault.call, int(code), "_".join(kind)), headers)
        case _:
            return False
    return True


def _rejection_body(call: str, status: int, kind: str) -> str | Json:
    """The body of a rejection: a page or, for the API calls, an envelope."""
    if kind == "html" or call not in ("submit", "status"):
        return PAGE.format(f"{status} {HTTPStatus(status).phrase}")
    messages = {"credits": "Insufficient credits", "model": "MODEL_UNAVAILABLE", "content": "Content policy violation"}
    envelope = failure(status, messages.get(kind, MESSAGES[status]))
    match kind:
        case "error":
            envelope["data"] = {"error": "Missing required field: input.prompt" if status == 400 else "No such key"}
        case "no_data":
            del envelope["data"]
    return envelope


async def misbehave(exchange: Exchange, app: ASGIApp, fault: Fault, second_url: str | None = None) -> None:
    """Processes a submit or status call, and answers as the fault says. `second_url`: another URL of the video."""
    reply = await exchange.run_app(app)
    as_json = {"content-type": "application/json"}
    match fault.kind:
        case "reset_after":
            await exchange.reset()
        case "hang_after":
            await hang(exchange, fault)
        case "http_500_after":
            await exchange.answer(500, failure(500, MESSAGES[500]))
        case "code_400_after":
            await exchange.answer(200, {**reply.json(), "code": 400, "message": "Invalid parameters"})
        case "slow":
            await trickle(exchange, reply, fault.seconds)
        case "junk":
            await exchange.answer(reply.status, b"\x00\xff\xfeOK this is not JSON", as_json)
        case "half_json":
            await exchange.answer(reply.status, reply.body[: len(reply.body) // 2], as_json)
        case "huge_body":
            padded = b'{"padding": "%b", ' % (b"x" * HUGE_BYTES) + reply.body[1:]
            await exchange.answer(reply.status, padded, as_json)
        case kind if reply.json().get("code") != 200:
            # An error has no content to damage: it is sent unchanged, and the record still contains the fault.
            await exchange.answer(reply.status, reply.body, reply.headers)
        case kind if kind in DAMAGE:
            await exchange.answer(200, DAMAGE[kind](reply.json()))
        case kind if kind in get_args(StatusKind):
            await exchange.answer(200, altered(kind, reply.json(), second_url, fault.fail_code))
        case kind:
            raise NotImplementedError(kind)


async def hang(exchange: Exchange, fault: Fault) -> None:
    """Sends nothing until the caller gives up or the fault's time is over, then resets the connection."""
    if not await exchange.disconnected_within(fault.seconds or None):
        await exchange.reset()


async def trickle(exchange: Exchange, reply: Reply, seconds: float) -> None:
    """Sends a reply in pieces over this time."""
    await exchange.begin(reply.status, reply.headers)
    size = max(1, -(-len(reply.body) // SLOW_PIECES))
    for start in range(0, len(reply.body), size):
        if await exchange.disconnected_within(seconds / SLOW_PIECES):
            return
        await exchange.send_chunk(reply.body[start : start + size])
    await exchange.end()


def altered(kind: str, envelope: Json, second_url: str | None, fail_code: str) -> Json:
    """A valid status envelope, altered as one of `faults.StatusKind`."""
    data: Json = dict(envelope["data"] or {})
    urls = json.loads(data.get("resultJson", "{}")).get("resultUrls", [])
    match kind:
        case "unknown_state":
            data = _without_outcome(data) | {"state": "queued_v2"}
        case "stuck_state":
            data = _without_outcome(data) | {"state": "expired"}
        case "failed_once":
            outcome = {"state": "failed", "failCode": fail_code, "failMsg": SCRIPTED}
            data = _without_outcome(data) | outcome
        case "result_json_broken":
            data["resultJson"] = '{"resultUrls": ["http'
        case "result_json_empty":
            data["resultJson"] = '{"resultUrls": []}'
        case "result_json_object":
            data["resultJson"] = {"resultUrls": urls}
        case "result_json_two":
            data["resultJson"] = json.dumps({"resultUrls": [*urls, second_url]})
        case "result_json_elsewhere":
            data = {name: value for name, value in data.items() if name != "resultJson"}
            data["videos"] = [{"cover": "https://example.com/cover.jpg", "url": url} for url in urls]
        case "success_upper":
            data["state"] = "SUCCESS"
        case "success_completed":
            data["state"] = "completed"
        case "other_task":
            data["taskId"] = "task_0ddba11"
    return {**envelope, "data": data}


def _without_outcome(data: Json) -> Json:
    outcome = ("resultJson", "failCode", "failMsg", "completeTime", "costTime")
    return {name: value for name, value in data.items() if name not in outcome}
