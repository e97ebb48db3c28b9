"""Metrics for Prometheus report the state of the bucket."""

import asyncio
import signal
from contextlib import aclosing
from datetime import UTC, datetime

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.connection import SetupError
from deployments.metrics import Metrics, create_app, serve
from deployments.sandbox import Fault, SandboxServer
from flows.record.pipeline_errors import UnconfirmedError
from tests.flows.conftest import StoredBlocks
from tests.support import KITE

Labels = frozenset[tuple[str, str]]


def parse_metrics(text: bytes) -> dict[tuple[str, Labels], float]:
    families = text_string_to_metric_families(text.decode())
    return {(item.name, frozenset(item.labels.items())): item.value for family in families for item in family.samples}


def labels(**named: str) -> Labels:
    return frozenset(named.items())


async def test_metrics_match_the_bucket(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    generation = await stored.generate(KITE, key=key)
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await stored.generate(KITE.model_copy(update={"prompt": "Dunes"}), key=f"{key}-2")
    async with aclosing(stored.archive.store()) as store:
        metrics = parse_metrics(await Metrics(store).text())
    assert metrics["sora_open", labels(state="unconfirmed")] == 1
    assert metrics["sora_open", labels(state="submitted")] == 0
    assert 0 < metrics["sora_open_oldest_seconds", labels()] < 60
    assert metrics["sora_spend", labels(period="day", kind="spent")] == 0
    assert (
        0 <= metrics["sora_lag_seconds", labels(until="known")] <= metrics["sora_lag_seconds", labels(until="archived")]
    )
    assert metrics["sora_day_videos", labels()] == 1
    assert generation.video is not None
    assert metrics["sora_day_bytes", labels()] == generation.video.size_bytes


async def test_server_reports_url_once_it_listens_and_port_in_use_is_an_error(stored: StoredBlocks) -> None:
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve("127.0.0.1", 0, archive=stored.name, on_ready=ready.set_result))
    url = await asyncio.wait_for(ready, 30)
    async with httpx.AsyncClient() as client:
        assert "sora_open" in (await client.get(f"{url}/metrics")).text
    port = int(url.rpartition(":")[2])
    with pytest.raises(SetupError, match=f"The server for metrics cannot listen on 127.0.0.1, port {port}"):
        await serve("127.0.0.1", port, archive=stored.name, on_ready=ready.set_result)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(serving, 30)


async def test_frequent_scrapes_read_the_store_once(stored: StoredBlocks) -> None:
    store = stored.archive.store()
    clock = [0.0]
    metrics_reader = Metrics(store, now=lambda: datetime.now(UTC), monotonic=lambda: clock[0])
    try:
        first = await metrics_reader.text()
        await store.put("open/nobody-knows", b"")
        assert await metrics_reader.text() is first
        clock[0] = 20.0
        assert await metrics_reader.text() is not first
    finally:
        await store.aclose()


async def test_unavailable_store_fails_the_scrape_with_503(stored: StoredBlocks) -> None:
    store = stored.archive.model_copy(update={"endpoint": "127.0.0.1:9"}).store()
    transport = httpx.ASGITransport(create_app(store))
    async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
        reply = await client.get("/metrics")
    assert reply.status_code == 503
    assert "127.0.0.1" not in reply.text
    await store.aclose()
