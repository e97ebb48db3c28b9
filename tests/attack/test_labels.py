"""An effect has the same label in every run. Effects that depend on timing have no label."""

import json
import uuid

import pytest

from tests.attack.labels import Places, label_of_message, label_of_rename, label_of_request, label_of_store_call
from tests.attack.points import Point

pytestmark = pytest.mark.sample

PLACES = Places(provider="127.0.0.1:1", store="127.0.0.1:2", prefect="127.0.0.1:3")
ID = uuid.UUID(int=5)  # fixed, because all workers of xdist must collect the same tests


@pytest.mark.parametrize(
    ("method", "url", "body", "label"),
    [
        ("POST", "http://127.0.0.1:1/api/v1/generateTask/sora-2", b"{}", "POST generation"),
        ("GET", "http://127.0.0.1:1/api/v1/statusTask/sora-2?taskId=task_1", b"", "GET status"),
        ("GET", "http://127.0.0.1:1/results/task_1/abc/video.mp4?expires=1&sig=2", b"", "GET result"),
        ("GET", "http://127.0.0.1:1/samples/kite.jpg", b"", "GET image"),
        ("PUT", "http://127.0.0.1:2/bucket/videos/2026/01/02/k/video.mp4?X-Amz-Signature=1", b"", None),
        ("POST", f"http://127.0.0.1:3/api/flow_runs/{ID}/set_state", b'{"state": {"name": "Running"}}',
         "STATE flow run Running"),
        ("PATCH", f"http://127.0.0.1:3/api/flow_runs/{ID}", b"{}", "PATCH prefect flow_runs/*"),
        ("POST", "http://127.0.0.1:3/api/artifacts/", b"{}", "POST prefect artifacts"),
        ("POST", "http://127.0.0.1:3/api/logs/", b"[]", None),
        ("GET", "http://127.0.0.1:3/api/admin/version", b"", None),
        ("GET", "https://example.com/", b"", "GET elsewhere"),
    ],
)  # fmt: skip
def test_request_label_describes_effect(method: str, url: str, body: bytes, label: str | None) -> None:
    assert label_of_request(PLACES, method, url, body) == label


@pytest.mark.parametrize(
    ("method", "name", "label"),
    [
        ("PUT", "ledger/k.json", "PUT record"),
        ("DELETE", "open/k", "DELETE marker"),
        ("PUT", "tasks/task_1", "PUT task owner"),
        ("GET", "requests/0a1b", "GET request index"),
        ("PUT", "probe/conditional-writes", "PUT probe"),
        ("DELETE", "incoming/probe-0a1b2c", "DELETE incoming"),
        ("PUT", "videos/2026/01/02/k/video.mp4", "PUT video.mp4"),
        ("GET", "videos/2026/01/02/k/task-2/generation.json", "GET generation.json"),
        ("LIST", "open/", "LIST open"),
        ("LIST", "", "LIST bucket"),
        ("PUT", "", "PUT bucket"),
    ],
)
def test_store_call_label_names_object(method: str, name: str, label: str) -> None:
    assert label_of_store_call(method, name) == label


@pytest.mark.parametrize(
    ("message", "label"),
    [
        ({"event": "prefect.task-run.Pending", "resource": {"prefect.resource.name": "wait-10b"}},
         "EVENT task-run.Pending wait"),
        ({"event": "prefect.task-run.Running", "resource": {"prefect.resource.name": "validate_image key-1"}},
         "EVENT task-run.Running validate_image"),
        ({"event": "sora.generation.archived", "resource": {}}, "EVENT sora.generation.archived"),
        ({"type": "filter", "filter": {}}, "LISTEN events"),
        ({"event": "prefect.flow-run.heartbeat", "resource": {}}, None),
        ({"type": "auth", "token": None}, None),
    ],
)  # fmt: skip
def test_message_label_names_event(message: dict[str, object], label: str | None) -> None:
    assert label_of_message(json.dumps(message)) == label


def test_only_rename_of_video_to_final_name_has_label() -> None:
    assert label_of_rename("/work_root/key.abc/video.mp4") == "RENAME video.mp4"
    assert label_of_rename("/work_root/key.abc/video.mp4.part") is None


def test_point_round_trips_through_str_and_parse() -> None:
    point = Point(label="EVENT task-run.Running wait", number=12, moment="sent")
    assert Point.parse(str(point)) == point
