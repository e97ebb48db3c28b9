"""An end is told until Prefect has confirmed it, and then no more."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect.events.clients import EventsClient
from prefect.events.schemas.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from apixo import VideoRequest
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from flows.record.generation import State
from flows.record.ledger import marker_name
from flows.resources import Resources
from flows.signals import events
from tests.flows.generations import bring_home, finished, submit
from tests.flows.signals.test_events import generation, read_events
from tests.support.events import Sent


class Away(EventsClient):
    """A server that cannot be reached."""

    def __init__(self, **_: Any) -> None:
        pass

    async def _emit(self, event: Event) -> None:
        raise ConnectionRefusedError


class Frozen(Away):
    """A server that takes the connection and says nothing any more."""

    async def _emit(self, event: Event) -> None:
        await asyncio.sleep(60)


@pytest.mark.parametrize("server", [Away, Frozen])
async def test_a_video_whose_event_is_not_confirmed_is_archived_stays_marked_and_is_told_by_the_collector(
    server: type[EventsClient],
    key: str,
    resources: Resources,
    sandbox: SandboxServer,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    with monkeypatch.context() as patched:
        patched.setattr(events, "DELIVERY_TIMEOUT_SECONDS", 0.3)
        patched.setattr(events, "get_events_client", server)
        (found,) = await bring_home(resources)
        assert found.what == "archived"
        assert await resources.ledger.is_open(key)
        (again,) = await bring_home(resources)  # still away
        assert again.what == "archived"
        assert await resources.ledger.is_open(key)
    assert "sora.generation.archived" not in [event.event for event in sent.all()]
    await bring_home(resources)
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1
    assert not await resources.ledger.is_open(key)
    assert await bring_home(resources) == []


async def test_a_failure_is_told_until_it_is_confirmed_too(
    key: str, resources: Resources, sandbox: SandboxServer, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(key, resources, VideoRequest(prompt="forbidden"))
    await finished(sandbox)
    with monkeypatch.context() as patched:
        patched.setattr(events, "get_events_client", Away)
        (found,) = await bring_home(resources)
        assert found.what == "failed"
        assert await resources.ledger.is_open(key)
    await bring_home(resources)
    (told,) = [event for event in sent.all() if event.event == "sora.generation.failed"]
    assert told.payload["fail_code"] == "CONTENT_VIOLATION"
    assert not await resources.ledger.is_open(key)


async def test_who_archives_a_video_tells_it_though_another_has_removed_the_marker(
    key: str, resources: Resources, sandbox: SandboxServer, sent: Sent
) -> None:
    """One who told of an earlier failure was slow to remove the marker, and died before he looked again."""
    await submit(key, resources)
    await finished(sandbox)
    change = resources.ledger.change

    async def and_the_marker_goes(*arguments: Any, **options: Any) -> Any:
        changed = await change(*arguments, **options)
        if changed.generation.state is State.ARCHIVED:
            await resources.store.remove(marker_name(key))
        return changed

    resources.ledger.change = and_the_marker_goes  # type: ignore[method-assign]
    await bring_home(resources)
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1


async def test_one_end_is_one_event_however_often_it_is_sent(prefect_server: PrefectServer, key: str) -> None:
    """As after a crash between the confirmation and the removal of the marker."""
    ended = generation().model_copy(update={"key": key, "created_at": datetime.now(UTC)})
    for _ in range(3):
        assert await events.deliver("archived", ended)
    assert await events.deliver("failed", ended, fail_code="X")
    found = await read_events(prefect_server, key, "sora.generation.failed")
    assert sorted(event["event"] for event in found) == ["sora.generation.archived", "sora.generation.failed"]


async def test_a_server_that_is_not_there_is_no_error() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        began = asyncio.get_running_loop().time()
        assert not await events.deliver("archived", generation())
        assert asyncio.get_running_loop().time() - began < events.DELIVERY_TIMEOUT_SECONDS + 2
