"""Numbers for Prometheus say what the bucket holds."""

from contextlib import aclosing
from datetime import UTC, datetime

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import Numbers, create_app
from deployments.sandbox import Fault, SandboxServer
from flows.record.errors import UnconfirmedError
from tests.flows.conftest import StoredBlocks
from tests.support import KITE

Labels = frozenset[tuple[str, str]]


def parsed(text: bytes) -> dict[tuple[str, Labels], float]:
    families = text_string_to_metric_families(text.decode())
    return {(item.name, frozenset(item.labels.items())): item.value for family in families for item in family.samples}


def labels(**named: str) -> Labels:
    return frozenset(named.items())


async def test_numbers_are_those_of_the_bucket(stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    made = await stored.generate(KITE, key=key)
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await stored.generate(KITE.model_copy(update={"prompt": "Dunes"}), key=f"{key}-2")
    async with aclosing(stored.archive.store()) as store:
        found = parsed(await Numbers(store).text())
    assert found["sora_open", labels(state="unconfirmed")] == 1
    assert found["sora_open", labels(state="submitted")] == 0
    assert 0 < found["sora_open_oldest_seconds", labels()] < 60
    assert found["sora_spend", labels(period="day", kind="spent")] == 0
    assert 0 <= found["sora_lag_seconds", labels(until="known")] <= found["sora_lag_seconds", labels(until="archived")]
    assert found["sora_day_videos", labels()] == 1
    assert made.video is not None
    assert found["sora_day_bytes", labels()] == made.video.size_bytes


async def test_several_scrapes_read_the_store_once(stored: StoredBlocks) -> None:
    store = stored.archive.store()
    clock = [0.0]
    numbers = Numbers(store, now=lambda: datetime.now(UTC), monotonic=lambda: clock[0])
    try:
        first = await numbers.text()
        await store.put("open/nobody-knows", b"")
        assert await numbers.text() is first
        clock[0] = 20.0
        assert await numbers.text() is not first
    finally:
        await store.aclose()


async def test_a_store_that_is_away_is_a_scrape_that_failed(stored: StoredBlocks) -> None:
    store = stored.archive.model_copy(update={"endpoint": "127.0.0.1:9"}).store()
    transport = httpx.ASGITransport(create_app(store))
    async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
        reply = await client.get("/metrics")
    assert reply.status_code == 503
    assert "127.0.0.1" not in reply.text
    await store.aclose()
