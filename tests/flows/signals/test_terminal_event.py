"""The terminal event of a generation is sent until Prefect has confirmed it, and not again."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect.events.schemas.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from apixo import VideoRequest
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer
from flows.record.generation import State
from flows.record.ledger import marker_name
from flows.resources import PayingResources
from flows.signals import events
from tests.flows.generations import finished, run_collector, submit
from tests.flows.signals.test_events import generation, read_events
from tests.support.events import Sent
from tests.support.store_gate import StoreGate


async def unreachable(_: Event) -> None:
    raise ConnectionRefusedError


async def frozen(_: Event) -> None:
    """As to a server that accepts the connection, but never answers."""
    await asyncio.sleep(60)


@pytest.mark.parametrize("send", [unreachable, frozen])
async def test_archived_video_stays_open_until_the_collector_gets_its_event_confirmed(
    send: Callable[[Event], Awaitable[None]],
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
        patched.setattr(events, "_send", send)
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
        patched.setattr(events, "_send", unreachable)
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
    for _ in range(3):
        assert await events.deliver("archived", ended)
    assert await events.deliver("failed", ended, fail_code="X")
    found = await read_events(prefect_server, key, "sora.generation.failed")
    assert sorted(event["event"] for event in found) == ["sora.generation.archived", "sora.generation.failed"]


async def test_unreachable_server_raises_no_error() -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        began = asyncio.get_running_loop().time()
        assert not await events.deliver("archived", generation())
        assert asyncio.get_running_loop().time() - began < events.DELIVERY_TIMEOUT_SECONDS + 2


async def test_event_is_delivered_through_a_proxy_that_blocks_websockets(
    prefect_server: PrefectServer, key: str
) -> None:
    ended = generation().model_copy(update={"key": key, "created_at": datetime.now(UTC)})
    proxy = StoreGate(prefect_server.url.removeprefix("http://"))
    proxy.shut = lambda data: b"upgrade: websocket" in data.lower()
    with proxy, temporary_settings({PREFECT_API_URL: f"http://{proxy.endpoint}/api"}):
        assert await events.deliver("archived", ended)
    found = await read_events(prefect_server, key, "sora.generation.archived")
    assert [event["event"] for event in found] == ["sora.generation.archived"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Busy\r\n", b"HTTP/1.1 404 Not Found\r\n", b""])
async def test_event_is_not_delivered_unless_the_server_says_so(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer and answer + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    monkeypatch.setattr(events, "DELIVERY_TIMEOUT_SECONDS", 1.0)  # Prefect's client retries for longer
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}):
            assert not await events.deliver("archived", generation())
