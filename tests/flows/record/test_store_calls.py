"""Which store calls one video makes: exactly those that docs/ledger.md lists with a reason for each."""

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from blocks.object_store import ObjectStore
from deployments.sandbox import SandboxServer
from flows.record.generation import State
from tests.flows.conftest import StoredBlocks
from tests.support import KITE

T = TypeVar("T")

PAGE = Path(__file__).parents[3] / "docs/ledger.md"
PLACES = {
    r"ledger/.+": "ledger/<key>.json",
    r"open/.+": "open/<key>",
    r"tasks/[^.].*": "tasks/<task id>",
    r"requests/.+": "requests/<digest>",
    r"videos/.+/video\.mp4": "video.mp4",
    r"videos/.+/poster\.jpg": "poster.jpg",
    r"videos/.+/generation\.json": "generation.json",
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every store call made in this process, including those of the payment thread."""
    seen: list[str] = []
    make_call = ObjectStore._call

    async def call(store: ObjectStore, method: str, name: str, make: Callable[[], Awaitable[T]]) -> T:
        place = next((to for pattern, to in PLACES.items() if re.fullmatch(pattern, name)), name)
        seen.append(f"{method} {place}")
        return await make_call(store, method, name, make)

    monkeypatch.setattr(ObjectStore, "_call", call)
    return seen


def documented() -> list[str]:
    """The calls in the table of docs/ledger.md, in its order."""
    table = PAGE.read_text().partition("## Store calls")[2].partition("\n## ")[0]
    return re.findall(r"^\| \d+ \| `(\w+ [^`]+)`", table, re.MULTILINE)


async def test_one_video_makes_exactly_the_documented_store_calls(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, calls: list[str]
) -> None:
    made = await stored.generate(KITE, key=key)
    assert made.state is State.ARCHIVED
    assert [call for call in calls if "probe" not in call] == documented()


async def test_rerun_of_an_archived_video_makes_two_reads(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, calls: list[str]
) -> None:
    await stored.generate(KITE, key=key)
    calls.clear()
    await stored.generate(KITE, key=key)
    assert calls == ["GET ledger/<key>.json", "GET open/<key>"]
