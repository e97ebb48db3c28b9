"""The report of what a month cost."""

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort

from apixo import VideoRequest
from blocks import ApixoApi, VideoArchive
from deployments.sandbox import SandboxServer
from flows.generate_video import generate_video
from flows.record.pipeline_errors import PipelineError
from flows.report_costs import ARTIFACT_KEY, first_day, read_costs, report_costs
from tests.flows.conftest import store_blocks


async def test_report_shows_what_was_spent_and_what_the_ceilings_leave(
    api: ApixoApi, archive: VideoArchive, sandbox: SandboxServer, key: str, prefect_server: object
) -> None:
    limited = {"price_per_second": Decimal("0.5"), "currency": "USD", "max_spend_per_day": Decimal(3)}
    stored = await store_blocks(api.model_copy(update=limited), archive)
    request = VideoRequest(prompt="A paper lantern", duration=4, tags=("autumn",))
    await generate_video(request, key=key, api=stored.name, archive=stored.name)
    paid = len(sandbox.record.submits())

    report = await report_costs(month="", by="tag", api=stored.name, archive=stored.name)

    assert len(sandbox.record.submits()) == paid
    assert report.month == f"{datetime.now(UTC):%Y-%m}"
    (row,) = [row for row in report.rows if row.group == "autumn"]
    assert (row.payments, row.archived, row.total) == (1, Decimal("2.0"), Decimal("2.0"))
    (use,) = report.ceilings
    assert (use.ceiling, use.spent, use.left) == ("max_spend_per_day", Decimal("2.0"), Decimal("1.0"))
    async with get_client() as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[ARTIFACT_KEY]))
        artifact, *_ = await client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.UPDATED_DESC)
    lines = str(artifact.data).splitlines()
    assert "| tag | payments | archived | open | unclear | failed | total | currency |" in lines
    (shown,) = [line for line in lines if "autumn" in line]
    assert shown == "| autumn | 1 | 2.0 | 0 | 0 | 0 | 2.0 | USD |"
    assert "- max_spend_per_day 3: 2.0 spent, 0 unclear, 0 reserved by runs, 1.0 left" in lines


async def test_new_ceiling_counts_what_was_paid_before_it_was_set(
    api: ApixoApi, archive: VideoArchive, key: str, prefect_server: object
) -> None:
    priced = api.model_copy(update={"price_per_second": Decimal("0.5")})
    stored = await store_blocks(priced, archive)
    request = VideoRequest(prompt="A paper lantern", duration=4)
    await generate_video(request, key=key, api=stored.name, archive=stored.name)
    limited = await store_blocks(priced.model_copy(update={"max_spend_per_month": Decimal(1000)}), archive)

    (use,) = (await read_costs(None, "model", api=limited.name, archive=limited.name)).ceilings

    assert (use.spent, use.left) == (Decimal("2.0"), Decimal("998.0"))


@pytest.mark.parametrize("month", ["2020-13", "2020-1", "0000-01", "2020-01-01", "", "next"])
def test_invalid_month_raises_error(month: str) -> None:
    with pytest.raises(PipelineError, match="is not a month"):
        first_day(month, date(2026, 3, 9))


def test_month_defaults_to_the_current_one() -> None:
    assert first_day("2020-02", date(2026, 3, 9)) == date(2020, 2, 1)
    assert first_day(None, date(2026, 3, 9)) == date(2026, 3, 1)
