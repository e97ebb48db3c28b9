"""The flow `report-costs`: shows what a month cost as an artifact in the Prefect UI. It pays nothing."""

import re
from contextlib import aclosing
from datetime import UTC, date, datetime
from typing import Final

from prefect import flow
from prefect.artifacts import acreate_markdown_artifact

from blocks import ApixoApi, VideoArchive
from flows.forms import OptionalText
from flows.record.costs import CeilingUse, CostReport, CostRow, Group, ceiling_uses, costs
from flows.record.ledger import Ledger
from flows.record.monthly_spend import Ceilings, first_count, month_of
from flows.record.pipeline_errors import PipelineError
from flows.resources import load_block
from flows.signals.artifacts import plain
from flows.signals.run_log import prepare_run_log
from flows.wording import counted

ARTIFACT_KEY: Final = "sora-costs"
STORE_RETRY_TIMEOUT_SECONDS: Final = 5.0
HEADINGS: Final = ("payments", "archived", "open", "unclear", "failed", "total", "currency")


@flow(name="report-costs", flow_run_name="costs by {by}")
async def report_costs(
    month: OptionalText = "", by: Group = "model", api: str = "default", archive: str = "default"
) -> CostReport:
    """Shows what was spent in a month, at the prices of the time, and what the ceilings leave.

    *archived* is for archived videos, *open* for those in progress. *unclear* may or may not have been paid. *failed*
    is for failed tasks, if APIXO charges for those.

    Args:
        month: Which month, such as 2026-11 (UTC); if empty, the current one.
        by: What to group by.
        api: Name of the apixo-api block, for its ceilings.
        archive: Name of the video-archive block.
    """
    prepare_run_log()
    report = await read_costs(month, by, api=api, archive=archive)
    await acreate_markdown_artifact(
        markdown=markdown(report), key=ARTIFACT_KEY, description=f"What {report.month} cost, by {by}"
    )
    return report


async def read_costs(month: str | None, by: Group, *, api: str, archive: str) -> CostReport:
    """Reads the records of a month and adds them up. See `report_costs`."""
    today = datetime.now(UTC).date()
    first = first_day(month, today)
    block = await load_block(ApixoApi, api)
    async with aclosing((await load_block(VideoArchive, archive)).store()) as store:
        ledger = Ledger(store, retry_timeout_seconds=STORE_RETRY_TIMEOUT_SECONDS)
        found = await ledger.changed_since(datetime.combine(first, datetime.min.time(), UTC))
        spend = await ledger.spend.read(month_of(first)) or first_count(found, first)
    limits = Ceilings(block.max_spend_per_day, block.max_spend_per_month)
    return CostReport(
        month=month_of(first),
        by=by,
        rows=costs(found, month_of(first), by),
        totals=costs(found, month_of(first), None),
        ceilings=ceiling_uses(limits, spend, today) if month_of(first) == month_of(today) else [],
    )


def first_day(month: str | None, today: date) -> date:
    """The first day of a month such as `2026-11`, or of the current month if none is given.

    Raises:
        PipelineError: the text is not a month.
    """
    if month is None:
        return today.replace(day=1)
    if not re.fullmatch(r"(?!0000)\d{4}-(0[1-9]|1[0-2])", month):
        raise PipelineError(f"{month!r} is not a month. Use a month such as 2026-11.")
    return date.fromisoformat(f"{month}-01")


def amounts(row: CostRow) -> list[str]:
    """The cells of a row, in the order of `HEADINGS`."""
    sums = (row.archived, row.open, row.unclear, row.failed, row.total)
    return [str(row.payments), *(f"{amount:f}" for amount in sums), row.currency]


def sentence(use: CeilingUse) -> str:
    """What counts against a ceiling, as a sentence."""
    return (
        f"{use.ceiling} {use.limit:f}: {use.spent:f} spent, {use.unclear:f} unclear, "
        f"{use.reserved:f} reserved by runs, {use.left:f} left"
    )


def notes(report: CostReport) -> list[str]:
    """Notes on the figures."""
    count, unpriced = (sum(getattr(row, name) for row in report.totals) for name in ("payments", "unpriced"))
    missing = f"{counted(unpriced, 'payment')} without a price: the API block had none at the time."
    return [*([missing] if unpriced else []), f"{counted(count, 'payment')} in {report.month}."]


def markdown(report: CostReport) -> str:
    """The report as Markdown."""
    table = [_line(report.by, *HEADINGS), "|---" + "|--:" * 6 + "|---|"]
    table += [_line(*map(plain, [row.group, *amounts(row)])) for row in report.rows]
    table += [
        _line(*(f"**{plain(cell)}**" if cell else "" for cell in ["total", *amounts(row)])) for row in report.totals
    ]
    below = [*map(sentence, report.ceilings), *notes(report)]
    return "\n".join([f"# Costs of {report.month}", "", *table, "", *(f"- {line}" for line in below)]) + "\n"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
