"""The outcome of a batch, row by row: the flow's result, its table in the Prefect UI, its error."""

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, Literal

from prefect.artifacts import acreate_table_artifact
from prefect.settings import get_current_settings
from pydantic import BaseModel, Field, computed_field

from blocks import VideoArchive
from flows.batch.calendar_rows import BadRow
from flows.record.generation import Generation
from flows.record.pipeline_errors import PipelineError
from flows.signals.artifacts import artifact_key, shown
from flows.wording import counted

RowState = Literal[
    "claimed", "submitted", "succeeded", "archived", "rejected", "failed", "unconfirmed",
    "bad row", "not due", "not submitted", "ready",
]  # fmt: skip
WITH_VIDEO: Final = ("ready", "claimed", "submitted", "succeeded", "archived")
"""The states of rows that have a video, or will have one."""
SHOWN: Final = 20
"""How many problems an error's message lists; the table has all."""


class BatchRow(BaseModel):
    """One row of a batch and how far it came."""

    line: int = Field(description="Line in the calendar, or position in the list; the first is 1.")
    key: str = Field(description="The generation's key; empty for an invalid row.")
    state: RowState = Field(
        description=(
            "The ledger's state, or why there is none: `bad row`, `not due`, `not submitted` or, in a dry run, "
            "`ready` to be submitted."
        )
    )
    problem: str = Field(default="", description="What is wrong, and what to do; empty when nothing is.")
    note: str = Field(default="", description="Anything else, such as a warning about the video.")
    prompt: str = Field(default="", description="Its first 200 characters; empty for an invalid row.")
    poster_name: str | None = Field(default=None, description="The archived picture.")
    task_id: str | None = None
    duration_seconds: int | None = Field(default=None, description="Requested length of the video.")
    price: Decimal | None = Field(default=None, description="By the API block's prices; None without one.")
    object_name: str | None = Field(default=None, description="The archived video.")
    link: str | None = Field(default=None, description="Where to watch it. Never signed.")

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.problem

    @property
    def explanation(self) -> str:
        """What to do about the row, or else its note. Without the key, which is shown next to it."""
        return (self.problem or self.note).removeprefix(f"{self.key}: ")


class BatchSummary(BaseModel):
    """The result of `generate-batch`."""

    key: str
    dry_run: bool = Field(default=False, description="Nothing was submitted; the price is what would be paid.")
    price: Decimal | None = Field(
        default=None, description="What this run paid, or in a dry run would pay; None without a price."
    )
    spent_before: Decimal | None = Field(default=None, description="What earlier runs of this batch paid.")
    blocked: str | None = Field(
        default=None,
        description=(
            "Why the rest was not submitted: APIXO rejects the account, the key or the model, or gives no clear "
            "answers, or a ceiling is reached; None: no such reason."
        ),
    )
    notes: list[str] = Field(
        default=[], description="What was left out of the calendar, and the balance of the APIXO account."
    )
    rows: list[BatchRow]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def counts(self) -> dict[str, int]:
        """How many rows are in each state."""
        return dict(sorted(Counter(row.state for row in self.rows).items()))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds_of_video(self) -> int:
        """Seconds of video of all rows that are archived, in progress or ready."""
        return sum(row.duration_seconds or 0 for row in self.rows if row.state in WITH_VIDEO)

    @property
    def failed(self) -> list[BatchRow]:
        """The rows with a problem."""
        return [row for row in self.rows if not row.ok]

    @property
    def urgent_first(self) -> list[BatchRow]:
        """The rows in the order in which they are shown: those that need attention first."""
        return sorted(self.rows, key=lambda row: (row.ok, row.line))

    def sentence(self) -> str:
        """The summary in one sentence."""
        counts = ", ".join(f"{number} {state}" for state, number in self.counts.items())
        price = "" if self.price is None else f", {'would pay' if self.dry_run else 'paid'} {self.price}"
        return f"{counted(len(self.rows), 'row')}: {counts}; {self.seconds_of_video} s of video{price}."


class BatchError(PipelineError):
    """Base of both errors of a batch.

    Attributes:
        summary: every row and its outcome.
    """

    def __init__(self, message: str, *, summary: BatchSummary) -> None:
        super().__init__(message, key=summary.key)
        self.summary = summary


class BatchFailedError(BatchError):
    """Some rows failed, or wait for a decision. The others are done. Running the batch again does the rest."""


class BadRowsError(BatchError):
    """Rows of the calendar are invalid. Nothing was submitted."""


def summarize(
    key: str,
    rows: Sequence[BatchRow],
    *,
    price: Decimal | None,
    spent_before: Decimal | None,
    blocked: str | None = None,
    notes: Sequence[str] = (),
    dry_run: bool = False,
) -> BatchSummary:
    """The summary of these rows, sorted by line. Pure."""
    return BatchSummary(
        key=key,
        dry_run=dry_run,
        price=price,
        spent_before=spent_before,
        blocked=blocked,
        notes=list(notes),
        rows=sorted(rows, key=lambda row: row.line),
    )


def bad_row(row: BadRow) -> BatchRow:
    """An invalid row, with everything that is wrong with it. Pure."""
    problem = "; ".join(f"{item.field}: {item.message}" if item.field else item.message for item in row.problems)
    return BatchRow(line=row.line, key="", state="bad row", problem=problem)


def bad_rows_error(rows: Sequence[BadRow], summary: BatchSummary) -> BadRowsError:
    """Lists every bad row with its line; if there are many, only the first. Pure."""
    invalid = f"{counted(len(rows), 'row')} {'is' if len(rows) == 1 else 'are'} invalid"
    return BadRowsError(
        f"Batch {summary.key} was not started: {invalid}. Nothing was submitted. Fix the file, or run it with "
        "on_bad_rows set to skip to continue with the others."
        + _listed([f"line {row.line}: {bad_row(row).problem}" for row in rows]),
        summary=summary,
    )


def batch_error(summary: BatchSummary) -> BatchFailedError:
    """Lists what is wrong with each failed row; if there are many, only the first. Pure."""
    failed = summary.failed
    again = (
        ""
        if summary.dry_run
        else " Follow what the rows say. A new run with the same key then does the rest, and pays for nothing twice."
    )
    first = f"The rest of the batch was not submitted: {summary.blocked} " if summary.blocked else ""
    return BatchFailedError(
        f"{first}Batch {summary.key} is not {'ready' if summary.dry_run else 'complete'}. {summary.sentence()}{again}"
        + _listed([f"line {f'{row.line} {row.key}'.strip()} ({row.state}): {row.problem}" for row in failed]),
        summary=summary,
    )


def _listed(problems: Sequence[str]) -> str:
    more = [f"… and {len(problems) - SHOWN} more, in the run's table"] if len(problems) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*problems[:SHOWN], *more])


def link_of(generation: Generation, archive: VideoArchive) -> str | None:
    """Where to watch an archived video: in the gallery, in the store, or else its artifact in the UI.

    It becomes part of the flow's result, so it contains no token: the gallery requires a login.
    """
    if generation.video is None:
        return None
    public = archive.gallery_link(generation.key) or archive.public_link(generation.video.name)
    if public is not None:
        return public
    ui_url = get_current_settings().ui_url
    return f"{ui_url}/artifacts/key/{artifact_key(generation.key)}" if ui_url else None


def table(summary: BatchSummary) -> list[dict[str, int | str]]:
    """The rows as the Prefect UI shows them: those that need attention first. Pure.

    The text comes last: the UI does not wrap it, so columns after it would be off the screen.
    The sentence above the table has the total seconds and price; `sora show KEY` has the task and the objects.
    """
    return [
        {
            "line": row.line,
            "key": row.key,
            "state": row.state,
            "video": f"[open]({row.link})" if row.link else row.object_name or "",
            "what to do": row.explanation,
        }
        for row in summary.urgent_first
    ]


async def publish_table(summary: BatchSummary) -> None:
    """Puts the table of all rows into the Prefect UI."""
    made = acreate_table_artifact(
        table(summary),
        key=artifact_key(summary.key, kind="batch"),
        description=" ".join([*(["Dry run."] if summary.dry_run else []), summary.sentence(), *summary.notes]),
    )
    await shown(made, what=f"the table of {summary.key}")
