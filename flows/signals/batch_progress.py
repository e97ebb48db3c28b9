"""One progress bar in the Prefect UI for all videos of a batch."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final
from uuid import UUID

from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from flows.signals.artifacts import artifact_key, shown

EVERY_SECONDS: Final = 10.0
"""At most one update in this time, not one per video: each was measured at 12 ms of the server's processor time."""


class BatchProgress:
    """How many videos of a batch have ended, and how."""

    def __init__(self, batch_key: str, total: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._key, self._total, self._monotonic = batch_key, total, monotonic
        self._states = Counter[str]()
        self._artifact: UUID | None = None
        self._began, self._shown_at = monotonic(), -EVERY_SECONDS
        self._lock = asyncio.Lock()

    async def ended(self, state: str) -> None:
        """Counts a video. Updates the bar, unless it was updated less than `EVERY_SECONDS` ago."""
        self._states[state] += 1
        if self._monotonic() - self._shown_at >= EVERY_SECONDS and not self._lock.locked():
            await self._show()

    async def finish(self) -> None:
        """Shows the final state."""
        if self._total:
            await self._show()

    async def _show(self) -> None:
        async with self._lock:
            self._shown_at = self._monotonic()
            await shown(self._publish(), what=f"the progress of {self._key}")

    async def _publish(self) -> None:
        percent = 100.0 * self._states.total() / self._total
        if self._artifact is None:
            self._artifact = await acreate_progress_artifact(
                percent, key=artifact_key(self._key, kind="progress"), description=self._sentence()
            )
        else:
            await aupdate_progress_artifact(self._artifact, percent, description=self._sentence())

    def _sentence(self) -> str:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(self._states.items()))
        minutes = (self._monotonic() - self._began) / 60
        return f"{self._key}: {self._states.total()} of {self._total} ended after {minutes:.1f} min: {counts}"
