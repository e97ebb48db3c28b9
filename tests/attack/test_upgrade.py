"""Two releases side by side, as while workers are replaced one after another with runs under way.

The older one is this program. The newer one is this program with the next version of the record, which is all that an
older release can tell of a newer one.
"""

import os
import sys
from pathlib import Path
from typing import Final

import pytest

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import SandboxServer, SandboxSettings
from flows.record import ledger
from flows.record.generation import SCHEMA, State
from tests.attack.fifty import Commands
from tests.e2e.running import until
from tests.flows.conftest import store_blocks
from tests.support import make_api, unique

ROWS: Final = 5
NEWER: Final = (
    sys.executable,
    "-c",
    "from flows.record import ledger; ledger.SCHEMA += 1; from deployments.cli import main; main()",
)


@pytest.mark.attack
@pytest.mark.timeout(600)
async def test_an_older_worker_and_a_newer_one_share_a_batch_and_pay_once(
    prefect_server: PrefectServer,
    archive: VideoArchive,
    one_video: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The older one goes slowly through the rows; the newer one comes from behind and takes the others."""
    key = unique("upgrade")
    calendar = tmp_path / "calendar.csv"
    calendar.write_text("id,prompt\n" + "".join(f"{number},Dunes; take {number}\n" for number in range(ROWS)))
    order = ("batch", str(calendar), "--key", key, "-v", "--submissions-per-second")
    with SandboxServer(SandboxSettings(speed=60, data_dir=one_video)) as sandbox:
        api = make_api(sandbox, initial_wait_seconds=2, poll_interval_seconds=0.5, deadline_seconds=120)
        stored = await store_blocks(api, archive)
        older = Commands(stored, {**os.environ, **prefect_server.environment}, tmp_path)
        newer = Commands(stored, older.environment, tmp_path, program=NEWER)

        async def begun() -> bool:
            return len(sandbox.record.charged()) >= 1

        under_way = await older.start(*order, "0.1")
        await until(begun, what="the first submission")
        newer_code, newer_said = await newer.end(await newer.start(*order, "20"))
        older_code, older_said = await older.end(under_way)
        # The markers of the older one's lost claims are left; whoever can read the records takes them away.
        collected = await newer.end(await newer.start("collect"))
        assert len(sandbox.record.submits()) == len(sandbox.record.charged()) == ROWS
    monkeypatch.setattr(ledger, "SCHEMA", SCHEMA + 1)
    store = archive.store()
    try:
        keys = [f"{key}-{number}" for number in range(ROWS)]
        records = [entry.generation for entry in await ledger.Ledger(store).read_all(keys) if entry]
        left_open = await store.names("open/")
    finally:
        await store.aclose()
    assert newer_code == 0, newer_said
    assert collected[0] == 0, collected[1]
    assert left_open == []
    assert [record.state for record in records] == [State.ARCHIVED] * ROWS
    assert {record.schema_version for record in records} >= {SCHEMA + 1}
    # What the newer one wrote, the older one leaves alone, and says why.
    assert older_code != 0
    assert "newer version" in older_said
