"""What a waiting run reports: the elapsed time, how long such videos usually take, and when the next poll is."""

import asyncio

import pytest

from apixo import Succeeded
from blocks.store_errors import StoreError
from flows.record.generation import Generation
from flows.record.usual_times import UsualTimes, usual_seconds
from flows.resources import PayingResources
from flows.signals.progress import Progress, listen
from flows.task_end import wait_for_task
from tests.flows.generations import submit
from tests.flows.record.changes import claimed, fail, store, succeed
from tests.flows.record.changes import submit as submitted


def generation_that_took(seconds: int, *, archived: bool = True) -> Generation:
    done = succeed(submitted(claimed()))
    done = store(done) if archived else fail(submitted(claimed()))
    return done.model_copy(
        update={"provider_times_ms": {"created": 1_000_000, "completed": 1_000_000 + seconds * 1000}}
    )


def test_usual_time_is_the_median_of_archived_videos_per_model_and_duration() -> None:
    other = generation_that_took(300)
    other = other.model_copy(update={"request": other.request.model_copy(update={"duration": 12})})
    without = generation_that_took(999).model_copy(update={"provider_times_ms": {}})
    found = usual_seconds(
        [
            generation_that_took(100),
            generation_that_took(160),
            generation_that_took(1000),
            other,
            without,
            generation_that_took(5, archived=False),
            claimed(),
        ]
    )
    assert dict(found) == {("sora-2", 4): 160, ("sora-2", 12): 300}


async def test_usual_time_is_loaded_once_for_all_waiters_and_store_errors_are_ignored() -> None:
    requested = 0

    async def newest(count: int) -> list[Generation]:
        nonlocal requested
        requested += 1
        await asyncio.sleep(0.05)
        return [generation_that_took(160)] * count

    usual = UsualTimes(newest)
    cancelled = asyncio.create_task(usual.of(claimed()))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    assert list(await asyncio.gather(usual.of(claimed()), usual.of(claimed()))) == [160, 160]
    assert requested == 1

    async def fail_to_load(_: int) -> list[Generation]:
        raise StoreError("it is unavailable")

    assert await UsualTimes(fail_to_load).of(claimed()) is None


async def test_long_wait_reports_elapsed_and_usual_time(
    key: str, resources: PayingResources, caplog: pytest.LogCaptureFixture
) -> None:
    found = await submit(key, resources)
    resources.api.initial_wait_seconds, resources.api.poll_interval_seconds = 40, 10
    resources.api.deadline_seconds = 1800
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0.02)

    async def newest(_: int) -> list[Generation]:
        return [generation_that_took(160)]

    resources.clock.sleep, resources.clock.monotonic, resources.clock.rng = sleep, lambda: now, lambda: 0.5
    resources.usual = UsualTimes(newest)
    reports: list[Progress] = []
    listen(reports.append)
    caplog.set_level("INFO")
    assert isinstance(await wait_for_task(found.task, found, resources), Succeeded)
    assert (reports[0].doing, round(reports[0].next_seconds or 0)) == ("waiting (usually 2:40)", 40)
    assert all("usually 2:40" in item.doing for item in reports)
    assert f"of {key} (usually 2:40): first poll in 40 s" in caplog.text
    assert "after 40 s (usually 2:40), next poll in 10 s." in caplog.text
    assert 1 <= caplog.text.count("next poll in") < len(reports)  # an unchanged state is not logged at each poll


async def test_short_wait_does_not_load_the_usual_time(key: str, resources: PayingResources) -> None:
    async def newest(_: int) -> list[Generation]:
        raise AssertionError("a short wait must not load it")

    resources.usual = UsualTimes(newest)
    found = await submit(key, resources)
    assert isinstance(await wait_for_task(found.task, found, resources), Succeeded)
