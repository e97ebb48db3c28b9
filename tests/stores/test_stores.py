"""Each object store that can be started here: the race, all that `sora doctor` asks of it, and the ledger's model.

`make stores` runs this and prints what docs/stores.md says. A store whose program is missing is skipped.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.errors import StoreUnfitError
from blocks.probe import RACERS, problems, prove_race
from tests.attack.model.director import direct, opened

from .servers import GARAGE_BUCKET, KINDS, RunningStore, running

pytestmark = pytest.mark.stores

RACES = 5


@pytest.fixture(scope="module", params=KINDS)
def store_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStore]:
    """A store, with a folder of its own."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield store


async def test_of_32_writers_one_wins_each_time(store_server: RunningStore) -> None:
    store = store_server.archive().store()
    await store.create_bucket()
    try:
        took = []
        for _ in range(RACES):
            began = time.monotonic()
            await prove_race(store)
            took.append(time.monotonic() - began)
    finally:
        await store.aclose()
    store_server.report(f"two races of {RACERS}: {statistics.median(took):.2f} s, the median of {RACES}")


async def test_all_that_the_doctor_asks_for_is_kept(store_server: RunningStore) -> None:
    store = store_server.archive().store()
    await store.create_bucket()
    began = time.monotonic()
    try:
        assert [str(problem) for problem in await problems(store)] == []
    finally:
        await store.aclose()
    store_server.report(f"everything that is proven: {time.monotonic() - began:.2f} s")


@pytest.mark.timeout(900)
def test_the_ledgers_promises_are_kept(store_server: RunningStore, tmp_path: Path) -> None:
    began = time.monotonic()
    with opened(store_server.archive(), tmp_path) as house:
        direct(house, plays=1, steps=20, chosen=True)
    store_server.report(f"the ledger's model: {house.tally['checks']:,} steps in {time.monotonic() - began:.0f} s")


async def test_a_store_that_takes_no_conditions_is_refused(tmp_path: Path) -> None:
    """Garage answers a write with conditions as one without."""
    with running("Garage", tmp_path) as garage:
        store = garage.archive(bucket=GARAGE_BUCKET).store()
        try:
            found = await problems(store)
        finally:
            await store.aclose()
    assert [type(problem) for problem in found] == [StoreUnfitError]
    assert "ignored If-None-Match" in str(found[0])
    garage.report("refused: it ignores the conditions of a write")
