"""What the tests say to the sandbox."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

KEY = "sandbox-key"
SUBMIT = "/api/v1/generateTask/sora-2"
STATUS = "/api/v1/statusTask/sora-2"


def body(**changes: Any) -> dict[str, Any]:
    """A good request body; keyword arguments change fields of `input`, and `top` fields beside it."""
    top: dict[str, Any] = changes.pop("top", {})
    content = {"mode": "text-to-video", "prompt": "A lighthouse at golden hour", "duration": 4} | changes
    return {"provider": "official", "input": content, **top}


@dataclass
class Caller:
    """A client with a key. Nothing is retried."""

    base_url: str
    http: httpx.Client
    key: str

    @property
    def headers(self) -> dict[str, str]:
        # A connection of its own for each call: a cut one must not reach into the next test.
        return {"Authorization": f"Bearer {self.key}", "Connection": "close"}

    def submit(self, content: Any = None, timeout_seconds: float = 10) -> httpx.Response:
        content = body() if content is None else content
        return self.http.post(self.base_url + SUBMIT, json=content, headers=self.headers, timeout=timeout_seconds)

    def task(self, **changes: Any) -> str:
        """Submits a good request and returns the task id."""
        return str(self.submit(body(**changes)).json()["data"]["taskId"])

    def status(self, task_id: str, timeout_seconds: float = 10) -> httpx.Response:
        requested = {"taskId": task_id}
        return self.http.get(self.base_url + STATUS, params=requested, headers=self.headers, timeout=timeout_seconds)

    def finished(self, task_id: str) -> dict[str, Any]:
        """The status data once the task has ended."""
        return self.until(task_id, "success", "failed")

    def until(self, task_id: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            data: dict[str, Any] = self.status(task_id).json()["data"]
            if data["state"] in states:
                return data
            time.sleep(0.01)
        raise AssertionError(f"{task_id} did not reach {states}: {data}")

    def video_url(self, **changes: Any) -> str:
        """The result address of a new, finished task."""
        return urls(self.finished(self.task(**changes)))[0]


def urls(data: dict[str, Any]) -> list[str]:
    """The addresses in a status reply."""
    found: list[str] = json.loads(data["resultJson"])["resultUrls"]
    return found
