"""What a reply says, read from the provider's documentation alone, and not as the client reads it.

The documentation: every reply is `{"code": int, "message": str, "data": object | null}`. A taken submission has code
200 and `data.taskId`. The errors are 400, 401, 402, 403, 404 and 429; their `data` is null, absent or `{"error":
str}`. Whether an error's HTTP status equals its code, or is 200, is left open.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

NOES: Final = frozenset({400, 401, 402, 403, 404, 429})
PLAIN_NOES: Final = frozenset({400, 401, 429})
"""Gateways answer with the others too, in pages of their own: those count in the API's envelope only."""
STATES: Final = frozenset({"pending", "processing", "success", "failed"})
"""In any case, and with blanks around."""
NAMES: Final = ["code", "data", "message"]
NO_NAMES: Final = ("null", "None", "undefined")
"""What a broken serializer makes of a missing value is not a task id."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object with all that it holds, also where a name comes twice."""

    def all(self, name: str) -> list[Any]:
        """Every value under this name."""
        return [value for found, value in self if found == name]

    def one_of(self, name: str) -> Any:
        """The value under this name, where there is one and no second."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None


@dataclass(frozen=True)
class Reply:
    """A reply as it came."""

    http_status: int
    body: bytes

    @property
    def is_yes(self) -> bool:
        """Whether HTTP says yes."""
        return 200 <= self.http_status < 300

    @property
    def content(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return json.loads(self.body, object_pairs_hook=Pairs)
        except (ValueError, RecursionError):
            return None

    @property
    def codes(self) -> list[Any]:
        """All that is said under `code`."""
        return self.content.all("code") if isinstance(self.content, Pairs) else []

    def may_be_a_no(self) -> bool:
        """Whether it may be taken for a documented no: one of the two says no, and nothing contradicts."""
        if not self.is_yes and self.http_status not in NOES:
            return False
        if self._speaks_of_a_task():
            return False
        if not self.codes:
            return self.http_status in PLAIN_NOES and not self._mentions_another_code()
        return all(type(code) is int and code in NOES for code in self.codes)

    def is_the_documented_no(self) -> bool:
        """Whether it is a no exactly as it is documented. Then it has to be taken for one."""
        content = self.content
        if not isinstance(content, Pairs) or sorted({"data", *(name for name, _ in content)}) != NAMES:
            return False
        fields = {"data": None} | dict(content)
        if len(content) != len(dict(content)):
            return False
        code = fields["code"]
        fits = type(code) is int and code in NOES and self.http_status in (200, code)
        no_data = fields["data"] is None or says_why(fields["data"])
        return fits and isinstance(fields["message"], str) and no_data and not self._speaks_of_a_task()

    def documented_task_id(self) -> str | None:
        """The task of a yes as it is documented, with whatever fields beside. Then it has to be taken as this task."""
        if not self.is_yes or not isinstance(self.content, Pairs) or not isinstance(self.one("data"), Pairs):
            return None
        code, named = self.one("code"), Pairs(self.one("data")).one_of("taskId")
        if type(code) is not int or code != 200 or not isinstance(named, str):
            return None
        usable = named.strip() and len(named) <= 200 and named.isprintable() and named.strip() not in NO_NAMES
        return named.strip() if usable else None

    def documented_end(self, task_id: str) -> Any:
        """The end that a status names exactly as documented: a failCode, or the result's addresses. Else None."""
        data = Pairs(self.one("data")) if self.is_yes and isinstance(self.one("data"), Pairs) else Pairs()
        code = self.one("code")
        if type(code) is not int or code != 200 or data.one_of("taskId") != task_id:
            return None
        state = data.one_of("state")
        match state.strip().lower() if isinstance(state, str) else state:
            case "failed" if isinstance(data.one_of("failCode"), str):
                return data.one_of("failCode")
            case "success" if isinstance(data.one_of("resultJson"), str):
                return _addresses(data.one_of("resultJson"))
        return None

    def one(self, name: str) -> Any:
        """What is said under this name, where it is said once."""
        return self.content.one_of(name) if isinstance(self.content, Pairs) else None

    def task_ids(self) -> list[str]:
        """The tasks as which it may have been taken; none where it is no clear yes."""
        if not self.is_yes or not self.codes or not all(says_yes(code) for code in self.codes):
            return []
        objects = [self.content]
        for value in self.content.all("data"):
            inner = Reply(200, value.encode("utf-8", "replace")).content if isinstance(value, str) else value
            objects += [inner] if isinstance(inner, Pairs) else []
        named = [value for one in objects for name, value in one if re.sub("[_-]", "", name).lower() == "taskid"]
        return [str(one).strip() for one in named if isinstance(one, str) or (type(one) is int and one < 10**100)]

    def may_have_succeeded(self, task_id: str) -> bool:
        """Whether it says so of this task, or brings an address with a state that the documentation does not know."""
        return any(
            word == "success" or (word not in STATES and _holds_an_address(data))
            for word, data in self._states(task_id)
        )

    def may_have_failed(self, task_id: str) -> bool:
        """Whether it says so of this task, or brings a failCode with a state that the documentation does not know."""
        return any(
            word == "failed" or (word not in STATES and any(data.all("failCode")))
            for word, data in self._states(task_id)
        )

    def _states(self, task_id: str) -> list[tuple[str, Pairs]]:
        """The states that it gives for this task, each with what came along."""
        if not self.is_yes or not any(says_yes(code) for code in self.codes):
            return []
        data = [value for value in self.content.all("data") if isinstance(value, Pairs)]
        mine = [
            value
            for value in data
            if all(str(named).strip() == task_id for named in value.all("taskId") if named is not None)
        ]
        return [(str(state).strip().lower(), value) for value in mine for state in value.all("state") or [""]]

    def _speaks_of_a_task(self) -> bool:
        if self.content is None:
            return b"taskid" in self.body.replace(b"\0", b"").lower()
        if any(name.lower().replace("_", "").replace("-", "") == "taskid" for name in names(self.content)):
            return True
        if any(names_a_task(text) for name, text in texts(self.content) if name not in OF_THE_CALL):
            return True
        return isinstance(self.content, Pairs) and any(data and not says_why(data) for data in self.content.all("data"))

    def _mentions_another_code(self) -> bool:
        """Whether what is no envelope looks like the rest of one that said something else."""
        found = re.findall(rb'"code"\s*:\s*(\d+)', self.body)
        return any(int(digits[:20]) not in NOES for digits in found)


def _addresses(result_json: str) -> list[str] | None:
    """The addresses of a result exactly as it is documented."""
    try:
        content = json.loads(result_json, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        return None
    urls = content.one_of("resultUrls") if isinstance(content, Pairs) else None
    if not isinstance(urls, list) or not urls or not all(isinstance(url, str) and url.strip() for url in urls):
        return None
    return [url.strip() for url in urls]


def _holds_an_address(data: Pairs) -> bool:
    """Whether anything in it may be one."""
    return "//" in json.dumps(data).replace("\\\\/", "/").replace("\\\\", "/")


def says_yes(code: Any) -> bool:
    """Whether a code is the 200 of an acceptance. As text or 200.0 it is one as well; the codes of refusals are not."""
    return (type(code) in (int, float) and code == 200) or (isinstance(code, str) and code.strip() == "200")


def says_why(data: Any) -> bool:
    """Whether it is an error's `{"error": "Missing required field: input.prompt"}`, without a task in it."""
    if not isinstance(data, Pairs) or [name for name, _ in data] != ["error"]:
        return False
    return isinstance(data.one_of("error"), str)


OF_THE_CALL = ("requestid", "xrequestid", "traceid", "logid", "spanid", "correlationid")


def names_a_task(text: str) -> bool:
    """Whether a text holds what looks like an id of APIXO's, besides addresses and the call's own id."""
    left = re.sub(r"https?://\S+|(request|trace|log|span|correlation)[ _-]?id\W{0,4}[\w-]+", "", text.lower())
    ids = re.findall(r"task[_-]?([0-9a-f]+)", left)
    return (
        any(len(found) >= 6 for found in ids)
        or any(len(run) == 32 for run in re.findall("[0-9a-f]+", left))
        or re.search(r"task[ _-]?id\W{1,3}\w", left) is not None
    )


def texts(content: Any) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, however deep, with the name of its field."""
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
    """Every name in a JSON value, however deep."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Pairs):
            yield from (name for name, _ in value)
            waiting.extend(inner for _, inner in value)
        elif isinstance(value, list):
            waiting.extend(value)
