"""A calendar of a thousand rows in one run, with default settings except for waits that fit the sandbox's speed."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import pytest
from prefect.blocks.system import Secret

from apixo import constants
from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.generate_batch import SUBMISSIONS_PER_SECOND
from tests.attack.thousand import BatchResult
from tests.e2e.running import ROOT
from tests.flows.conftest import store_blocks
from tests.support import make_api

ROWS: Final = 1_000
SPEED: Final = 600
FASTEST: Final = 100.0
"""The maximum that the flow accepts."""
MAX_CALLS: Final = 14.0
"""Store calls per video. There were 13."""


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("submissions_per_second", [SUBMISSIONS_PER_SECOND, FASTEST])
async def test_calendar_of_thousand_rows_is_archived_completely(
    submissions_per_second: float,
    one_video: Path,
    archive: VideoArchive,
    prefect_server: PrefectServer,
    tmp_path: Path,
) -> None:
    calendar = tmp_path / f"thousand-{submissions_per_second:g}.csv"
    calendar.write_text(
        "id,prompt\n" + "".join(f"{number:03},Dunes at dawn; take {number}\n" for number in range(ROWS))
    )
    with SandboxServer(SandboxSettings(speed=SPEED, data_dir=one_video)) as sandbox:
        api = make_api(
            sandbox,
            api_key=Secret(value=sandbox.settings.api_key),
            initial_wait_seconds=constants.INITIAL_WAIT_SECONDS / SPEED,
            poll_interval_seconds=1,  # a thousand runs that poll every 17 ms would do nothing else
            deadline_seconds=1800,
            submit_timeout_seconds=constants.SUBMIT_TIMEOUT_SECONDS,
            retry_delay_seconds=constants.RETRY_DELAY_SECONDS,
        )
        stored = await store_blocks(api, archive)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.attack.thousand", stored.name, str(calendar), str(submissions_per_second),
            cwd=ROOT, env={**os.environ, **prefect_server.environment, "SORA_WORK_DIR": str(tmp_path / "work")},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, _ = await process.communicate()
        posts, charged = len(sandbox.record.submits()), len(sandbox.record.charged())
    result = BatchResult.model_validate_json(output.splitlines()[-1])
    calls = sum(result.store_calls.values()) / ROWS
    print(
        f"\n{submissions_per_second:g} submissions a second: {result.seconds:.0f} s, "
        f"{result.processor_seconds:.0f} s of processor time, "
        f"{result.before_kib / 1024:.0f} MiB before and {result.peak_kib / 1024:.0f} MiB at most, "
        f"{calls:.2f} store calls per video: {result.store_calls}"
    )
    assert result.states == {"archived": ROWS}, result.problems
    assert (posts, charged) == (ROWS, ROWS)
    assert result.pool_timeouts == 0
    assert calls < MAX_CALLS
