"""Events for other flows and automations: enough to act on, but no secret, no signature, and not the whole prompt."""

import asyncio
from typing import Any, get_args

import pytest
from prefect.client.base import PrefectHttpxAsyncClient

from apixo import VideoRequest
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.generation import ArchivedObject, Generation, Problem
from flows.record.pipeline_errors import VideoFailedError
from flows.signals.events import PROMPT_CHARACTERS, EventConnection, Happening, deliver, emit, emit_blocked
from tests.flows.conftest import StoredBlocks
from tests.flows.record.changes import claimed, submit
from tests.support import KITE
from tests.support.events import Sent


def generation(prompt: str = "Dunes", **fields: Any) -> Generation:
    request = VideoRequest(prompt=prompt, duration=8, **fields)
    return submit(claimed(key="spring-sale-03", request=request), "task_1")


@pytest.mark.parametrize("happening", get_args(Happening))
def test_event_identifies_and_describes_the_generation(happening: Happening, sent: Sent) -> None:
    emit(happening, generation())
    (event,) = sent.all()
    assert event.event == f"sora.generation.{happening}"
    assert event.resource.id == "sora.generation.spring-sale-03"
    assert event.resource.name == "spring-sale-03"
    assert event.payload == {
        "key": "spring-sale-03",
        "state": "submitted",
        "task_id": "task_1",
        "model": "sora-2",
        "request": {
            "prompt": "Dunes",
            "model": "sora-2",
            "duration": 8,
            "aspect_ratio": "landscape",
            "mode": "text-to-video",
            "tags": [],
        },
        "objects": [],
        "artifact": "video-spring-sale-03",
    }


def test_event_lists_the_objects_and_accepts_extra_fields(sent: Sent) -> None:
    video = ArchivedObject(
        kind="video", bucket="b", name="videos/v.mp4", content_type="video/mp4", size_bytes=1, sha256="0" * 64
    )
    emit("archived", generation().model_copy(update={"objects": (video,)}), links={"videos/v.mp4": "https://h/v"})
    (event,) = sent.all()
    assert event.payload["objects"] == [{"kind": "video", "bucket": "b", "name": "videos/v.mp4"}]
    assert event.payload["links"] == {"videos/v.mp4": "https://h/v"}


def test_long_prompt_is_truncated_and_image_urls_are_left_out(sent: Sent) -> None:
    emit("submitted", generation("x" * 10_000, image_urls=["https://h.example/a.jpg?X-Amz-Signature=SECRET"]))
    (event,) = sent.all()
    assert event.payload["request"]["prompt"] == "x" * PROMPT_CHARACTERS
    assert event.payload["request"]["mode"] == "image-to-video"
    assert "SECRET" not in event.model_dump_json()
    assert event.size_bytes < 2_000


def test_prompt_is_sent_unchanged_except_for_nul(sent: Sent) -> None:
    """PostgreSQL, where Prefect may store its events, rejects NUL in JSON."""
    prompt = 'A "red" kite {{ 7 * 7 }} <b>[bold]\n\x1b[2J\u202e'
    emit("submitted", generation(f"{prompt}\0"))
    (event,) = sent.all()
    assert event.payload["request"]["prompt"] == f"{prompt}\N{REPLACEMENT CHARACTER}"


async def test_no_event_payload_contains_nul(sent: Sent, prefect_server: PrefectServer) -> None:
    """NUL may come in a `failCode`, or in a field of a model that the catalog does not have."""
    made = generation(model="future-1", aspect_ratio="16\0:9", mode="m\0", options={"o": 1}).model_copy(
        update={"key": "a\\u0000"}
    )
    emit("submitted", made)
    emit_blocked("b", Problem(kind="BadRequestError", code="4\0", message="m"))
    assert await deliver("failed", made, EventConnection(), fail_code="ODD\0")
    events = sent.all()
    assert len(events) == 3
    assert [event.event for event in events if "\\x00" in repr(event.payload)] == []
    payloads = {event.event: event.payload for event in events}
    assert payloads["sora.generation.submitted"]["key"] == "a\\u0000", "six characters, and no NUL"
    assert payloads["sora.generation.failed"]["fail_code"] == "ODD\N{REPLACEMENT CHARACTER}"


async def read_events(server: PrefectServer, key: str, last: str) -> list[dict[str, Any]]:
    """The events that the server has for a generation, once the last one is stored, which happens in the background."""
    found: list[dict[str, Any]] = []
    async with PrefectHttpxAsyncClient(base_url=server.api_url) as http:
        for _ in range(120):
            body = {"filter": {"resource": {"id": [f"sora.generation.{key}"]}, "order": "ASC"}}
            found = (await http.post("/events/filter", json=body)).json()["events"]
            if any(event["event"] == last for event in found):
                return found
            await asyncio.sleep(0.25)
    raise AssertionError(f"no {last} among {[event['event'] for event in found]}")


async def test_server_receives_all_events_of_a_generation_without_secrets(
    stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, key: str
) -> None:
    stored.archive.public_url = "https://videos.example.com"
    await stored.archive.save(stored.name, overwrite=True)
    made = await stored.generate(VideoRequest(prompt="Dunes " * 1_000), key=key)
    events = await read_events(prefect_server, key, "sora.generation.archived")
    assert [event["event"].rsplit(".", 1)[1] for event in events] == ["submitted", "succeeded", "archived"]
    assert {event["payload"]["task_id"] for event in events} == {made.task_id}
    assert [event["payload"]["state"] for event in events] == ["submitted", "succeeded", "archived"]
    assert made.video is not None
    archived = events[-1]["payload"]
    assert [item["name"] for item in archived["objects"]] == [item.name for item in made.objects]
    assert archived["links"][made.video.name] == stored.archive.public_link(made.video.name)
    assert any(item["prefect.resource.id"].startswith("prefect.flow-run.") for item in events[-1]["related"])
    events_text = str(events)
    for secret in (sandbox.settings.api_key, stored.archive.secret_key.get_secret_value(), "X-Amz", "?", "Bearer"):
        assert secret not in events_text
    assert "Dunes " * 40 not in events_text


async def test_events_report_a_failure_with_its_code_and_an_unclear_payment(
    stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, key: str
) -> None:
    with pytest.raises(VideoFailedError):
        await stored.generate(VideoRequest(prompt="forbidden"), key=key)
    failed = (await read_events(prefect_server, key, "sora.generation.failed"))[-1]
    assert failed["payload"]["fail_code"] == "CONTENT_VIOLATION"
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(Exception, match="It is unknown whether"):
        await stored.generate(KITE, key=f"{key}.2")
    unclear = await read_events(prefect_server, f"{key}.2", "sora.generation.unconfirmed")
    assert [event["event"] for event in unclear] == ["sora.generation.unconfirmed"]
