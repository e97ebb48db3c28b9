"""An end is told until Prefect has confirmed it, and then no more."""

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
async def test_a_video_whose_event_is_not_confirmed_is_archived_stays_marked_and_is_reported_by_the_collector(
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
        (again,) = await run_collector(resources)  # still away
        assert again.what == "archived"
        assert await resources.ledger.is_published(key) is not None
    assert "sora.generation.archived" not in [event.event for event in sent.all()]
    await run_collector(resources)
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1
    assert await resources.ledger.is_published(key) is None
    assert await run_collector(resources) == []


async def test_a_failure_is_reported_until_it_is_confirmed_too(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await submit(key, resources, VideoRequest(prompt="forbidden"))
    await finished(sandbox)
    with monkeypatch.context() as patched:
        patched.setattr(events, "get_events_client", Away)
        (found,) = await run_collector(resources)
        assert found.what == "failed"
        assert await resources.ledger.is_published(key) is not None
    await run_collector(resources)
    (reported,) = [event for event in sent.all() if event.event == "sora.generation.failed"]
    assert reported.payload["fail_code"] == "CONTENT_VIOLATION"
    assert await resources.ledger.is_published(key) is None


async def test_who_archives_a_video_tells_it_though_another_has_removed_the_marker(
    key: str, resources: PayingResources, sandbox: SandboxServer, sent: Sent
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
    await run_collector(resources)
    assert [event.event for event in sent.all()].count("sora.generation.archived") == 1


async def test_one_end_is_one_event_however_often_it_is_sent(prefect_server: PrefectServer, key: str) -> None:
    """As after a crash between the confirmation and the removal of the marker."""
    ended = generation().model_copy(update={"key": key, "created_at": datetime.now(UTC)})
    connection = EventConnection()
    for _ in range(3):
        assert await events.deliver("archived", ended, connection)
    assert await events.deliver("failed", ended, connection, fail_code="X")
    await connection.aclose()
    found = await read_events(prefect_server, key, "sora.generation.failed")
    assert sorted(event["event"] for event in found) == ["sora.generation.archived", "sora.generation.failed"]


async def test_a_server_that_is_not_there_is_no_error() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        began = asyncio.get_running_loop().time()
        assert not await events.deliver("archived", generation(), EventConnection())
        assert asyncio.get_running_loop().time() - began < events.DELIVERY_TIMEOUT_SECONDS + 2


class Counting(EventsClient):
    """Connections that take one event at a time until they break."""

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


async def test_all_ends_of_a_run_go_over_one_connection_which_is_opened_anew_where_it_breaks(
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


async def test_a_run_outlives_a_restart_of_the_server_that_it_is_connected_to(
    prefect_server: PrefectServer, key: str
) -> None:
    """The websocket itself is cut, under a real client, as by a restart."""
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
