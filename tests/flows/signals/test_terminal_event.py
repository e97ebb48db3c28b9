"""The terminal event of a generation is sent until Prefect has confirmed it, and not again."""

import asyncio
from datetime import UTC, datetime
from typing import Any, Self

import pytest
from prefect.events.clients import EventsClient, PrefectEventsClient
from prefect.events.schemas.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from apixo import VideoRequest
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from flows.record.generation import State
from flows.record.ledger import marker_name
from flows.resources import PayingResources
from flows.signals import events
from flows.signals.events import EventConnection
from tests.flows.generations import finished, run_collector, submit
from tests.flows.signals.test_events import generation, read_events
from tests.support.events import Sent


class Unreachable(EventsClient):
    """A server that cannot be reached."""

    def __init__(self, **_: Any) -> None:
        pass

    async def _emit(self, event: Event) -> None:
        raise ConnectionRefusedError


class Frozen(Unreachable):
    """A server that accepts the connection, but never answers."""

    async def _emit(self, event: Event) -> None:
        await asyncio.sleep(60)


@pytest.mark.parametrize("server", [Unreachable, Frozen])
async def test_archived_video_stays_open_until_the_collector_gets_its_event_confirmed(
    server: type[EventsClient],
    key: str,
    resources: PayingResources,
    sandbox: SandboxServer,
    sent: Sent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await submit(key, resources)
    await finished(sandbox)
    with monkeypatch.context() as patched:
        patched.setattr(events, "DELIVERY_TIMEOUT_SECONDS", 0.3)
        patched.setattr(events, "get_events_client", server)
        (found,) = await run_collector(resources)
        assert found.what == "archived"
        assert await resources.ledger.is_published(key) is not None
        (again,) = await run_collector(resources)  # still unavailable
        assert again.what == "archived"
        assert await resources.ledger.is_published(key) is not None
    assert "sora.generation.archived" not in [event.event for event in sent.all()]
    await run_collector(resources)
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1
    assert await resources.ledger.is_published(key) is None
    assert await run_collector(resources) == []


async def test_failed_event_is_sent_again_until_it_is_confirmed(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(key, resources, VideoRequest(prompt="forbidden"))
    await finished(sandbox)
    with monkeypatch.context() as patched:
        patched.setattr(events, "get_events_client", Unreachable)
        (found,) = await run_collector(resources)
        assert found.what == "failed"
        assert await resources.ledger.is_published(key) is not None
    await run_collector(resources)
    (reported,) = [event for event in sent.all() if event.event == "sora.generation.failed"]
    assert reported.payload["fail_code"] == "CONTENT_VIOLATION"
    assert await resources.ledger.is_published(key) is None


async def test_archived_event_is_sent_even_if_the_marker_was_removed(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
) -> None:
    """A process that published an earlier failure removed the marker late, and died before it read the record again."""
    await submit(key, resources)
    await finished(sandbox)
    change = resources.ledger.change

    async def change_then_remove_marker(*arguments: Any, **options: Any) -> Any:
        changed = await change(*arguments, **options)
        if changed.generation.state is State.ARCHIVED:
            await resources.store.remove(marker_name(key))
        return changed

    resources.ledger.change = change_then_remove_marker  # type: ignore[method-assign]
    await run_collector(resources)
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1


async def test_terminal_event_sent_several_times_is_stored_once(prefect_server: PrefectServer, key: str) -> None:
    """As after a crash between the confirmation and the removal of the marker."""
    ended = generation().model_copy(update={"key": key, "created_at": datetime.now(UTC)})
    connection = EventConnection()
    for _ in range(3):
        assert await events.deliver("archived", ended, connection)
    assert await events.deliver("failed", ended, connection, fail_code="X")
    await connection.aclose()
    found = await read_events(prefect_server, key, "sora.generation.failed")
    assert sorted(event["event"] for event in found) == ["sora.generation.archived", "sora.generation.failed"]


async def test_unreachable_server_raises_no_error() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        began = asyncio.get_running_loop().time()
        assert not await events.deliver("archived", generation(), EventConnection())
        assert asyncio.get_running_loop().time() - began < events.DELIVERY_TIMEOUT_SECONDS + 2


class Counting(EventsClient):
    """Connections that accept one event at a time until they break. They are counted."""

    opened = closed = 0
    breaks = 0

    def __init__(self, **_: Any) -> None:
        pass

    async def __aenter__(self) -> Self:
        type(self).opened += 1
        return await super().__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        type(self).closed += 1
        await super().__aexit__(*error)

    async def _emit(self, event: Event) -> None:
        await asyncio.sleep(0)
        if self.breaks:
            type(self).breaks -= 1
            raise ConnectionResetError


@pytest.mark.usefixtures("prefect_server")  # without an address, Prefect would not send anything
async def test_terminal_events_of_a_run_share_one_connection_reopened_after_a_break(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Client(Counting):
        pass

    monkeypatch.setattr(events, "get_events_client", Client)
    connection = EventConnection()
    assert all(await asyncio.gather(*(events.deliver("archived", generation(), connection) for _ in range(20))))
    assert Client.opened == 1
    Client.breaks = 1
    assert await events.deliver("archived", generation(), connection)
    assert Client.opened == 2
    await connection.aclose()
    assert Client.closed == 2


async def test_event_delivery_survives_a_server_restart(prefect_server: PrefectServer, key: str) -> None:
    """The WebSocket of a real client is cut, as by a restart."""
    connection = EventConnection()
    ended = generation().model_copy(update={"key": key, "created_at": datetime.now(UTC)})
    assert await events.deliver("archived", ended, connection)
    client = connection._client
    assert isinstance(client, PrefectEventsClient)
    assert client._websocket is not None
    client._websocket.transport.abort()
    assert await events.deliver("failed", ended, connection, fail_code="X")
    await connection.aclose()
    found = await read_events(prefect_server, key, "sora.generation.failed")
    assert sorted(event["event"] for event in found) == ["sora.generation.archived", "sora.generation.failed"]
