"""What a reply means according to the provider's documentation alone, independent of how the client reads it.

The documentation: every reply is `{"code": int, "message": str, "data": object | null}`. An accepted submission has
code 200 and `data.taskId`. The errors are 400, 401, 402, 403, 404 and 429; their `data` is null, absent or `{"error":
str}`. It does not say whether an error's HTTP status equals its code or is 200.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

REJECTION_CODES: Final = frozenset({400, 401, 402, 403, 404, 429})
PLAIN_REJECTION_CODES: Final = frozenset({400, 401, 429})
"""Gateways also answer with the other codes, in pages of their own: those count only in the API's envelope."""
STATES: Final = frozenset({"pending", "processing", "success", "failed"})
"""In upper or lower case, and with surrounding blanks."""
ENVELOPE_FIELDS: Final = ["code", "data", "message"]
MISSING_VALUES: Final = ("null", "None", "undefined")
"""What a broken serializer writes for a missing value: none of these is a task id."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object that keeps fields with duplicate names."""

    def all(self, name: str) -> list[Any]:
        """Every value under this name."""
        return [value for found, value in self if found == name]

    def single(self, name: str) -> Any:
        """The value under this name, if it appears exactly once."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True)
class Reply:
    """A reply as received."""

    http_status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        """Whether the HTTP status is a success."""
        return 200 <= self.http_status < 300

    @property
    def content(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body, object_pairs_hook=Pairs)
        except (ValueError, RecursionError):
            return None

    @property
    def codes(self) -> list[Any]:
        """All values under `code`."""
        return self.content.all("code") if isinstance(self.content, Pairs) else []

    def may_be_rejection(self) -> bool:
        """Whether it may be read as a documented rejection: status or code rejects, and nothing contradicts it."""
        if not self.is_success and self.http_status not in REJECTION_CODES:
            return False
        if self._mentions_a_task():
            return False
        if not self.codes:
            return self.http_status in PLAIN_REJECTION_CODES and not self._mentions_another_code()
        return all(type(code) is int and code in REJECTION_CODES for code in self.codes)

    def is_documented_rejection(self) -> bool:
        """Whether it is a rejection exactly as documented. Then the client must read it as one."""
        content = self.content
        if not isinstance(content, Pairs) or sorted({"data", *(name for name, _ in content)}) != ENVELOPE_FIELDS:
            return False
        fields = {"data": None} | dict(content)
        if len(content) != len(dict(content)):
            return False
        code = fields["code"]
        fits = type(code) is int and code in REJECTION_CODES and self.http_status in (200, code)
        no_data = fields["data"] is None or is_error_detail(fields["data"])
        return fits and isinstance(fields["message"], str) and no_data and not self._mentions_a_task()

    def documented_task_id(self) -> str | None:
        """The task id of an acceptance as documented, whatever other fields it has. Then the client must return it."""
        if not self.is_success or not isinstance(self.content, Pairs) or not isinstance(self.field("data"), Pairs):
            return None
        code, named = self.field("code"), Pairs(self.field("data")).single("taskId")
        if type(code) is not int or code != 200 or not isinstance(named, str):
            return None
        usable = named.strip() and len(named) <= 200 and named.isprintable() and named.strip() not in MISSING_VALUES
        return named.strip() if usable else None

    def documented_outcome(self, task_id: str) -> Any:
        """The outcome that a status reports exactly as documented: a failCode, or the URLs of the result. Else None."""
        data = Pairs(self.field("data")) if self.is_success and isinstance(self.field("data"), Pairs) else Pairs()
        code = self.field("code")
        if type(code) is not int or code != 200 or data.single("taskId") != task_id:
            return None
        state = data.single("state")
        match state.strip().lower() if isinstance(state, str) else state:
            case "failed" if isinstance(data.single("failCode"), str):
                return data.single("failCode")
            case "success" if isinstance(data.single("resultJson"), str):
                return _urls(data.single("resultJson"))
        return None

    def field(self, name: str) -> Any:
        """The value under this name, if the envelope has it exactly once."""
        return self.content.single(name) if isinstance(self.content, Pairs) else None

    def task_ids(self) -> list[str]:
        """The task ids that may be read from it; none if it is not clearly an acceptance."""
        if not self.is_success or not self.codes or not all(is_acceptance_code(code) for code in self.codes):
            return []
        objects = [self.content]
        for value in self.content.all("data"):
            inner = Reply(200, value.encode("utf-8", "replace")).content if isinstance(value, str) else value
            objects += [inner] if isinstance(inner, Pairs) else []
        named = [value for one in objects for name, value in one if re.sub("[_-]", "", name).lower() == "taskid"]
        return [str(one).strip() for one in named if isinstance(one, str) or (type(one) is int and one < 10**100)]

    def may_have_succeeded(self, task_id: str) -> bool:
        """Whether it reports success for this task, or has a URL together with an undocumented state."""
        return any(
            word == "success" or (word not in STATES and _may_contain_url(data)) for word, data in self._states(task_id)
        )

    def may_have_failed(self, task_id: str) -> bool:
        """Whether it reports failure for this task, or has a failCode together with an undocumented state."""
        return any(
            word == "failed" or (word not in STATES and any(data.all("failCode")))
            for word, data in self._states(task_id)
        )

    def _states(self, task_id: str) -> list[tuple[str, Pairs]]:
        """The states that it reports for this task, each with the data it came in."""
        if not self.is_success or not any(is_acceptance_code(code) for code in self.codes):
            return []
        data = [value for value in self.content.all("data") if isinstance(value, Pairs)]
        matching = [
            value
            for value in data
            if all(str(named).strip() == task_id for named in value.all("taskId") if named is not None)
        ]
        return [(str(state).strip().lower(), value) for value in matching for state in value.all("state") or [""]]

    def _mentions_a_task(self) -> bool:
        if self.content is None:
            return b"taskid" in self.body.replace(b"\0", b"").lower()
        if any(name.lower().replace("_", "").replace("-", "") == "taskid" for name in names(self.content)):
            return True
        if any(contains_task_id(text) for name, text in texts(self.content) if name not in REQUEST_ID_FIELDS):
            return True
        return isinstance(self.content, Pairs) and any(
            data and not is_error_detail(data) for data in self.content.all("data")
        )

    def _mentions_another_code(self) -> bool:
        """Whether a body that is not an envelope looks like a fragment of one with another code."""
        found = re.findall(rb'"code"\s*:\s*(\d+)', self.body)
        return any(int(digits[:20]) not in REJECTION_CODES for digits in found)


def _urls(result_json: str) -> list[str] | None:
    """The URLs of a result exactly as documented."""
    try:
        content = json.loads(result_json, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return None
    urls = content.single("resultUrls") if isinstance(content, Pairs) else None
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) and url.strip() for url in urls):
        return None
    return [url.strip() for url in urls]


def _may_contain_url(data: Pairs) -> bool:
    """Whether anything in it may be a URL."""
    return "//" in json.dumps(data).replace("\\\\/", "/").replace("\\\\", "/")


def is_acceptance_code(code: Any) -> bool:
    """Whether a code is the 200 of an acceptance. Text and 200.0 count too; rejection codes must be integers."""
    return (type(code) in (int, float) and code == 200) or (isinstance(code, str) and code.strip() == "200")


def is_error_detail(data: Any) -> bool:
    """Whether it is the data of an error, such as `{"error": "Missing required field: input.prompt"}`, and no more."""
    if not isinstance(data, Pairs) or [name for name, _ in data] != ["error"]:
        return False
    return isinstance(data.single("error"), str)


REQUEST_ID_FIELDS = ("requestid", "xrequestid", "traceid", "logid", "spanid", "correlationid")


def contains_task_id(text: str) -> bool:
    """Whether a text contains what looks like an APIXO task id, not counting URLs and the request's own id."""
    left = re.sub(r"https?://\S+|(request|trace|log|span|correlation)[ _-]?id\W{0,4}[\w-]+", "", text.lower())
    ids = re.findall(r"task[_-]?([0-9a-f]+)", left)
    return (
        any(len(found) >= 6 for found in ids)
        or any(len(run) == 32 for run in re.findall("[0-9a-f]+", left))
        or re.search(r"task[ _-]?id\W{1,3}\w", left) is not None
    )


def texts(content: Any) -> Iterator[tuple[str, str]]:
    """Every string in a JSON value, at any depth, with the normalized name of its field."""
    waiting = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Pairs):
            waiting.extend((re.sub("[_-]", "", inner).lower(), item) for inner, item in value)
        elif isinstance(value, list):
            waiting.extend((name, item) for item in value)
        elif isinstance(value, str):
            yield name, value


def names(content: Any) -> Iterator[str]:
    """Every field name in a JSON value, at any depth."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Pairs):
            yield from (name for name, _ in value)
            waiting.extend(inner for _, inner in value)
        elif isinstance(value, list):
            waiting.extend(value)
