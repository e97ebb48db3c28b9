"""Tables in Markdown and plots in SVG of the measurements. Pure."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import log10
from typing import Final

from tests.bench.cases import Case, Measurement

NAMES: Final = {
    "ours": "this pipeline",
    "floor": "five empty Prefect tasks",
    "bare": "bare asyncio",
    "naive": "a process a video",
}
USUAL: Final = ("poll", "tiny", "sqlite")
"""Mode, video and server of the cases that are plotted."""
COLORS: Final = {"ours": "#2563eb", "floor": "#64748b", "bare": "#16a34a", "naive": "#dc2626"}
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 340, 64, 52, 40, 176

Results = Sequence[tuple[Case, Measurement]]


def table(results: Results) -> str:
    """A Markdown table with one row per case."""
    head = (
        "| client | videos | video | mode | client | Prefect server | PostgreSQL | Redis | MinIO | receiver | wall, s "
        "| over ideal "
        "| peak, MiB | store requests | provider requests | status calls | lag p50 / p95 / p99, s "
        "| asked p50 / p95, s | fetched p50 / p95, s | archived | UI right after, s | events lost |"
    )
    lines = [head, "|---|---|---|---|" + "---:|" * 18]
    for case, row in results:
        lag = " / ".join(_number(value) for value in (row.lag_p50, row.lag_p95, row.lag_p99))
        cells = [
            NAMES[case.kind] + (", PostgreSQL" if case.server == "postgresql" else ""),
            str(case.videos),
            case.video,
            "-" if case.kind == "floor" else case.mode,
            *(f"{value:.0f}" for value in (row.client_ms, row.prefect_ms)),
            *("-" if case.server == "sqlite" else f"{value:.0f}" for value in (row.database_ms, row.redis_ms)),
            *(f"{value:.0f}" for value in (row.store_ms, row.receiver_ms)),
            f"{row.wall_seconds:.1f}",
            _number(row.over_ideal),
            f"{row.peak_mib:.0f}",
            *(f"{value:.1f}" for value in (row.store_requests, row.provider_requests, row.status_requests)),
            lag if row.lag_p50 is not None else "-",
            *(
                f"{middle:.2f} / {late:.2f}" if middle is not None and late is not None else "-"
                for middle, late in ((row.asked_p50, row.asked_p95), (row.fetched_p50, row.fetched_p95))
            ),
            "-" if case.kind == "floor" else str(row.archived),
            *(["-", "-"] if case.kind == "bare" else [_number(row.ui_seconds), f"{row.events_lost} of {row.events}"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(results: Results, *, title: str, unit: str, value: Callable[[Measurement], float]) -> str:
    """A plot of how a value grows with the number of videos: one line per client, both axes logarithmic."""
    usual = [(case, row) for case, row in results if (case.mode, case.video, case.server) == USUAL]
    chosen = [(case, number) for case, row in usual if (number := value(row)) > 0]
    if not chosen:
        return ""
    videos = sorted({case.videos for case, _ in chosen})
    low, high = min(number for _, number in chosen) * 0.7, max(number for _, number in chosen) * 1.4

    def x(count: int) -> float:
        span = log10(videos[-1] / videos[0]) or 1
        return LEFT + (WIDTH - LEFT - RIGHT) * log10(count / videos[0]) / span

    def y(number: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * log10(number / low) / log10(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" fill="#1e293b">',
        "<style>text { font-family: system-ui, sans-serif }</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="600">{escape(title)}, {escape(unit)}</text>',
    ]
    ticks = _ticks(low, high)
    parts += [f'<path d="M{LEFT} {y(number):.1f}H{WIDTH - RIGHT}" stroke="#e2e8f0"/>' for number in ticks]
    parts += [f'<text x="{LEFT - 8}" y="{y(number) + 4:.1f}" text-anchor="end">{number:g}</text>' for number in ticks]
    parts += [
        f'<text x="{x(count):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{count}</text>' for count in videos
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 12}" text-anchor="middle">videos at once</text>')
    parts += _lines(chosen, x, y)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _lines(chosen: Sequence[tuple[Case, float]], x: Callable[[int], float], y: Callable[[float], float]) -> list[str]:
    drawn: list[str] = []
    labels: list[float] = []
    for kind, name in NAMES.items():
        points = sorted((case.videos, number) for case, number in chosen if case.kind == kind)
        if not points:
            continue
        color, places = COLORS[kind], [(x(count), y(number)) for count, number in points]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        drawn += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="3.5" fill="{color}"/>' for left, top in places]
        right, at = places[-1]
        while any(abs(at - other) < 14 for other in labels):
            at += 4
        labels.append(at)
        drawn.append(f'<text x="{right + 10:.1f}" y="{at + 4:.1f}" fill="{color}">{escape(name)}</text>')
    return drawn


def _ticks(low: float, high: float) -> list[float]:
    steps = [factor * 10**power for power in range(-3, 6) for factor in (1, 2, 5)]
    return [step for step in steps if low <= step <= high]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


PLOTS: Final[Mapping[str, tuple[str, str, Callable[[Measurement], float]]]] = {
    "client": ("Processor of the client", "milliseconds a video", lambda row: row.client_ms),
    "server": ("Processor of the Prefect server", "milliseconds a video", lambda row: row.prefect_ms),
    "wall": ("From the start of the run to its end", "seconds", lambda row: row.wall_seconds),
    "memory": ("Most memory of the client", "MiB", lambda row: row.peak_mib),
}
