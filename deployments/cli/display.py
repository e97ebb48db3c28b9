"""A live view of generations and their steps, and the table of results."""

import threading
import time
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deployments.cli.console import err, harmless, print_table
from flows.record.generation import Generation
from flows.signals.progress import STEPS, Progress, Step
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
            err.print(f"[yellow]![/] {escape(item.key)}: {escape(warning)}")
