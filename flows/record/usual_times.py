"""How long videos usually take, from the newest ones in the archive. For display only; nothing depends on it."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from statistics import median
from typing import Final

from flows.record.generation import Generation, State

Kind = tuple[str, int | None]
"""Model and duration, which determine how long a video takes."""

NEWEST: Final = 20
"""How many generations are considered."""
LOOKUP_TIMEOUT_SECONDS: Final = 5.0


def kind_of(found: Generation) -> Kind:
    return found.attempt.model, found.request.duration


def usual_seconds(generations: Iterable[Generation]) -> Mapping[Kind, float]:
    """The median time from acceptance to end, by the provider's clock, for each kind of video. Pure."""
    took: dict[Kind, list[float]] = defaultdict(list)
    for item in generations:
        created, completed = item.provider_times_ms.get("created"), item.provider_times_ms.get("completed")
        if item.state is State.ARCHIVED and created is not None and completed is not None and completed > created:
            took[kind_of(item)].append((completed - created) / 1000)
    return {kind: median(seconds) for kind, seconds in took.items()}


class UsualTimes:
    """Reads the newest generations once, on the first call, and keeps the result."""

    def __init__(self, newest: Callable[[int], Awaitable[list[Generation]]]) -> None:
        self._newest = newest
        self._found: asyncio.Task[Mapping[Kind, float]] | None = None

    async def of(self, found: Generation) -> float | None:
        """How many seconds recent videos like this one took; None if there are none, or the store did not answer."""
        if self._found is None:
            self._found = asyncio.create_task(self._load())
        return (await asyncio.shield(self._found)).get(kind_of(found))

    async def _load(self) -> Mapping[Kind, float]:
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_SECONDS):
                return usual_seconds(await self._newest(NEWEST))
        except Exception:  # noqa: BLE001 - the wait for a paid video does not depend on it
            return {}
