"""The newest generations, whether archived, failed or open, are found without listing all of them."""

from datetime import UTC, datetime, timedelta

from flows.record import object_names
from flows.record.generation import Generation, State
from flows.record.ledger import record_name
from flows.record.recent import failed_name
from flows.resources import PayingResources

from .changes import claimed, reject

DAY = datetime(2026, 1, 30, 12, tzinfo=UTC)


async def save(resources: PayingResources, made: Generation, *, video: bool) -> None:
    await resources.store.put(record_name(made.key), made.model_dump_json().encode())
    if video:
        await resources.store.put(f"{object_names.folder(made.key, made.created_at)}video.mp4", b"-")


async def newest(resources: PayingResources, count: int) -> list[str]:
    return [found.key for found in await resources.ledger.newest(count)]


async def test_newest_come_first_across_days_months_and_years(resources: PayingResources) -> None:
    for number, days in enumerate((0, 1, 2, 40, 400)):
        await save(resources, claimed(key=f"video-{number}", now=DAY + timedelta(days=days)), video=True)
    assert await newest(resources, 3) == ["video-4", "video-3", "video-2"]
    assert await newest(resources, 50) == [f"video-{number}" for number in (4, 3, 2, 1, 0)]


async def test_empty_archive_has_no_generations(resources: PayingResources) -> None:
    assert await newest(resources, 10) == []


async def test_newest_include_open_and_failed_and_list_each_key_once(resources: PayingResources) -> None:
    await resources.ledger.claim(claimed(key="open", now=DAY + timedelta(days=2)), over=None)
    entry = await resources.ledger.claim(claimed(key="refused", now=DAY + timedelta(days=1)), over=None)
    assert entry is not None
    rejected_entry = await resources.ledger.change("refused", reject)
    await resources.ledger.close(rejected_entry.generation)
    assert await resources.store.names("failed/") == [failed_name(rejected_entry.generation)]
    made = claimed(key="twice", now=DAY)
    await save(resources, made, video=True)
    await resources.store.put(f"{object_names.folder('twice', DAY, task_number=2)}video.mp4", b"-")
    assert await newest(resources, 10) == ["open", "refused", "twice"]
    found = await resources.ledger.newest(10)
    assert found[1].state is State.REJECTED
