"""The API's replies as types, and how they are parsed. All pure.

Each kind of state has its own class, so a result exists only on `Succeeded` and a reason only on `Failed`.
"""

import contextlib
import json
import math
import re
from decimal import Decimal
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from apixo.errors import (
    ENVELOPE_ONLY,
    REFUSALS,
    RefusedError,
    ServerError,
    UnexpectedReplyError,
    refusal_class,
)
from apixo.redaction import excerpt
from apixo.results import DOCUMENTED, find_result_urls


class TaskStatus(BaseModel):
    """What the provider says about a task. The subclasses are the kinds of state; undocumented fields are left out."""

    model_config = ConfigDict(frozen=True)

    task_id: str = Field(description="The provider's id of the task.")
    state: str = Field(description="The state as the provider wrote it.")
    create_time_ms: int | None = Field(default=None, description="Created, Unix milliseconds.")
    complete_time_ms: int | None = Field(default=None, description="Ended, Unix milliseconds.")
    cost_time_ms: int | None = Field(default=None, description="Processing time, milliseconds.")
    remarks: tuple[str, ...] = Field(default=(), description="What differs from the documentation, for the log.")


class InProgress(TaskStatus):
    """`pending`, `processing`, or an undocumented state that says that the task is in progress."""


class UnknownState(TaskStatus):
    """Any other state, without a result or a failCode. Polling continues: a documented state may follow."""


class Succeeded(TaskStatus):
    """`success`: the result can be fetched, for 15 days."""

    result_urls: tuple[str, ...] = Field(description="URLs of the videos; at least one. They may contain signatures.")


class Failed(TaskStatus):
    """`failed`: the task will never have a result."""

    fail_code: str = Field(description="The provider's `failCode`, raw.")
    fail_message: str = Field(description="The provider's `failMsg`.")


Status = InProgress | UnknownState | Succeeded | Failed


class Envelope(BaseModel):
    """`{"code": int, "message": str, "data": object | null}`, around every reply. Other fields are kept."""

    model_config = ConfigDict(extra="allow")

    code: int
    message: str = ""
    data: Any = None


def parse_envelope(
    http_status: int,
    body: bytes,
    *,
    submission: bool,
    retry_after_seconds: float | None = None,
    task_id: str | None = None,
) -> Envelope:
    """The envelope of a reply that is an acceptance.

    APIXO does not document whether an error's HTTP status equals its `code`, or is 200 with the code in the body.
    So both are read: for an acceptance both must be 200; for a rejection one must be a rejection, and the other a
    rejection or 200. Everything else is unclear.

    Args:
        submission: whether this answers the paid call. A rejection of it that may be an acceptance is unclear.
        retry_after_seconds: how long the reply asks to wait.
        task_id: the task that was polled, if any.

    Raises:
        RefusedError: a documented rejection (400, 401, 429; if no task was polled also 402, 403, 404 in an envelope).
        ServerError: neither an acceptance nor a documented rejection.
        UnexpectedReplyError: an acceptance without a readable envelope.
    """
    envelope = _envelope(body)
    http_code = 200 if 200 <= http_status < 300 else http_status
    codes = {http_code} | ({envelope.code} if envelope else set())
    if codes == {200}:
        if envelope is None:
            raise UnexpectedReplyError(
                f"APIXO answered HTTP {http_status} with something that is not its envelope: {excerpt(body)!r}.",
                code=http_status,
                task_id=task_id,
            )
        return envelope
    refusals = codes - {200}
    # {200, 400} is HTTP 200 with the code in the body, or HTTP 400 with junk. Only the first is a clear rejection.
    believed = REFUSALS.keys() if task_id is None and envelope is not None else REFUSALS.keys() - ENVELOPE_ONLY
    agreed = refusals <= believed and (envelope is None or envelope.code in REFUSALS)
    definite = agreed and not (submission and _may_be_accepted(envelope, body))
    code = envelope.code if envelope and envelope.code != 200 else http_status
    words = _words(envelope) if envelope else ""
    if not definite and envelope and (envelope.data is not None or envelope.model_extra):
        words = ""  # an unclear reply is shown whole: it may name a paid task
    text = excerpt(words.encode("utf-8", "replace") or body)
    cls: type[RefusedError | ServerError] = ServerError
    message = (
        f"APIXO answered HTTP {http_status}, code {envelope.code if envelope else 'none'}: {text!r}. "
        "This is neither an acceptance nor a documented rejection."
    )
    if definite:
        cls = refusal = refusal_class(code, text)
        unpaid = "Nothing was paid. " if submission else ""
        message = f"APIXO refused the request with {code}: {text!r}. {unpaid}{refusal.advice}"
    raise cls(
        message,
        code=code,
        task_id=task_id,
        retry_after_seconds=retry_after_seconds,
        enveloped=envelope is not None,
    )


def _may_be_accepted(envelope: Envelope | None, body: bytes) -> bool:
    """Whether the rejection of a submission may be an acceptance: it names a task, has data, or has a second code."""
    fields: list[tuple[str, Any]] = []
    outermost: list[tuple[str, Any]] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields.extend((_plain_name(name), value) for name, value in pairs)
        outermost[:] = pairs  # the outermost object is parsed last
        return dict(pairs)

    try:
        json.loads(body, object_pairs_hook=look)
    except (ValueError, RecursionError):
        left = body.replace(b"\0", b"").lower()  # without the null bytes of UTF-16
        return envelope is not None or b"taskid" in left or b'"code"' in left
    codes = [value for name, value in outermost if name == "code"]
    if len(codes) > 1 or (codes and envelope is None):
        return True
    return any(_names_a_task(name, value) for name, value in fields) or any(
        value and not _is_documented_error(value) for name, value in outermost if name == "data"
    )


_TASK_ID: Final = re.compile(
    r"task[_-]?[0-9a-f]{6,}|task[ _-]?id\W{1,3}\w|(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])", re.IGNORECASE
)
"""Ids such as `task_12345678`, and ids of 32 hex digits, have been seen."""
_NO_TASK: Final = re.compile(r"https?://\S+|(?:request|trace|log|span|correlation)[ _-]?id\W{0,4}[\w-]+", re.IGNORECASE)
"""Not task ids: URLs quoted from the request, and ids of the call itself, which many APIs return for their support."""
_CALL_ID_NAMES: Final = frozenset({"requestid", "xrequestid", "traceid", "logid", "spanid", "correlationid"})


def _names_a_task(name: str, value: Any) -> bool:
    """Whether a field of a rejection contains a possible task id, at any depth of lists."""
    if name == "taskid":
        return True
    waiting = [value] if name not in _CALL_ID_NAMES else []
    while waiting:  # not recursive: nested lists may be deep
        found = waiting.pop()
        if isinstance(found, list):
            waiting.extend(found)
        elif isinstance(found, str) and _TASK_ID.search(_NO_TASK.sub("", found)):
            return True
    return False


def _is_documented_error(data: Any) -> bool:
    """Whether it is the documented `{"error": "Missing required field: …"}` and nothing else."""
    why = data.get("error") if isinstance(data, dict) and len(data) == 1 else None
    return isinstance(why, str)


def _words(envelope: Envelope) -> str:
    """The text of a rejection, from the message and `data.error`."""
    why = envelope.data["error"] if _is_documented_error(envelope.data) else ""
    return ": ".join(part for part in (envelope.message, why) if part)


_MAX_TASK_NUMBER: Final = 10**100
_IN_PROGRESS: Final = re.compile(
    r"pending|processing|progress|queu|retrying|running|wait|(?<!miss)ing$"
    r"|^(created|submitted|scheduled|throttled|not[_ ]?start(ed)?)$"
)
"""A task in such a state may still be in progress: if it counted as failed, it could be paid for a second time. Video
APIs document `wait`, `queuing`, `generating`, `initializing`, `submitted`, `created` and `NOT_START`, some of them with
a placeholder for the result or the failCode."""
_NO_FAIL_CODES: Final = frozenset({"", "0", "200", "none", "null", "nil", "undefined", "false", "n/a", "ok", "success"})


def parse_submitted(envelope: Envelope) -> str:
    """The task id of an accepted submission: `data.taskId`, or the only id under another spelling or place.

    Raises:
        UnexpectedReplyError: the provider accepted it without a usable task id.
    """
    named = _named_tasks(envelope)
    if len(named) == 1:
        return named[0]
    shown = {"data": envelope.data, **envelope.model_extra} if envelope.model_extra else envelope.data
    raise _unexpected(f"APIXO answered code 200 to the submission, but without a usable data.taskId: {_show(shown)}.")


def _named_tasks(envelope: Envelope) -> list[str]:
    """The task id at the documented place; else each one in another spelling, or next to `data`."""
    data = envelope.data
    if isinstance(data, str):
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(data)
    inside = data if isinstance(data, dict) else {}
    documented = usable_task_id(inside.get("taskId"))
    if documented is not None:
        return [documented]
    fields = [*inside.items(), *(envelope.model_extra or {}).items()]
    named = [usable_task_id(value) for name, value in fields if _plain_name(name) == "taskid"]
    return list(dict.fromkeys(task_id for task_id in named if task_id is not None))


def _plain_name(name: str) -> str:
    return re.sub(r"[_-]", "", name).lower()


def parse_balance(envelope: Envelope) -> Decimal:
    """The balance of the account, which APIXO documents as a bare number.

    Raises:
        UnexpectedReplyError: it is not a number.
    """
    amount = envelope.data
    if isinstance(amount, int | float) and not isinstance(amount, bool) and math.isfinite(amount):
        return Decimal(str(amount))
    raise _unexpected(f"APIXO returned no balance: {_show(amount)!r}.")


def usable_task_id(value: object) -> str | None:
    """The provider's task id, as text without surrounding spaces; None if the value cannot be a task id."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_TASK_NUMBER:
        return str(value)
    text = value.strip() if isinstance(value, str) else ""
    if text in ("null", "None", "undefined"):  # a missing value from a broken serializer
        return None
    return text if text.isprintable() and 0 < len(text) <= 200 else None


def parse_status(envelope: Envelope, *, task_id: str) -> Status:
    """The state of the task that was polled.

    Documented states match in any case and with surrounding spaces. An undocumented state that says that the task is in
    progress counts as that, whatever comes with it. Any other is a success or failure if it comes with a result or a
    failCode.

    Raises:
        UnexpectedReplyError: no state, another task's state, or a success without a readable result.
    """
    data = envelope.data
    if not isinstance(data, dict):
        raise _unexpected(f"APIXO returned no status for task {task_id}: {_show(data)}.", task_id)
    named = data.get("taskId")
    if named is not None and str(named).strip() != task_id:
        raise _unexpected(f"APIXO was asked for task {task_id} but answered for {_show(named)}.", task_id)
    state = data.get("state")
    known = {
        "task_id": task_id,
        "state": _clean(state),
        "create_time_ms": _milliseconds(data.get("createTime")),
        "complete_time_ms": _milliseconds(data.get("completeTime")),
        "cost_time_ms": _milliseconds(data.get("costTime")),
    }
    word = state.strip().lower() if isinstance(state, str) else ""
    if word == "success":
        return _succeeded(data, known)
    if word == "failed":
        return _failed(data, known)
    if _IN_PROGRESS.search(word):
        return InProgress(**known)
    return _undocumented(data, known)


def _milliseconds(value: Any) -> int | None:
    """Times are only informative: a malformed one must not cost a video."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _undocumented(data: dict[str, Any], known: dict[str, Any]) -> Status:
    """Interprets an undocumented state by the fields that come with it."""
    task_id, state = known["task_id"], data.get("state")
    quoted = f"APIXO reports task {task_id} as {_show(state)}, an undocumented state"
    if find_result_urls(data):
        return _succeeded(data, known, f"{quoted}. It came with a result, so it counts as a success.")
    code = data.get("failCode")
    if isinstance(code, str | int) and _clean(code).strip().lower() not in _NO_FAIL_CODES:
        return _failed(data, known, f"{quoted}. It came with a failCode, so it counts as a failure.")
    if isinstance(state, str):
        return UnknownState(**known)
    raise _unexpected(f"APIXO returned no state for task {task_id}: {_show(data)}.", task_id)


def _succeeded(data: dict[str, Any], known: dict[str, Any], *remarks: str) -> Succeeded:
    found = find_result_urls(data)
    if found is None:
        raise _unexpected(
            f"APIXO reports task {known['task_id']} as success, but without a result URL: "
            f"{_show(data.get('resultJson'))}.",
            known["task_id"],
        )
    urls, where = found
    if where != DOCUMENTED:
        remarks += (f"The result of task {known['task_id']} was in {_show(where)}, not in {DOCUMENTED}.",)
    return Succeeded(**known, result_urls=tuple(map(_clean, urls)), remarks=remarks)


def _failed(data: dict[str, Any], known: dict[str, Any], *remarks: str) -> Failed:
    code, text = data.get("failCode"), data.get("failMsg")
    return Failed(**known, fail_code=_clean(code), fail_message=_clean(text), remarks=remarks)


def _clean(text: object) -> str:
    """The provider's text, made storable: JSON may contain lone surrogates, which UTF-8 cannot encode."""
    return "" if text is None else str(text).encode("utf-8", "replace").decode()


def _envelope(body: bytes) -> Envelope | None:
    try:
        parsed = json.loads(body)
        code = parsed["code"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # Only an acceptance may be text, or 200.0 from a serializer: a rejection must be exactly as documented.
    if (isinstance(code, str) and code.strip() == "200") or (isinstance(code, float) and code == 200):
        code = 200
    if not isinstance(code, int) or isinstance(code, bool):
        return None
    # The message may be null or a number: only the code matters.
    return Envelope.model_validate({**parsed, "code": code, "message": str(parsed.get("message") or "")})


def _unexpected(message: str, task_id: str | None = None) -> UnexpectedReplyError:
    return UnexpectedReplyError(message, code=200, task_id=task_id, enveloped=True)


def _show(value: object) -> str:
    return excerpt(repr(value).encode("utf-8", "replace"))
