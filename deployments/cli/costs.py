"""`sora costs`: what was spent in a month, and what the ceilings leave."""

import asyncio
import json
from typing import Annotated, Any

import typer

from deployments.cli.console import err, out, print_table
from flows.record.costs import CostRow, Group
from flows.report_costs import HEADINGS, amounts, notes, read_costs, sentence


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
    report = asyncio.run(read_costs(month, by, api=api, archive=archive))
    if as_json:
        document = report.model_dump(mode="json")
        document |= {name: [_document(row) for row in getattr(report, name)] for name in ("rows", "totals")}
        typer.echo(json.dumps(document, indent=2))
        return
    if report.rows:
        print_table((by, *HEADINGS), [(row.group, *amounts(row)) for row in (*report.rows, *report.totals)])
    for use in report.ceilings:
        out.print(sentence(use))
    for note in notes(report):
        err.print(note)


def _document(row: CostRow) -> dict[str, Any]:
    return {**row.model_dump(mode="json"), "total": str(row.total)}
