"""What a batch may cost: dry runs, limits, ceilings, the balance, and an account that APIXO rejects."""

import asyncio
import re
from contextlib import aclosing
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from blocks import ApixoApi, VideoArchive
from blocks.store_errors import StoreError
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from flows.balance import BalanceError
from flows.batch.budget import BudgetError
from flows.batch.calendar_rows import BatchItem, Row
from flows.batch.shares import FOLDER, Share
from flows.batch.summary import BatchFailedError
from flows.batch_run import Batch
from flows.generate_shard import generate_shard
from flows.record.ledger import Ledger
from tests.flows.batches import PRICE, failing, patient_api, rows, run, states
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api
from tests.support.events import Sent


@pytest.fixture
def api(sandbox: SandboxServer) -> ApixoApi:
    return patient_api(sandbox)


async def test_dry_run_checks_and_prices_every_row_and_pays_nothing(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    await run(stored, key, requests=[{"id": "done", "prompt": "Dunes"}, {"id": "other", "prompt": "Dunes"}])
    before = len(sandbox.record.submits())
    requested = [
        {"id": "done", "prompt": "Dunes"},
        {"id": "other", "prompt": "Something else"},
        {"id": "fresh", "prompt": "Dunes", "duration": 8},
        {"id": "image", "prompt": "Dunes", "image_urls": [f"{sandbox.base_url}/samples/harbor.jpg"]},
        {"id": "no-image", "prompt": "Dunes", "image_urls": [f"{sandbox.base_url}/samples/harbor.gif"]},
        {"id": "later", "prompt": "Dunes", "not_before": "2999-01-01"},
        {"id": "bad", "prompt": ""},
    ]
    summary = await failing(stored, key, requests=requested, dry_run=True)
    assert {row.line: row.state for row in summary.rows} == {
        1: "archived", 2: "not submitted", 3: "ready", 4: "ready", 5: "not submitted", 6: "not due", 7: "bad row",
    }  # fmt: skip
    assert "another request" in summary.rows[1].problem
    assert summary.dry_run
    assert summary.price == (8 + 4) * PRICE
    assert len(sandbox.record.submits()) == before
    assert len(sandbox.record.images()) >= 2
    good = await run(stored, key, requests=[requested[0], requested[2]], dry_run=True)
    assert good.price == 8 * PRICE
    assert len(sandbox.record.submits()) == before


async def test_dry_run_explains_rows_that_need_a_manual_decision(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    requested = [{"id": "lost", "prompt": "lost"}, {"id": "failed", "prompt": "a forbidden thing"}]
    await failing(stored, key, requests=requested)
    summary = await failing(stored, key, requests=[*requested, *rows(1)], dry_run=True)
    assert states(summary) == {"lost": "unconfirmed", "failed": "failed", "00": "ready"}
    assert f"sora resolve {key}-lost --task-id" in summary.rows[0].problem
    assert "CONTENT_VIOLATION" in summary.rows[1].problem
    assert summary.price == 4 * PRICE
    assert len(sandbox.record.submits()) == 2


async def test_dry_run_fails_on_an_invalid_api_key(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="status", kind="http_401", times=-1))
    stored = await store_blocks(make_api(sandbox), archive)
    with pytest.raises(Exception, match="API key"):
        await run(stored, key, dry_run=True)
    assert sandbox.record.submits() == []


async def test_max_spend_stops_before_the_payment_that_would_exceed_it(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    summary = await failing(stored, key, requests=rows(5), max_spend=7, max_in_flight=1)
    assert summary.counts == {"archived": 3, "not submitted": 2}
    assert summary.price == 12 * PRICE
    assert all("max_spend is 7" in row.problem for row in summary.failed)
    assert len(sandbox.record.submits()) == 3
    # What earlier runs paid counts, too.
    assert (await failing(stored, key, requests=rows(5), max_spend=7)).counts == summary.counts
    assert len(sandbox.record.submits()) == 3
    assert (await run(stored, key, requests=rows(5), max_spend=10)).counts == {"archived": 5}
    assert len(sandbox.record.submits()) == 5


async def test_concurrent_runs_of_one_batch_report_each_payment_once(
    stored: StoredBlocks, sandbox: SandboxServer, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, both_checked = Batch.check_balance, asyncio.Barrier(2)

    async def together(batch: Batch) -> None:
        await both_checked.wait()  # neither run knows the other's claims yet
        await checked(batch)

    monkeypatch.setattr(Batch, "check_balance", together)
    both = await asyncio.gather(run(stored, key, requests=rows(3)), run(stored, key, requests=rows(3)))
    assert [summary.counts for summary in both] == [{"archived": 3}] * 2
    assert len(sandbox.record.submits()) == 3
    assert sum(summary.price or 0 for summary in both) == 12 * PRICE


async def test_a_dry_run_does_not_price_a_row_whose_check_fails(
    stored: StoredBlocks, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_without_answer(*_: object, **__: object) -> None:
        raise StoreError("no answer")

    monkeypatch.setattr(Ledger, "duplicate_of", fail_without_answer)
    summary = await failing(stored, key, requests=rows(2), dry_run=True)
    assert summary.counts == {"not submitted": 2}
    assert summary.price == 0


async def test_rejected_row_frees_its_share_of_max_spend(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_400"))
    summary = await failing(stored, key, requests=rows(3), max_spend=4, max_in_flight=1)
    assert summary.counts == {"archived": 2, "rejected": 1}
    assert summary.price == 8 * PRICE


async def test_batch_stops_at_a_ceiling_and_reports_when_it_can_continue(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    limited = make_api(sandbox, price_per_second=PRICE, max_spend_per_month=Decimal(7), submit_timeout_seconds=20)
    stored = await store_blocks(limited, archive)
    summary = await failing(stored, key, requests=rows(5))
    assert summary.counts == {"archived": 3, "not submitted": 2}
    assert len(sandbox.record.submits()) == 3
    assert summary.blocked is not None
    assert re.match(r"max_spend_per_month is 7.* Run it again after \d{4}-\d\d-01 00:00 UTC", summary.blocked)
    async with aclosing(archive.store()) as store:
        paid = [row.key for row in summary.rows if row.task_id][:1]
        (found,) = (await Ledger(store).read_all(paid)).values()
        month = await Ledger(store).spend.read(f"{found.attempt.claimed_at:%Y-%m}")
    assert (found.attempt.batch, found.attempt.price) == (key, 4 * PRICE)
    assert month is not None
    assert (month.spent_in(), month.reservations) == (12 * PRICE, {})  # what the other rows had reserved is freed


async def test_ceiling_without_a_price_raises_error_before_the_first_row(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    stored = await store_blocks(make_api(sandbox, max_spend_per_day=Decimal(1)), archive)
    with pytest.raises(BudgetError, match=r"max_spend_per_day and max_spend_per_month need the price of sora-2"):
        await run(stored, key)
    assert sandbox.record.submits() == []


async def test_low_balance_is_an_error_with_require_balance_and_else_a_warning(
    archive: VideoArchive, prefect_server: PrefectServer, key: str, video_folder: Path, sent: Sent
) -> None:
    with SandboxServer(SandboxSettings(speed=600, video_height=90, data_dir=video_folder, balance=3)) as sandbox:
        fields = {"price_per_second": PRICE, "submit_timeout_seconds": 20, "balance_warning_below": 5}
        stored = await store_blocks(make_api(sandbox, **fields), archive)
        strict = await store_blocks(make_api(sandbox, **fields, require_balance=True), archive)
        with pytest.raises(BalanceError, match=r"has 3.00 USD left, and the videos of this batch cost 6\.0\."):
            await run(strict, key, requests=rows(3))
        assert sandbox.record.submits() == []
        summary = await run(stored, key, requests=rows(3))
        assert summary.counts == {"archived": 3}
        assert summary.notes == ["The APIXO account has 3.00 USD left, and the videos of this batch cost 6.0."]
        low = [event for event in sent.all() if event.event == "sora.balance.low"]
        assert [event.payload["balance"] for event in low] == ["3.0", "3.0"]


async def test_max_spend_without_a_price_raises_error(
    sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    stored = await store_blocks(make_api(sandbox), archive)
    with pytest.raises(BudgetError, match="price_per_second"):
        await run(stored, key, max_spend=1)
    assert sandbox.record.submits() == []


async def test_invalid_api_key_is_tried_once_not_for_every_row(
    stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="http_401", times=-1))
    summary = await failing(stored, key, requests=rows(6), max_in_flight=1)
    assert summary.counts == {"not submitted": 5, "rejected": 1}
    assert summary.price == 0
    assert len(sandbox.record.submits()) == 1


STOP_MESSAGES = {
    False: "^The rest of the batch was not submitted: APIXO refused",
    True: "^The rest of the batch was not submitted: APIXO does not offer sora-2,",
}


# 402 is tested in `test_batch_outage.py`, 401 above. `tests/apixo/test_submitting.py` tests what each answer means.
@pytest.mark.parametrize(
    "kind",
    [
        "http_400_credits",
        "http_404",
        *(pytest.param(kind, marks=pytest.mark.attack) for kind in ("http_400_model", "http_402", "http_403")),
    ],
)
async def test_rejection_that_affects_every_row_stops_the_batch_and_is_reported_first(
    kind: str, stored: StoredBlocks, sandbox: SandboxServer, key: str, sent: Sent
) -> None:
    """Videos in progress are archived, nothing is unconfirmed, and the next run submits the rest."""
    sandbox.faults.add(Fault.model_validate({"call": "submit", "kind": kind, "skip": 2, "times": -1}))
    with pytest.raises(BatchFailedError, match=STOP_MESSAGES[kind in ("http_404", "http_400_model")]) as caught:
        await run(stored, key, requests=rows(6), max_in_flight=1)
    summary = caught.value.summary
    assert summary.counts == {"archived": 2, "not submitted": 3, "rejected": 1}
    assert len(sandbox.record.submits()) == 3
    (blocked,) = [event for event in sent.all() if event.event == "sora.provider.blocked"]
    assert (blocked.payload["batch"], blocked.payload["code"]) == (key, kind.split("_")[1])
    sandbox.faults.clear()
    again = await run(stored, key, requests=rows(6))
    assert again.counts == {"archived": 6}
    assert len(sandbox.record.charged()) == 6


async def test_shard_leaves_the_balance_check_to_its_parent_run(
    archive: VideoArchive, prefect_server: PrefectServer, key: str, video_folder: Path, sent: Sent
) -> None:
    with SandboxServer(SandboxSettings(speed=600, video_height=90, data_dir=video_folder, balance=1)) as sandbox:
        fields = {"price_per_second": PRICE, "submit_timeout_seconds": 20, "balance_warning_below": 5}
        stored = await store_blocks(make_api(sandbox, **fields, require_balance=True), archive)
        share = Share(
            key=key,
            folder=f"{FOLDER}{key}/",
            number=1,
            of=2,
            parent_run_id=str(uuid4()),
            rows=[Row(line=1, item=BatchItem(id="a", prompt="Dunes"))],
            waits=False,
            refuse_duplicates=False,
            max_in_flight=1,
            submissions_per_second=5,
            max_spend=None,
        )
        async with aclosing(archive.store()) as store:
            await store.put(share.name, share.model_dump_json().encode())
        await generate_shard(share.name, api=stored.name, archive=stored.name)
        assert len(sandbox.record.submits()) == 1
        assert [event for event in sent.all() if event.event == "sora.balance.low"] == []
