"""Finds the MinIO program, or builds it with Go.

It uses only the standard library, so that MinIO can be built while everything else is still being installed:
`python -m deployments.local.minio_build FOLDER`.
"""

import fcntl
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from deployments.local.processes import ManagedProcess

MINIO_PACKAGE: Final = "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c"
"""A version pinned by its commit. Go verifies its checksum, so every machine builds the same program."""

BUILD_TIMEOUT_SECONDS: Final = 1800.0
"""A first build was measured at 2 to 4 minutes on 2 idle cores, and at 9 minutes on busy ones."""

STORE_VARIABLE: Final = "SORA_OBJECT_STORE"
"""Environment variable: `minio` or `seaweedfs` selects the object store."""

Say = Callable[[str], None]


def find_minio(local_dir: Path) -> Path | None:
    """The `minio` program: on PATH, else in `<local_dir>/bin`."""
    built = local_dir / "bin" / "minio"
    # `which` with another search path also checks that the file is executable.
    found = shutil.which("minio") or shutil.which("minio", path=str(built.parent))
    return Path(found).resolve() if found else None


def build_minio(local_dir: Path, say: Say) -> Path | None:
    """Builds MinIO into `<local_dir>/bin` with Go, once: 2 to 4 minutes, needs the network.

    Several processes may call it at once: one builds, the others wait and use its result.

    Returns:
        The program, or None if Go is missing or the build failed. `say` is called with the reason.
    """
    local_dir = local_dir.resolve()  # Go rejects a relative GOBIN
    bin_dir = local_dir / "bin"
    go = shutil.which("go")
    if go is None:
        say("MinIO is not installed, and neither is Go, which could build it.")
        return None
    bin_dir.mkdir(parents=True, exist_ok=True)
    with _locked(local_dir / "minio-build.lock", say):
        built = bin_dir / "minio"
        if built.exists():
            return built
        say("MinIO is not installed. Building it with Go, once. This takes 2 to 4 minutes, longer on a busy machine.")
        # A folder on the same file system: the final rename is atomic, so a half-written program is never found.
        with tempfile.TemporaryDirectory(dir=bin_dir, prefix=".minio-") as folder:
            if not _go_install(go, Path(folder), local_dir, say):
                return None
            (Path(folder) / "minio").replace(built)
        say("MinIO is built.")
        return built


@contextmanager
def _locked(path: Path, say: Say) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("Another process is building MinIO. Waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file, or the end of this process, unlocks it


def _go_install(go: str, target: Path, local_dir: Path, say: Say) -> bool:
    process = ManagedProcess(
        # No debug tables, which -w removes from the program anyway: a fifth less processor time when measured.
        [go, "install", "-gcflags=all=-dwarf=false", "-ldflags=-s -w", MINIO_PACKAGE],
        name="go install",
        log_path=local_dir / "logs" / "minio-build.log",
        environment=_go_environment(os.environ, target, local_dir),
        cwd=target,  # outside any Go module or workspace
    )
    began = time.monotonic()
    reported_at = 0.0
    try:
        while process.is_alive() and (spent := time.monotonic() - began) < BUILD_TIMEOUT_SECONDS:
            if spent - reported_at >= 20:
                reported_at = spent
                say(f"Building MinIO… {spent:.0f} s")
            time.sleep(0.2)
    finally:
        code = process.stop()
    if code != 0:
        say(f"MinIO could not be built (exit code {code}); {process.log_path} ends with:\n{process.log_tail(8)}")
    return code == 0


def _go_environment(inherited: Mapping[str, str], target: Path, local_dir: Path) -> dict[str, str]:
    environment = {
        "GOGC": "400",  # measured: 120 s instead of 141, since the compiler collects garbage less often
        **inherited,
        "GOBIN": str(target),
        "CGO_ENABLED": "0",
        "GOWORK": "off",
    }
    # If they name another system, Go rejects GOBIN.
    environment.pop("GOOS", None)
    environment.pop("GOARCH", None)
    if not inherited.get("HOME"):  # without it, Go has no folder for its caches
        environment["GOPATH"] = str(local_dir / "go")
        environment["GOCACHE"] = str(local_dir / "go" / "build-cache")
        environment["GOFLAGS"] = f"{inherited.get('GOFLAGS', '')} -modcacherw".strip()  # so that `make clean` can
    return environment


if __name__ == "__main__":
    if os.environ.get(STORE_VARIABLE) != "seaweedfs":
        folder = Path(sys.argv[1])
        sys.exit(not (find_minio(folder) or build_minio(folder, print)))
