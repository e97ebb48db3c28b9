"""`make bench`: what a video costs in processor, time, memory and requests, beside three other ways to do it.

    python -m tests.bench [--rounds 3] [--only KIND,KIND] [--server sqlite,postgresql] [N ...]

Writes `docs/performance/results.json`, the tables as Markdown and the plots beside it.
"""

import os
import tempfile

# Before Prefect is imported: whose home it uses, and that it starts no server of its own.
_HOME = tempfile.TemporaryDirectory(prefix="sora-bench-")
for _name in [name for name in os.environ if name.startswith(("PREFECT_", "APIXO_", "MINIO_", "SORA_"))]:
    del os.environ[_name]
os.environ |= {
    "PREFECT_HOME": f"{_HOME.name}/prefect",
    "PREFECT_PROFILE": "ephemeral",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
}

import argparse
import asyncio
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final, get_args

from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import BaseModel

from deployments.sandbox.rendering import render_video
from flows.media.videos import processors
from tests.bench.cases import Case, Measured, measure
from tests.bench.environment import ROOT, Environment, Server, environments
from tests.bench.media import Decoding, make_video, measure_decoding, measure_lateness
from tests.bench.plots import PLOTS, plot, table
from tests.support import topology

RESULTS: Final = ROOT / "docs" / "performance"
DEFAULT: Final = (1, 10, 100)
MOST_NAIVE: Final = 10
"""A process a video takes 100 MB each."""
LARGE: Final = 300
"""More videos than these take minutes, and come last."""
SIZED: Final = 30
"""How many videos of a larger size."""
CALLED: Final = 100
SIZES_MB: Final = {"0.1 MB": 0.1, "2 MB": 2, "20 MB": 20}
MOST_DECODED: Final = 12
VIDEO_SECONDS: Final = (4, 12)


class Result(BaseModel):
    """One case with its medians."""

    case: Case
    rounds: int
    median: Measured


class Report(BaseModel):
    """All of a run."""

    measured_at: datetime
    machine: str
    versions: dict[str, str]
    results: list[Result]
    decoding: list[Decoding]


def cases(numbers: Sequence[int], servers: Sequence[Server], *, extra: bool) -> list[Case]:
    """What is compared, side by side."""
    made: list[Case] = []
    for videos in numbers:
        made += [Case(kind=kind, videos=videos, server=server) for server in servers for kind in ("floor", "ours")]
        made.append(Case(kind="bare", videos=videos))
        if videos <= MOST_NAIVE:
            made.append(Case(kind="naive", videos=videos))
    if extra:
        # Ends are spread over 20 s. In callback mode nobody asks before a minute has passed.
        waits = {"initial_wait_seconds": 30.0, "poll_interval_seconds": 10.0}
        made.append(Case(kind="ours", videos=CALLED, mode="callback", speed=6, **waits))
        made.append(Case(kind="ours", videos=SIZED, mode="callback", video="720p", speed=6, **waits))
        waits = {"initial_wait_seconds": 20.0, "poll_interval_seconds": 2.0}
        made.append(Case(kind="ours", videos=CALLED, video="tiny, ends spread", speed=6, **waits))
        for video in (*SIZES_MB, "720p"):
            made += [Case(kind=kind, videos=SIZED, video=video) for kind in ("ours", "bare")]
    return made


def source_videos(folder: Path) -> dict[str, Path]:
    """The videos that are served, by their names."""
    tiny = folder / "tiny.mp4"
    render_video(
        tiny, prompt="Dunes", duration_seconds=4, aspect_ratio="landscape", height=32, image=None, watermark=False
    )
    made = {"tiny": tiny, "tiny, ends spread": tiny, "720p": folder / f"video-{VIDEO_SECONDS[0]}.mp4"}
    make_video(made["720p"], VIDEO_SECONDS[0])
    for name, megabytes in SIZES_MB.items():
        # A box that means nothing, behind the tiny video: its size is sent and stored, and takes nothing to decode.
        content = tiny.read_bytes()
        box = max(round(megabytes * 1_000_000) - len(content), 8)
        made[name] = folder / f"{megabytes}.mp4"
        made[name].write_bytes(content + box.to_bytes(4, "big") + b"free" + bytes(box - 8))
    return made


async def run(
    numbers: Sequence[int], rounds: int, only: Sequence[str], servers: Sequence[Server], out: Path, *, extra: bool
) -> None:
    """Every case, each round after the other, so that a busy minute of the machine meets all of them.

    What is known is written after each case: a run of an hour may be ended.
    """
    with tempfile.TemporaryDirectory(prefix="sora-bench-") as name:
        folder = Path(name)
        print("Rendering the videos that are served.", flush=True)
        served = await asyncio.to_thread(source_videos, folder)
        decoding = [await asyncio.to_thread(_decoding, folder, seconds) for seconds in VIDEO_SECONDS]
        chosen = [case for case in cases(numbers, servers, extra=extra) if not only or case.kind in only]
        chosen.sort(key=lambda case: case.videos > LARGE)
        made: dict[Case, list[Measured]] = {case: [] for case in chosen}
        with environments(folder, list(dict.fromkeys(case.server for case in chosen))) as running:
            for _ in range(rounds):
                for case in chosen:
                    made[case].append(await _measured(case, running[case.server], served[case.video]))
                    await asyncio.to_thread(write, _report(made, decoding), out)


def _report(made: Mapping[Case, Sequence[Measured]], decoding: list[Decoding]) -> Report:
    return Report(
        measured_at=datetime.now(UTC),
        machine=f"{platform.system()}, {platform.machine()}, {processors()} processors",
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("prefect", "obstore", "av")},
        },
        results=[
            Result(case=case, rounds=len(runs), median=Measured.median(runs)) for case, runs in made.items() if runs
        ],
        decoding=decoding,
    )


async def _measured(case: Case, running: Environment, video: Path) -> Measured:
    with temporary_settings({PREFECT_API_URL: running.prefect.api_url}):
        made = await measure(case, running, video)
    print(
        f"{case.kind:6} {case.videos:5} {case.video:18} {case.mode:9} {case.server:10} client {made.client_ms:6.1f} ms "
        f"a video, Prefect {made.prefect_ms:6.1f}, PostgreSQL {made.database_ms:5.1f}, Redis {made.redis_ms:5.1f}, "
        f"MinIO {made.store_ms:5.1f}, {made.wall_seconds:6.1f} s, {made.archived} archived, UI right after "
        f"{made.ui_seconds}, {made.events_lost} of {made.events} events lost, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return made


def _decoding(folder: Path, seconds: int) -> Decoding:
    path = folder / f"video-{seconds}.mp4"
    if not path.exists():
        make_video(path, seconds)
    made = measure_decoding(path, seconds)
    made.late_idle_ms = asyncio.run(measure_lateness(path, videos=0))
    made.late_ms = asyncio.run(measure_lateness(path, videos=MOST_DECODED))
    return made


def write(report: Report, folder: Path) -> None:
    """The results, the tables, the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(report.model_dump_json(indent=1) + "\n")
    results = [(result.case, result.median) for result in report.results]
    (folder / "tables.md").write_text(table(results))
    for name, (title, unit, value) in PLOTS.items():
        drawn = plot(results, title=title, unit=unit, value=value)
        if drawn:
            (folder / f"{name}.svg").write_text(drawn)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, default=DEFAULT, help="videos at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="kinds of clients, separated by commas")
    parser.add_argument("--server", default="sqlite", help=f"of {', '.join(get_args(Server))}, separated by commas")
    parser.add_argument("--no-extra", action="store_true", help="leave out callbacks and larger videos")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    only = [kind for kind in given.only.split(",") if kind]
    servers = given.server.split(",")
    if unknown := set(servers) - set(get_args(Server)):
        parser.error(f"there is no server {', '.join(sorted(unknown))}")
    if "postgresql" in servers and (reason := topology.missing()) is not None:
        parser.error(reason)
    asyncio.run(
        run(
            given.numbers,
            given.rounds,
            only,
            servers,
            given.out,
            extra=not given.no_extra,
        )
    )
    print(f"Written to {given.out}.")


if __name__ == "__main__":
    main()
