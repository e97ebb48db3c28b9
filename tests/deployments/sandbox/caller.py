"""A client for the sandbox, and the request bodies that the tests send."""

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
    """A valid request body. Keyword arguments change fields of `input`, and `top` changes fields next to it."""
    top: dict[str, Any] = changes.pop("top", {})
    content = {"mode": "text-to-video", "prompt": "A lighthouse at golden hour", "duration": 4} | changes
    return {"provider": "official", "input": content, **top}


@dataclass
class Caller:
    """A client with an API key. It retries nothing."""

    base_url: str
    http: httpx.Client
    key: str

    @property
    def headers(self) -> dict[str, str]:
        # Each request uses a new connection, so that a cut one cannot affect the next test.
        return {"Authorization": f"Bearer {self.key}", "Connection": "close"}

    def submit(self, content: Any = None, timeout_seconds: float = 10) -> httpx.Response:
        content = body() if content is None else content
        return self.http.post(self.base_url + SUBMIT, json=content, headers=self.headers, timeout=timeout_seconds)

    def task(self, **changes: Any) -> str:
        """Submits a valid request and returns the task id."""
        return str(self.submit(body(**changes)).json()["data"]["taskId"])

    def status(self, task_id: str, timeout_seconds: float = 10) -> httpx.Response:
        params = {"taskId": task_id}
        return self.http.get(self.base_url + STATUS, params=params, headers=self.headers, timeout=timeout_seconds)

    def final_status(self, task_id: str) -> dict[str, Any]:
        """Polls until the task has ended and returns its status data."""
        return self.wait_for_state(task_id, "success", "failed")

    def wait_for_state(self, task_id: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            data: dict[str, Any] = self.status(task_id).json()["data"]
            if data["state"] in states:
                return data
            time.sleep(0.01)
        raise AssertionError(f"{task_id} did not reach {states}: {data}")

    def video_url(self, **changes: Any) -> str:
        """The result URL of a new, finished task."""
        return urls(self.final_status(self.task(**changes)))[0]


def urls(data: dict[str, Any]) -> list[str]:
    """The result URLs in the data of a status reply."""
    result_urls: list[str] = json.loads(data["resultJson"])["resultUrls"]
    return result_urls
