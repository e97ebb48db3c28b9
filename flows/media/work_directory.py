"""A folder on the local disk for one generation's files between download and archive.

After a crash, the next run on this machine finds what was downloaded. Two processes may work on one key at once, and
must not write to the same file, so the second gets its own folder.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.settings import get_current_settings

from flows.record.pipeline_errors import SupersededError


def work_root() -> Path:
    """`SORA_WORK_DIR`, or `sora-work` in Prefect's home, the one folder that every Prefect process can write to."""
    named = os.environ.get("SORA_WORK_DIR")
    return Path(named) if named else get_current_settings().home / "sora-work"


@contextmanager
def work_folder(root: Path, key: str, task_id: str) -> Iterator[Path]:
    """A folder for the files of one task, locked for this process while in use.

    It is removed once the files are archived: when the block succeeds, or when the task is superseded and its video
    is archived alongside. After any other error, the next run finds the files.

    Its name contains the task: after a second submission, the first one's files must not be mistaken for the result.
    """
    name = f"{key}.{hashlib.sha256(task_id.encode()).hexdigest()[:12]}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared = root / name
    shared.mkdir(mode=0o700, exist_ok=True)
    lock = _lock(shared / ".lock")
    folder = shared if lock is not None else Path(tempfile.mkdtemp(prefix=f"{name}.", dir=root))
    done = lock is None  # no other run would find this temporary folder
    try:
        yield folder
        done = True
    except SupersededError:
        done = True
        raise
    finally:
        if done:
            shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(path: Path) -> int | None:
    """Locks a folder until the returned descriptor is closed.

    None: another process has locked it, or has just removed it. A lock on a removed file has no effect.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # the process that used it has just archived its files
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
