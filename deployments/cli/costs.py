"""`sora costs`: what was spent in a month, and what the ceilings leave."""

import asyncio
import json
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.markup import escape

from blocks import ApixoApi, VideoArchive
from deployments.cli.console import err, out, table
from flows.record.costs import CostRow, Group, costs, total_costs
from flows.record.generation import Generation
from flows.record.ledger import Ledger
from flows.record.spend import MonthlySpend, month_of
from flows.resources import load_block


def costs_(
    month: Annotated[
        str | None, typer.Option(help="Which month, such as 2026-11 (UTC); this one if not given.")
    ] = None,
    by: Annotated[Group, typer.Option(help="What a row is about.")] = "model",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    api: Annotated[str, typer.Option(help="Name of the apixo-api block, for its ceilings.")] = "default",
    archive: Annotated[str, typer.Option(help="Name of the video-archive block.")] = "default",
) -> None:
    """Show what was spent in a month, by the prices at the time, and what the ceilings leave.

    *archived* was paid for videos that are archived, *open* for those on their way. *unclear* was paid or not: see
    `sora list --unconfirmed`. *failed* went to tasks that failed, if APIXO charges for those.
    """
    today = datetime.now(UTC).date()
    first = _first_day(month, today)
    api_block, found, spend = asyncio.run(_read(first, api=api, archive=archive))
    rows, totals = costs(found, month_of(first), by), total_costs(found, month_of(first))
    limits = ceilings_left(api_block, spend, today) if month_of(first) == month_of(today) else []
    if as_json:
        document = {
            "month": month_of(first),
            "by": by,
            "rows": [_document(row) for row in rows],
            "totals": [_document(row) for row in totals],
            "ceilings": [{name: str(value) for name, value in limit.items()} for limit in limits],
        }
        typer.echo(json.dumps(document, indent=2))
        return
    shown = table(by, "payments", "archived", "open", "unclear", "failed", "total", "currency")
    for row in (*rows, *totals):
        amounts = (row.archived, row.open, row.unclear, row.failed, row.total)
        shown.add_row(
            escape(row.group), str(row.payments), *(f"{amount:f}" for amount in amounts), escape(row.currency)
        )
    if rows:
        out.print(shown)
    for limit in limits:
        out.print(
            f"{limit['ceiling']} {limit['limit']:f}: {limit['spent']:f} spent, {limit['unclear']:f} unclear, "
            f"{limit['reserved']:f} reserved by runs, {limit['left']:f} left"
        )
    unpriced = sum(row.unpriced for row in totals)
    if unpriced:
        err.print(f"{unpriced} payment(s) have no price: the API block knew none when they were made.")
    err.print(f"{sum(row.payments for row in totals)} payment(s) in {month_of(first)}.")


def ceilings_left(api: ApixoApi, spend: MonthlySpend | None, today: date) -> list[dict[str, Any]]:
    """What counts against each ceiling now. Pure."""
    spend = spend or MonthlySpend()
    return [
        {
            "ceiling": name,
            "limit": limit,
            "spent": spend.spent_in(day),
            "unclear": spend.unclear_in(day),
            "reserved": spend.reserved_in(day),
            "left": max(limit - spend.committed(day), Decimal(0)),
        }
        for name, limit, day in (
            ("max_spend_per_day", api.max_spend_per_day, today),
            ("max_spend_per_month", api.max_spend_per_month, None),
        )
        if limit is not None
    ]


def _first_day(month: str | None, today: date) -> date:
    if month is None:
        return today.replace(day=1)
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", month) or month.startswith("0000"):
        raise typer.BadParameter("must be a month such as 2026-11", param_hint="--month")
    return date.fromisoformat(f"{month}-01")


async def _read(first: date, *, api: str, archive: str) -> tuple[ApixoApi, list[Generation], MonthlySpend | None]:
    api_block = await load_block(ApixoApi, api)
    store = (await load_block(VideoArchive, archive)).store()
    try:
        ledger = Ledger(store, patience_seconds=5)
        found = await ledger.changed_since(datetime.combine(first, datetime.min.time(), UTC))
        return api_block, found, await ledger.spend.read(month_of(first))
    finally:
        await store.aclose()


def _document(row: CostRow) -> dict[str, Any]:
    return {**row.model_dump(mode="json"), "total": str(row.total)}
