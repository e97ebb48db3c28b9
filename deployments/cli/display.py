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
    """Shows each generation with its five steps: a live table on a terminal, else a line for each change."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: dict[str, dict[Step, Progress]] = {}
        self._started = time.monotonic()
        self._began: dict[tuple[str, Step], float] = {}
        self._heard: dict[tuple[str, Step], float] = {}
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

    def __call__(self, news: Progress) -> None:
        """Receives progress; the listener for `flows.signals.progress.listen`. Called from any thread."""
        with self._lock:
            steps = self._news.setdefault(news.key, {})
            before = steps.get(news.step)
            steps[news.step] = news
            now = time.monotonic() - self._started
            self._began.setdefault((news.key, news.step), now)
            self._heard[news.key, news.step] = now
            first_end = news.done and not (before and before.done)
            if first_end:
                self._ended[news.key, news.step] = now
            # Of the unfinished steps only the wait is worth a line: all others take seconds.
            waits = news.step == "wait" and not news.done and not (before and before.doing == news.doing)
        if (first_end or waits) and not self._console.is_terminal:
            then = "" if news.next_seconds is None else f", next poll in {duration(news.next_seconds)}"
            self._console.print(f"{now:6.1f} s  {escape(news.key)}  {news.step}: {escape(news.doing)}{then}")

    def _render(self) -> RenderableType:
        with self._lock:
            return Group(*(self._one(key, dict(steps)) for key, steps in self._news.items()))

    def _one(self, key: str, steps: dict[Step, Progress]) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=2)
        grid.add_column(width=15)
        grid.add_column(width=8, no_wrap=True)
        grid.add_column()
        for step in STEPS:
            grid.add_row(*self._row(key, step, steps.get(step)))
        return Group(Text(key, style="bold"), grid)

    def _row(self, key: str, step: Step, news: Progress | None) -> tuple[RenderableType, ...]:
        if news is None:
            return Text("·", style="dim"), Text(step, style="dim"), "", ""
        if news.done:
            return (
                Text("✓", style="green"),
                step,
                f"{self._ended[key, step]:.1f} s",
                Text(harmless(news.doing), style="dim"),
            )
        now = time.monotonic() - self._started
        took, heard = now - self._began[key, step], self._heard[key, step]
        left = None if news.next_seconds is None else max(heard + news.next_seconds - now, 0)
        then = "" if left is None else f", next poll in {duration(left)}"
        return self._spinner, Text(step, style="cyan"), duration(took), Text(f"{harmless(news.doing)}{then}")


class BatchDisplay:
    """One bar for the whole batch and how many videos are in each step; without a terminal, a line per finished video.

    After the step `last`, a video counts as done.
    """

    def __init__(self, console: Console, last: Step) -> None:
        self._console, self._last = console, last
        self._at: dict[str, Step] = {}
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

    def __call__(self, news: Progress) -> None:
        """Receives progress; the listener for `flows.signals.progress.listen`. Called from any thread."""
        with self._lock:
            self._at[news.key] = news.step
            ended = news.step == self._last and news.done and news.key not in self._done
            if ended:
                self._done.add(news.key)
            under_way = Counter(step for key, step in self._at.items() if key not in self._done)
            done = len(self._done)
        steps = ", ".join(f"{number} {step}" for step, number in under_way.items())
        self._bar.update(self._videos, completed=done, steps=steps)
        if ended and not self._console.is_terminal:
            self._console.print(f"{done:5}  {escape(news.key)}  {news.step}: {escape(news.doing)}")


@contextmanager
def shown(display: StepDisplay | BatchDisplay, *, stopped: str, expect: Expect | None = None) -> Iterator[None]:
    """Shows what a flow in this process does, and then sends what Prefect has not sent yet.

    Args:
        stopped: what to do after Ctrl-C, in plain text.
        expect: gets the number of videos of a batch.
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
