"""`sora batch`."""

import asyncio
from typing import Annotated, Literal

import typer
from rich.markup import escape

from deployments.cli.console import ApiName, ArchiveName, Verbose, err, print_table
from deployments.cli.display import BatchDisplay, shown
from flows.batch.summary import BatchError, BatchSummary
from flows.generate_batch import generate_batch
from flows.record.keys import calendar_key, check_key


def batch(
    calendar: Annotated[
        str, typer.Argument(help="A .csv, .tsv, .jsonl or .xlsx file, or s3://bucket/object in the archive's store.")
    ],
    key: Annotated[
        str | None,
        typer.Option(
            "--key", "-k", help="Permanent name of this batch; a video's key is KEY-ID. Default: the file's name."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every row and image, show what it would cost, and pay nothing.")
    ] = False,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Continue with the valid rows. Default: reject the whole file.")
    ] = False,
    max_spend: Annotated[
        float | None,
        typer.Option(help="The most that all runs of this batch may pay, at the block's prices."),
    ] = None,
    max_in_flight: Annotated[int | None, typer.Option(help="Maximum videos at once. Default: the API block's.")] = None,
    submissions_per_second: Annotated[float, typer.Option(help="How many videos are submitted per second.")] = 5.0,
    refuse_duplicates: Annotated[
        bool,
        typer.Option(
            "--refuse-duplicates", help="Fail rows whose request was submitted under another key. Default: only warn."
        ),
    ] = False,
    sheet: Annotated[str | None, typer.Option(help="The sheet of an .xlsx. Default: its only visible sheet.")] = None,
    ignore_columns: Annotated[
        bool, typer.Option("--ignore-columns", help="Ignore unknown columns. Default: reject the file.")
    ] = False,
    shards: Annotated[
        int,
        typer.Option(help="Number of runs on the work pool, for several machines. Default: this process alone."),
    ] = 1,
    fit_images: Annotated[
        bool, typer.Option("--fit-images", help="Rotate images given by path upright, and shrink them to the limits.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="--no-wait exits after the last submission.")] = True,
    api: ApiName = "default",
    archive: ArchiveName = "default",
    verbose: Verbose = False,
) -> None:
    """Generate the videos of a content calendar.

    Columns: `prompt`, and optionally `id`, `model`, `duration`, `aspect_ratio`, `image_urls` (separated by spaces or
    commas; also `s3://bucket/object`, or paths as seen from the calendar), `mode`, `remove_watermark`, `options` (a
    JSON object), `tags` (separated by commas), `fallback_models` (separated by spaces),
    `not_before` (a date).

    JSON Lines uses the same names. An empty cell means the default.

    If anything goes wrong, or after adding rows, run it again: it does only what is missing and pays for nothing
    twice. An example calendar: deployments/calendars/example.csv

    Example: `sora batch spring.csv --dry-run`, then `sora batch spring.csv --max-spend 20`
    """
    name = calendar_key(calendar) if key is None else check_key(key)
    on_bad_rows: Literal["refuse", "skip"] = "skip" if skip_bad_rows else "refuse"

    err.print(f"Batch [bold]{escape(name)}[/]: the same key does only what is missing and pays for nothing twice.")
    display = BatchDisplay(err, "validate_image" if dry_run else "archive" if wait else "submit")
    try:
        remedy = "run the same command again to continue. What is open: sora list --open"
        with shown(display, stopped=remedy, expect=display.expect):
            running = generate_batch(
                calendar=calendar,
                key=name,
                wait=wait,
                on_bad_rows=on_bad_rows,
                dry_run=dry_run,
                max_spend=max_spend,
                max_in_flight=max_in_flight,
                submissions_per_second=submissions_per_second,
                refuse_duplicates=refuse_duplicates,
                sheet=sheet,
                ignore_columns=ignore_columns,
                shards=shards,
                fit_images=fit_images,
                api=api,
                archive=archive,
            )
            summary: BatchSummary = asyncio.run(running)
    except BatchError as error:
        print_summary(error.summary)
        raise
    print_summary(summary)
    if dry_run:
        err.print("No video was submitted and nothing was paid.")


def print_summary(summary: BatchSummary) -> None:
    """The table of all rows, and a one-sentence summary."""
    rows = [
        [
            str(row.line),
            row.key or "-",
            row.state,
            row.task_id or "-",
            str(row.duration_seconds or "-"),
            str(row.price if row.price is not None else "-"),
            row.object_name or row.note or "-",
        ]
        for row in summary.rows
    ]
    print_table(("line", "key", "state", "task", "seconds", "price", "object"), rows)
    for note in summary.notes:
        err.print(escape(note))
    err.print(escape(summary.sentence()))
