"""Links to Prefect's UI: the run that made a video, and the form for a similar one."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from flows.record.generation import Generation

DEPLOYMENT: Final = "generate-video/generate-video"
FRESH_SECONDS: Final = 60.0
"""How long the deployment's id is cached: `sora deploy` may create the deployment again."""
PREFECT_SECONDS: Final = 2.0
"""How long a page waits for Prefect."""
LONGEST_ADDRESS: Final = 8_000
"""The maximum length of a URL, in characters. Many proxies reject longer ones."""


class PrefectLinks:
    """Makes the links. There are none without Prefect, or if the URL of its UI is unknown."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._read_at: float | None = None
        self._deployment_id: str | None = None

    def run(self, found: Generation) -> str | None:
        """The page of the run that claimed the generation."""
        ui_url, run_id = get_current_settings().ui_url, found.attempt.claimed_by.flow_run_id
        return f"{ui_url}/runs/flow-run/{quote(run_id, safe='')}" if ui_url and run_id else None

    async def form(self, found: Generation) -> str | None:
        """The form of `generate-video`, filled in with the request but without a key."""
        ui_url, deployment_id = get_current_settings().ui_url, await self._deployment()
        if not ui_url or deployment_id is None:
            return None
        page = f"{ui_url}/deployments/deployment/{deployment_id}/run"
        # Without defaults, so that the form stays short.
        request = found.request.model_dump(mode="json", exclude_defaults=True)
        # Quoted twice: the UI decodes it once as a part of the URL, and once more itself.
        parameters = quote(quote(json.dumps({"request": request}), safe=""), safe="")
        whole = f"{page}?parameters={parameters}"
        return whole if len(whole) <= LONGEST_ADDRESS else page

    async def _deployment(self) -> str | None:
        now = self._monotonic()
        if self._read_at is None or now - self._read_at > FRESH_SECONDS:
            self._read_at = now
            try:
                async with asyncio.timeout(PREFECT_SECONDS), get_client() as client:
                    self._deployment_id = str((await client.read_deployment_by_name(DEPLOYMENT)).id)
            except Exception:  # noqa: BLE001 - whatever the error, the video can still be watched
                self._deployment_id = None
        return self._deployment_id
