"""Each object store that can be started here: the race, all checks of `sora doctor`, and the ledger's model.

`make stores` runs this and prints the numbers for docs/stores.md. A store whose program is missing is skipped.
"""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.probe import RACERS, problems, prove_race
from blocks.store_errors import StoreUnfitError
from tests.attack.model.state_machine import explore, open_harness

from .servers import GARAGE_BUCKET, KINDS, RunningStore, running

pytestmark = pytest.mark.stores

RACES = 5


@pytest.fixture(scope="module", params=KINDS)
def store_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStore]:
    """A store, with a folder of its own."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as store:
        yield store


async def test_exactly_one_of_32_writers_wins_each_race(store_server: RunningStore) -> None:
    store = store_server.archive().store()
    await store.create_bucket()
    try:
        durations = []
        for _ in range(RACES):
            began = time.monotonic()
            await prove_race(store)
            durations.append(time.monotonic() - began)
    finally:
        await store.aclose()
    store_server.report(f"two races of {RACERS}: {statistics.median(durations):.2f} s, the median of {RACES}")


async def test_all_doctor_checks_pass(store_server: RunningStore) -> None:
    store = store_server.archive().store()
    await store.create_bucket()
    began = time.monotonic()
    try:
        assert [str(problem) for problem in await problems(store)] == []
    finally:
        await store.aclose()
    store_server.report(f"all checks: {time.monotonic() - began:.2f} s")


@pytest.mark.timeout(900)
def test_no_schedule_violates_an_invariant(store_server: RunningStore, tmp_path: Path) -> None:
    began = time.monotonic()
    with open_harness(store_server.archive(), tmp_path) as harness:
        explore(harness, examples=1, steps=20, derandomize=True)
    store_server.report(f"the ledger's model: {harness.tally['checks']:,} steps in {time.monotonic() - began:.0f} s")


async def test_store_that_ignores_conditions_is_rejected(tmp_path: Path) -> None:
    """Garage treats a conditional write like an unconditional one."""
    with running("Garage", tmp_path) as garage:
        store = garage.archive(bucket=GARAGE_BUCKET).store()
        try:
            found = await problems(store)
        finally:
            await store.aclose()
    assert [type(problem) for problem in found] == [StoreUnfitError]
    assert "ignored If-None-Match" in str(found[0])
    garage.report("rejected: it ignores the conditions of a write")
