"""Other models in the sandbox, including one that the provider no longer offers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import pytest

from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from deployments.sandbox.rendering import video_size

from .caller import KEY, urls

SETTINGS = SandboxSettings(
    speed=6000, video_height=90, gone_models=("veo-3-1",), other_models=("future-1",), balance=10, task_price=2.5
)


@pytest.fixture
def server() -> Iterator[SandboxServer]:
    with SandboxServer(SETTINGS) as running:
        yield running


class Client:
    """Calls the API for any model."""

    def __init__(self, server: SandboxServer) -> None:
        self._base_url = f"{server.base_url}/api/v1"

    def submit(self, model: str, **fields: Any) -> httpx.Response:
        content = {"input": {"mode": "text-to-video", "prompt": "Dunes"} | fields}
        return self._call("POST", f"/generateTask/{model}", json=content)

    def status(self, model: str, task_id: str) -> httpx.Response:
        return self._call("GET", f"/statusTask/{model}?taskId={task_id}")

    def balance(self) -> Any:
        return self._call("GET", "/apikeys/current-balance").json()["data"]

    def _call(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.request(method, self._base_url + path, headers=headers, trust_env=False, **more)


@pytest.fixture
def call(server: SandboxServer) -> Client:
    return Client(server)


@pytest.mark.parametrize(
    ("model", "fields", "size", "seconds"),
    [
        ("kling-2-6", {"duration": 5, "aspect_ratio": "1:1", "sound": True}, (90, 90), 5),
        ("sora-2-pro", {"duration": 4, "size": "720*1280"}, (90, 160), 4),
        ("seedance-2-0", {"duration": 4, "aspect_ratio": "4:3"}, (120, 90), 4),
        ("future-1", {"anything": [1]}, (160, 90), 5),
    ],
)
def test_video_has_the_requested_size_and_length(
    model: str, fields: dict[str, Any], size: tuple[int, int], seconds: int, call: Client, tmp_path: Path
) -> None:
    reply = call.submit(model, **fields)
    assert reply.status_code == 200, reply.text
    task_id = reply.json()["data"]["taskId"]
    while (data := call.status(model, task_id).json()["data"])["state"] != "success":
        assert data["state"] != "failed", data
        time.sleep(0.02)
    (tmp_path / "video.mp4").write_bytes(httpx.get(urls(data)[0], trust_env=False).content)
    with av.open(str(tmp_path / "video.mp4")) as container:
        video = container.streams.video[0]
        assert (video.width, video.height) == size
        assert float((video.duration or 0) * (video.time_base or 0)) == pytest.approx(seconds, abs=0.1)


@pytest.mark.parametrize(
    ("model", "fields", "code", "message"),
    [
        ("kling-2-6", {"duration": 8, "sound": True}, 400, "Invalid parameters: input.duration: must be 5 or 10"),
        ("kling-2-6", {"duration": 5}, 400, "Invalid parameters: input.sound: is required by kling-2-6"),
        ("veo-3-1", {"mode": "quality"}, 404, "Model not found: veo-3-1"),
        ("sora-9", {}, 404, "Model not found: sora-9"),
    ],
)
def test_request_that_model_does_not_accept_gets_an_error_envelope(
    model: str, fields: dict[str, Any], code: int, message: str, call: Client, server: SandboxServer
) -> None:
    reply = call.submit(model, **fields)
    assert reply.status_code == reply.json()["code"] == code
    assert reply.json()["message"].startswith(message)
    assert server.record.charged() == []
    assert [request.model for request in server.record.submits()] == [model]


def test_task_is_known_only_under_the_model_it_was_submitted_to(call: Client) -> None:
    task_id = call.submit("sora-2", duration=4).json()["data"]["taskId"]
    assert call.status("sora-2", task_id).json()["code"] == 200
    other = call.status("sora-2-pro", task_id)
    assert (other.status_code, other.json()) == (404, {"code": 404, "message": "task not found", "data": None})


def test_fault_can_be_limited_to_one_model(call: Client, server: SandboxServer) -> None:
    server.faults.add(Fault(call="submit", kind="http_400_model", model="sora-2", times=-1))
    gone = call.submit("sora-2", duration=4).json()
    assert (gone["code"], gone["message"]) == (400, "MODEL_UNAVAILABLE")
    assert call.submit("sora-2-pro", duration=4).json()["code"] == 200


def test_balance_decreases_with_each_accepted_task(call: Client) -> None:
    assert call.balance() == 10
    call.submit("sora-2", duration=4)
    call.submit("sora-2", duration=5)  # rejected
    assert call.balance() == 7.5


def test_video_size_is_derived_from_ratio_or_size_option() -> None:
    assert video_size("1:1", 90) == (90, 90)
    assert video_size("1280*720", 720) == (1280, 720)
    assert video_size("9:21", 90) == (90, 210)
    assert video_size("unheard of", 90) == video_size("landscape", 90)
