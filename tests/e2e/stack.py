"""`sora up` in its own folder, as a child of this process."""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.client.base import PrefectHttpxSyncClient

from deployments.local.processes import ManagedProcess, wait_until_ready
from deployments.local.stack_info import StackInfo
from tests.e2e.running import ROOT, SPEED
from tests.support.fork_server import ForkServer
from tests.support.prefect_home import prepare


@contextmanager
def stack_up(folder: Path, *, video_height: int = 90) -> Iterator[tuple[Path, dict[str, str]]]:
    """Starts a stack. Yields its data directory and the environment for its commands."""
    prepare(folder / "local" / "prefect")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        "PATH": f"{ROOT / '.local/bin'}:{os.environ['PATH']}",  # the MinIO that the suite has built
        "HOME": str(folder),
        "SORA_LOCAL_DIR": str(folder / "local"),
    }
    command = [sys.executable, "-m", "deployments.cli", "up", "--speed", str(SPEED)]
    process = ManagedProcess(
        [*command, "--video-height", str(video_height)],
        name="sora up",
        log_path=folder / "up.log",
        environment=environment,
        cwd=ROOT,
    )
    try:
        wait_until_ready(
            lambda: "Ctrl-C stops everything" in process.log_path.read_text(),
            process=process,
            timeout_seconds=300,
        )
        info = StackInfo.read(folder / "local")
        assert info is not None
        with ForkServer(folder / "forks", environment | info.load_environment()) as forks:
            # One deployment is not changed: the one that generates a video when another flow has completed.
            fork_runs(info.public_environment["PREFECT_API_URL"], forks, lambda name: name != "after-storyboard")
            yield folder / "local", environment
    finally:
        process.stop(30)


def fork_runs(api_url: str, forks: ForkServer, chosen: Callable[[str], bool]) -> None:
    """Makes the worker fork each run. Otherwise, it would start three processes in turn, which spend 5 s on imports."""
    variables = {"command": shlex.join(forks.command("prefect.engine"))}
    with PrefectHttpxSyncClient(base_url=f"{api_url}/deployments") as http:
        for found in http.post("/filter").json():
            if chosen(found["name"]):
                http.patch(f"/{found['id']}", json={"job_variables": variables})
