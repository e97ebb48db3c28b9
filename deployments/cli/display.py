"""A live view of generations and their steps, and the table of what came out."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from deployments.cli.console import err, harmless, out, table
from flows.record.generation import Generation
from flows.signals.progress import STEPS, Progress, Step


class StepDisplay:
    """Shows each generation with its five steps: a live table on a terminal, else one line for each step that ended.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: dict[str, dict[Step, Progress]] = {}
        self._started = time.monotonic()
        self._ended: dict[tuple[str, Step], float] = {}
        self._spinner = Spinner("dots")
        self._lock = threading.Lock()
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=8, transient=False)

    @property
    def keys(self) -> list[str]:
        """The generations seen so far."""
        return list(self._news)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, news: Progress) -> None:
        """Takes news in; the listener for `flows.signals.progress.listen`. Called from any thread."""
        with self._lock:
            steps = self._news.setdefault(news.key, {})
            before = steps.get(news.step)
            steps[news.step] = news
            first_end = news.done and not (before and before.done)
            if first_end:
                self._ended[news.key, news.step] = time.monotonic() - self._started
        if first_end and not self._console.is_terminal:
            seconds = time.monotonic() - self._started
            self._console.print(f"{seconds:6.1f} s  {escape(news.key)}  {news.step}: {escape(news.doing)}")

    def _render(self) -> RenderableType:
        with self._lock:
            return Group(*(self._one(key, dict(steps)) for key, steps in self._news.items()))

    def _one(self, key: str, steps: dict[Step, Progress]) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=2)
        grid.add_column(width=15)
        grid.add_column(width=20)
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
        bar: RenderableType = ""
        if news.fraction is not None:
            bar = ProgressBar(total=1.0, completed=min(news.fraction, 1.0), width=18)
        return self._spinner, Text(step, style="cyan"), bar, Text(harmless(news.doing))


def print_generations(generations: list[Generation]) -> None:
    """The table of what was made: key, object, size, duration, checksum."""
    rows = table("key", "state", "object", "bytes", "seconds", "sha256")
    for item in generations:
        video = item.video
        rows.add_row(
            escape(item.key),
            item.state.value,
            escape(f"{video.bucket}/{video.name}") if video else "-",
            f"{video.size_bytes:,}" if video else "-",
            f"{video.duration_seconds:.2f}" if video and video.duration_seconds else "-",
            video.sha256 if video else "-",
        )
    out.print(rows)
    for item in generations:
        for warning in item.warnings:
            err.print(f"[yellow]![/] {escape(item.key)}: {escape(warning)}")
