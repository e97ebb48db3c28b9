"""The envelope of every reply, `{"code", "message", "data"}`, and the ways it can be damaged."""

import json
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

#: The ways a code-200 envelope can be wrong that both API calls share, and one of a submit.
DAMAGED = frozenset({"wrong_types", "missing_fields", "null_data", "no_data", "text_code", "number_id"})


def success(data: Mapping[str, Any]) -> Json:
    """The envelope of a good reply."""
    return {"code": 200, "message": "success", "data": dict(data)}


def failure(code: int, message: str) -> Json:
    """The envelope of an error."""
    return {"code": code, "message": message, "data": None}


def damaged(kind: str, envelope: Json) -> Json:
    """A code-200 envelope with the wrong content: one of `DAMAGED`."""
    match kind:
        case "missing_fields":
            return {**envelope, "data": {}}
        case "null_data":
            return {**envelope, "data": None}
        case "no_data":
            return {"code": 200, "message": "success"}
        case "number_id":  # the app has named it in digits
            return {**envelope, "data": {"taskId": int(envelope["data"]["taskId"])}}
        case "text_code":
            return {**envelope, "code": str(envelope["code"])}
        case _:
            wrong = {"taskId": [12345678], "state": 3, "resultJson": 5, "createTime": "yesterday", "failCode": ["?"]}
            return {"code": 200, "message": None, "data": wrong}


def altered(kind: str, envelope: Json, second_url: str | None, fail_code: str) -> Json:
    """A good status envelope that says something unforeseen: one of `faults.StatusKind`."""
    data: Json = dict(envelope["data"] or {})
    urls = json.loads(data.get("resultJson", "{}")).get("resultUrls", [])
    match kind:
        case "unknown_state":
            data = _without_outcome(data) | {"state": "queued_v2"}
        case "stuck_state":
            data = _without_outcome(data) | {"state": "expired"}
        case "failed":
            outcome = {"state": "failed", "failCode": fail_code, "failMsg": "the sandbox was told to say so"}
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
