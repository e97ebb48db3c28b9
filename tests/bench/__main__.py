"""`make bench`: the processor time, time, memory and requests that a video takes, compared with three other clients.

    python -m tests.bench [--rounds 3] [--only KIND,KIND] [--server sqlite,postgresql] [N ...]

Writes `docs/performance/results.json`, and next to it the tables as Markdown and the plots.
"""

import os
import tempfile

# Before Prefect is imported: it must use a temporary home, and must not start its own server.
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
from tests.bench.cases import Case, Measurement, measure
from tests.bench.environment import ROOT, Environment, Server, environments
from tests.bench.media import Decoding, make_video, measure_decoding, measure_lateness
from tests.bench.plots import PLOTS, plot, table
from tests.support import topology

RESULTS: Final = ROOT / "docs" / "performance"
DEFAULT: Final = (1, 10, 100)
MAX_NAIVE: Final = 10
"""The maximum number of videos for `naive`, whose processes, one per video, take 100 MB each."""
SLOW_ABOVE: Final = 300
"""Cases with more videos than this take minutes, so they run last."""
LARGE_VIDEO_COUNT: Final = 30
"""The number of videos in cases with larger files."""
CALLBACK_COUNT: Final = 100
"""The number of videos in callback mode, and in the poll mode case to compare it with."""
SIZES_MB: Final = {"0.1 MB": 0.1, "2 MB": 2, "20 MB": 20}
MAX_DECODED: Final = 12
VIDEO_SECONDS: Final = (4, 12)


class Result(BaseModel):
    """One case, and the medians of its rounds."""

    case: Case
    rounds: int
    median: Measurement


class Report(BaseModel):
    """The results of a whole run."""

    measured_at: datetime
    machine: str
    versions: dict[str, str]
    results: list[Result]
    decoding: list[Decoding]


def cases(numbers: Sequence[int], servers: Sequence[Server], *, extra: bool) -> list[Case]:
    """The cases to compare. Those of the same size are neighbors."""
    all_cases: list[Case] = []
    for videos in numbers:
        all_cases += [Case(kind=kind, videos=videos, server=server) for server in servers for kind in ("floor", "ours")]
        all_cases.append(Case(kind="bare", videos=videos))
        if videos <= MAX_NAIVE:
            all_cases.append(Case(kind="naive", videos=videos))
    if extra:
        # The tasks end over a span of 20 s. In callback mode, nothing is polled during the first minute.
        waits = {"initial_wait_seconds": 30.0, "poll_interval_seconds": 10.0}
        all_cases.append(Case(kind="ours", videos=CALLBACK_COUNT, mode="callback", speed=6, **waits))
        all_cases.append(Case(kind="ours", videos=LARGE_VIDEO_COUNT, mode="callback", video="720p", speed=6, **waits))
        waits = {"initial_wait_seconds": 20.0, "poll_interval_seconds": 2.0}
        all_cases.append(Case(kind="ours", videos=CALLBACK_COUNT, video="tiny, ends spread", speed=6, **waits))
        for video in (*SIZES_MB, "720p"):
            all_cases += [Case(kind=kind, videos=LARGE_VIDEO_COUNT, video=video) for kind in ("ours", "bare")]
    return all_cases


def source_videos(folder: Path) -> dict[str, Path]:
    """The videos that the sandbox serves, by name."""
    tiny = folder / "tiny.mp4"
    render_video(
        tiny, prompt="Dunes", duration_seconds=4, aspect_ratio="landscape", height=32, image=None, watermark=False
    )
    videos = {"tiny": tiny, "tiny, ends spread": tiny, "720p": folder / f"video-{VIDEO_SECONDS[0]}.mp4"}
    make_video(videos["720p"], VIDEO_SECONDS[0])
    for name, megabytes in SIZES_MB.items():
        # An MP4 box without meaning follows the tiny video. Its bytes are sent and stored, but not decoded.
        content = tiny.read_bytes()
        box = max(round(megabytes * 1_000_000) - len(content), 8)
        videos[name] = folder / f"{megabytes}.mp4"
        videos[name].write_bytes(content + box.to_bytes(4, "big") + b"free" + bytes(box - 8))
    return videos


async def run(
    numbers: Sequence[int], rounds: int, only: Sequence[str], servers: Sequence[Server], out: Path, *, extra: bool
) -> None:
    """Runs every case once per round, so that a busy phase of the machine affects all of them.

    The results so far are written after each case, because a run of an hour may be interrupted.
    """
    with tempfile.TemporaryDirectory(prefix="sora-bench-") as name:
        folder = Path(name)
        print("Rendering the videos that are served.", flush=True)
        served = await asyncio.to_thread(source_videos, folder)
        decoding = [await asyncio.to_thread(_decoding, folder, seconds) for seconds in VIDEO_SECONDS]
        chosen = [case for case in cases(numbers, servers, extra=extra) if not only or case.kind in only]
        chosen.sort(key=lambda case: case.videos > SLOW_ABOVE)
        measurements: dict[Case, list[Measurement]] = {case: [] for case in chosen}
        with environments(folder, list(dict.fromkeys(case.server for case in chosen))) as running:
            for _ in range(rounds):
                for case in chosen:
                    measurements[case].append(await _measured(case, running[case.server], served[case.video]))
                    await asyncio.to_thread(write, _report(measurements, decoding), out)


def _report(measurements: Mapping[Case, Sequence[Measurement]], decoding: list[Decoding]) -> Report:
    return Report(
        measured_at=datetime.now(UTC),
        machine=f"{platform.system()}, {platform.machine()}, {processors()} processors",
        versions={
            "python": platform.python_version(),
            **{name: version(name) for name in ("prefect", "obstore", "av")},
        },
        results=[
            Result(case=case, rounds=len(runs), median=Measurement.median(runs))
            for case, runs in measurements.items()
            if runs
        ],
        decoding=decoding,
    )


async def _measured(case: Case, running: Environment, video: Path) -> Measurement:
    with temporary_settings({PREFECT_API_URL: running.prefect.api_url}):
        row = await measure(case, running, video)
    print(
        f"{case.kind:6} {case.videos:5} {case.video:18} {case.mode:9} {case.server:10} client {row.client_ms:6.1f} ms "
        f"a video, Prefect {row.prefect_ms:6.1f}, PostgreSQL {row.database_ms:5.1f}, Redis {row.redis_ms:5.1f}, "
        f"MinIO {row.store_ms:5.1f}, {row.wall_seconds:6.1f} s, {row.archived} archived, UI right after "
        f"{row.ui_seconds}, {row.events_lost} of {row.events} events lost, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return row


def _decoding(folder: Path, seconds: int) -> Decoding:
    path = folder / f"video-{seconds}.mp4"
    if not path.exists():
        make_video(path, seconds)
    decoding = measure_decoding(path, seconds)
    decoding.late_idle_ms = asyncio.run(measure_lateness(path, videos=0))
    decoding.late_ms = asyncio.run(measure_lateness(path, videos=MAX_DECODED))
    return decoding


def write(report: Report, folder: Path) -> None:
    """Writes the results, the tables and the plots."""
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
