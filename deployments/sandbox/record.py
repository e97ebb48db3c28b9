"""Every request that the sandbox received, for tests that count what reached the provider."""

import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, Field

Call = Literal["submit", "status", "result", "image", "other"]

#: Only this many of the newest requests are kept.
MOST_REQUESTS = 100_000
#: How much of a body is kept, in bytes.
MOST_BODY_BYTES = 20_000


class RecordedRequest(BaseModel):
    """One received request. It is recorded on arrival; `task_id` and `charged` follow before its reply leaves."""

    time: float = Field(description="Time of arrival, as Unix seconds.")
    method: str
    path: str
    query: str = Field(description="The query string as sent, without the question mark.")
    call: Call
    model: str | None = Field(None, description="The model in the path of a submit or status call.")
    headers: dict[str, str] = Field(description="Names in lower case; the value of Authorization is masked.")
    carried_api_key: bool = Field(description="Whether the API key appeared anywhere in headers, URL or body.")
    body: str = Field(description="The first 20,000 bytes of the body as text.")
    client_port: int | None = Field(description="The caller's port: equal for requests on one kept connection.")
    fault: str | None = Field(None, description="Kind of the scripted fault that affected this request.")
    task_id: str | None = Field(None, description="The task it created or named.")
    charged: bool = Field(False, description="Whether it created a task, which is what the provider bills.")


class RequestRecord:
    """The received requests in order of arrival. Safe to read from any thread while the sandbox runs."""

    def __init__(self) -> None:
        self._requests: deque[RecordedRequest] = deque(maxlen=MOST_REQUESTS)
        self._lock = threading.Lock()

    def add(self, request: RecordedRequest) -> None:
        with self._lock:
            self._requests.append(request)

    def all(self) -> list[RecordedRequest]:
        """Every request, oldest first."""
        with self._lock:
            return list(self._requests)

    def submits(self) -> list[RecordedRequest]:
        """Every POST of a generation, answered or not."""
        return self._where(lambda request: request.call == "submit")

    def charged(self) -> list[RecordedRequest]:
        """The submits that created a task, and so were paid."""
        return self._where(lambda request: request.charged)

    def statuses(self, task_id: str | None = None) -> list[RecordedRequest]:
        """The status calls, of one task or of all."""
        return self._where(lambda request: request.call == "status" and (task_id is None or request.task_id == task_id))

    def results(self) -> list[RecordedRequest]:
        """The requests for videos."""
        return self._where(lambda request: request.call == "result")

    def images(self) -> list[RecordedRequest]:
        """The requests for sample images. The sandbox's own have `USER_AGENT` in their headers."""
        return self._where(lambda request: request.call == "image")

    def clear(self) -> None:
        with self._lock:
            self._requests.clear()

    def __len__(self) -> int:
        return len(self._requests)

    def _where(self, wanted: Callable[[RecordedRequest], bool]) -> list[RecordedRequest]:
        return [request for request in self.all() if wanted(request)]
