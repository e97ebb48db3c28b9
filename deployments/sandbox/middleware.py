"""A middleware in front of the app: records every request, and performs the scripted faults."""

import json
import time
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.sandbox.api_faults import SCRIPTED, misbehave, refuse
from deployments.sandbox.download_faults import damage_image, damage_result
from deployments.sandbox.faults import Fault
from deployments.sandbox.record import MOST_BODY_BYTES, Call, RecordedRequest
from deployments.sandbox.tasks import VIDEO_NAMES, SandboxState, Task
from deployments.sandbox.wire import Exchange, failure, read_body

#: Both are followed by the model.
SUBMIT_PATH = "/api/v1/generateTask/"
STATUS_PATH = "/api/v1/statusTask/"
#: Requests with this prefix control the sandbox itself. They are not recorded and have no faults.
CONTROL_PATH = "/sandbox/"
#: The key in the ASGI scope under which a handler finds the record of its own request.
RECORD_KEY = "sandbox.record"
#: In bytes; larger bodies are rejected. No request of the API comes near this.
LARGEST_BODY = 4 * 1024 * 1024


class FaultyWire:
    """A raw ASGI middleware. Starlette's own kind has no access to the connection, which most faults need."""

    def __init__(self, app: ASGIApp, *, state: SandboxState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(CONTROL_PATH):
            await self._app(scope, receive, send)
            return
        # Reads beyond the limit: otherwise a caller that is still sending would get a reset instead of the answer.
        body = await read_body(receive, 10 * LARGEST_BODY)
        if body is None:
            return
        if len(body) > LARGEST_BODY:
            await Exchange(scope, receive, send, b"").answer(413, failure(413, "Request body too large"))
            return
        call = _call_of(scope)
        task = self._state.tasks.get(_task_id_of(scope, call))
        succeeded = task is not None and task.state == "success"
        fault = None
        downloads = scope["method"] == "GET" and (call == "image" or (call == "result" and task is not None))
        if call in ("submit", "status") or downloads:
            prompt = task.request.input.prompt if task else _prompt_of(body)
            model = task.model if task else _model_of(scope)
            fault = self._state.faults.take(call, prompt=prompt, model=model, succeeded=succeeded)
            if fault is not None and fault.kind == "failed" and task is not None:
                task.end(fault.fail_code, SCRIPTED)
        recorded = self._recorded(scope, body, call, fault)
        self._state.record.add(recorded)
        scope[RECORD_KEY] = recorded
        exchange = Exchange(scope, receive, send, body)
        if fault is None:
            await exchange.pass_on(self._app)
        elif await refuse(exchange, fault):
            return
        elif fault.call == "image":
            await damage_image(exchange, self._app, fault)
        elif fault.call == "result" and task is not None:
            await damage_result(exchange, self._app, fault, task, self._state.tasks)
        else:
            await misbehave(exchange, self._app, fault, self._second_url(scope, task))

    def _recorded(self, scope: Scope, body: bytes, call: Call, fault: Fault | None) -> RecordedRequest:
        key = self._state.settings.api_key.encode()
        query: bytes = scope["query_string"]
        everywhere = [scope.get("raw_path") or scope["path"].encode(), query, body]
        everywhere += [value for _, value in scope["headers"]]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if "authorization" in headers:
            headers["authorization"] = "***"
        client = scope.get("client")
        return RecordedRequest(
            time=time.time(),
            method=scope["method"],
            path=scope["path"],
            query=query.decode("latin-1"),
            call=call,
            model=_model_of(scope),
            headers=headers,
            carried_api_key=any(key in part for part in everywhere),
            body=body[:MOST_BODY_BYTES].decode("utf-8", "replace"),
            client_port=client[1] if client else None,
            fault=fault.kind if fault else None,
            task_id=_task_id_of(scope, call),
        )

    def _second_url(self, scope: Scope, task: Task | None) -> str | None:
        if task is None or task.expires_at is None:
            return None
        base_url = str(Request(scope).base_url)
        return self._state.tasks.links.make(base_url, task.task_id, task.expires_at, VIDEO_NAMES[1])


def _call_of(scope: Scope) -> Call:
    path: str = scope["path"]
    if path.startswith(SUBMIT_PATH) and scope["method"] == "POST":
        return "submit"
    if path.startswith(STATUS_PATH) and scope["method"] == "GET":
        return "status"
    if path.startswith("/results/"):
        return "result"
    return "image" if path.startswith("/samples/") else "other"


def _model_of(scope: Scope) -> str | None:
    path: str = scope["path"]
    return path.rsplit("/", 1)[1] if path.startswith((SUBMIT_PATH, STATUS_PATH)) else None


def _task_id_of(scope: Scope, call: Call) -> str | None:
    if call == "status":
        return Request(scope).query_params.get("taskId")
    if call == "result":
        return str(scope["path"]).split("/")[2]
    return None


def _prompt_of(body: bytes) -> str | None:
    try:
        content: Any = json.loads(body)
        prompt = content["input"]["prompt"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return prompt if isinstance(prompt, str) else None
