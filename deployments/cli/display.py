"""Live views of generations and batches, and the table of results."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deployments.cli.console import err, harmless, print_table, warn
from deployments.connection import flush
from flows.record.generation import Generation
from flows.signals.progress import STEPS, Expect, Progress, Step, listen
from flows.wording import duration


class StepDisplay:
    """Shows each generation with its five steps: a live table on a terminal, otherwise a line per change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._reports: dict[str, dict[Step, Progress]] = {}
        self._started = time.monotonic()
        self._began: dict[tuple[str, Step], float] = {}
        self._reported_at: dict[tuple[str, Step], float] = {}
        self._ended: dict[tuple[str, Step], float] = {}
        self._spinner = Spinner("dots")
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, report: Progress) -> None:
        """Receives progress; the listener for `flows.signals.progress.listen`. Called from any thread."""
        with self._lock:
            steps = self._reports.setdefault(report.key, {})
            before = steps.get(report.step)
            steps[report.step] = report
            now = time.monotonic() - self._started
            self._began.setdefault((report.key, report.step), now)
            self._reported_at[report.key, report.step] = now
            first_end = report.done and not (before and before.done)
            if first_end:
                self._ended[report.key, report.step] = now
            # Of the unfinished steps, only the wait gets lines: all others take only seconds.
            waits = report.step == "wait" and not report.done and not (before and before.doing == report.doing)
        if (first_end or waits) and not self._console.is_terminal:
            then = "" if report.next_seconds is None else f", next poll in {duration(report.next_seconds)}"
            self._console.print(f"{now:6.1f} s  {escape(report.key)}  {report.step}: {escape(report.doing)}{then}")

    def _render(self) -> RenderableType:
        with self._lock:
            return Group(*(self._one(key, dict(steps)) for key, steps in self._reports.items()))

    def _one(self, key: str, steps: dict[Step, Progress]) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=2)
        grid.add_column(width=15)
        grid.add_column(width=8, no_wrap=True)
        grid.add_column()
        for step in STEPS:
            grid.add_row(*self._row(key, step, steps.get(step)))
        return Group(Text(key, style="bold"), grid)

    def _row(self, key: str, step: Step, report: Progress | None) -> tuple[RenderableType, ...]:
        if report is None:
            return Text("·", style="dim"), Text(step, style="dim"), "", ""
        if report.done:
            return (
                Text("✓", style="green"),
                step,
                f"{self._ended[key, step]:.1f} s",
                Text(harmless(report.doing), style="dim"),
            )
        now = time.monotonic() - self._started
        took, reported_at = now - self._began[key, step], self._reported_at[key, step]
        left = None if report.next_seconds is None else max(reported_at + report.next_seconds - now, 0)
        then = "" if left is None else f", next poll in {duration(left)}"
        return self._spinner, Text(step, style="cyan"), duration(took), Text(f"{harmless(report.doing)}{then}")


class BatchDisplay:
    """One bar for the whole batch, with the number of videos in each step; without a terminal, a line per ended video.

    A video counts as done after the step `last`.
    """

    def __init__(self, console: Console, last: Step) -> None:
        self._console, self._last = console, last
        self._current: dict[str, Step] = {}
        self._done: set[str] = set()
        self._lock = threading.Lock()
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[steps]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._videos = self._bar.add_task("videos", total=None, steps="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def expect(self, videos: int) -> None:
        """Sets how many videos there will be."""
        self._bar.update(self._videos, total=videos)

    def __call__(self, report: Progress) -> None:
        """Receives progress; the listener for `flows.signals.progress.listen`. Called from any thread."""
        with self._lock:
            self._current[report.key] = report.step
            ended = report.step == self._last and report.done and report.key not in self._done
            if ended:
                self._done.add(report.key)
            in_progress = Counter(step for key, step in self._current.items() if key not in self._done)
            done = len(self._done)
        steps = ", ".join(f"{number} {step}" for step, number in in_progress.items())
        self._bar.update(self._videos, completed=done, steps=steps)
        if ended and not self._console.is_terminal:
            self._console.print(f"{done:5}  {escape(report.key)}  {report.step}: {escape(report.doing)}")


@contextmanager
def shown(display: StepDisplay | BatchDisplay, *, stopped: str, expect: Expect | None = None) -> Iterator[None]:
    """Shows the progress of a flow in this process, and then sends the logs and events that Prefect has not sent yet.

    Args:
        stopped: advice after Ctrl-C, in plain text.
        expect: called with the number of videos in a batch.
    """
    with display:
        try:
            listen(display, expect=expect)
            yield
        except (KeyboardInterrupt, asyncio.CancelledError):
            err.print(f"Stopped. Nothing is lost: {escape(stopped)}")
            raise KeyboardInterrupt from None
        finally:
            flush()


def print_generations(generations: list[Generation]) -> None:
    """The table of results: key, object, size, duration, checksum."""
    rows = []
    for item in generations:
        video = item.video
        rows.append([
            item.key,
            item.state.value,
            f"{video.bucket}/{video.name}" if video else "-",
            f"{video.size_bytes:,}" if video else "-",
            f"{video.duration_seconds:.2f}" if video and video.duration_seconds else "-",
            video.sha256 if video else "-",
        ])  # fmt: skip
    print_table(("key", "state", "object", "bytes", "seconds", "sha256"), rows)
    for item in generations:
        for warning in item.warnings:
            warn(f"{item.key}: {warning}")
