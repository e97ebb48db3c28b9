"""The work directory for files between download and archive: it survives a crash, and is never shared by two runs."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from flows.media.work_directory import work_folder, work_root
from flows.record.pipeline_errors import SupersededError

KEY = "spring-sale-03"


def test_root_is_set_by_environment_or_defaults_to_prefect_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SORA_WORK_DIR", str(tmp_path / "named"))
    assert work_root() == tmp_path / "named"
    for unset in ("", None):
        if unset is None:
            monkeypatch.delenv("SORA_WORK_DIR")
        else:
            monkeypatch.setenv("SORA_WORK_DIR", unset)
        with temporary_settings({PREFECT_HOME: tmp_path / "home"}):
            assert work_root() == tmp_path / "home" / "sora-work"


def test_files_survive_failure_and_are_removed_after_success(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "work"

    def crash() -> None:
        with work_folder(root, KEY, "t1") as folder:
            (folder / "video.mp4.part").write_bytes(b"half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    (first,) = root.iterdir()
    with work_folder(root, KEY, "t1") as second:
        assert second == first
        assert (second / "video.mp4.part").read_bytes() == b"half"
    assert not second.exists()
    with work_folder(root, KEY, "t1") as third:
        assert not (third / "video.mp4.part").exists()


def test_only_the_owner_can_read_the_work_directory(tmp_path: Path) -> None:
    with work_folder(tmp_path / "work", KEY, "t1") as folder:
        assert folder.stat().st_mode & 0o077 == 0
        assert folder.parent.stat().st_mode & 0o077 == 0


def test_each_task_of_each_key_has_its_own_folder(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path, "a", "t1") as one,
        work_folder(tmp_path, "a", "t2") as two,
        work_folder(tmp_path, "a.b", "t1") as three,
        work_folder(tmp_path, "k" * 128, "../../etc/passwd\n" * 20) as four,
    ):
        folders = {one, two, three, four}
    assert len(folders) == 4
    assert {folder.parent for folder in folders} == {tmp_path}


def test_concurrent_use_of_same_task_gets_temporary_folder(tmp_path: Path) -> None:
    with work_folder(tmp_path, KEY, "t1") as first:
        (first / "video.mp4").write_bytes(b"first")
        with work_folder(tmp_path, KEY, "t1") as second:
            assert second != first
            assert second.parent == tmp_path
            assert not (second / "video.mp4").exists()
            assert second.stat().st_mode & 0o077 == 0
            (second / "video.mp4").write_bytes(b"second")
        assert not second.exists()
        assert (first / "video.mp4").read_bytes() == b"first"
    with work_folder(tmp_path, KEY, "t1") as again:
        assert again == first


def test_temporary_folder_is_removed_after_failure_too(tmp_path: Path) -> None:
    with (
        work_folder(tmp_path, KEY, "t1"),
        pytest.raises(RuntimeError, match="crash"),
        work_folder(tmp_path, KEY, "t1") as second,
    ):
        raise RuntimeError("crash")
    assert not second.exists()


def test_files_of_superseded_task_are_removed(tmp_path: Path) -> None:
    def supersede() -> None:
        with work_folder(tmp_path, KEY, "t1") as folder:
            (folder / "video.mp4").write_bytes(b"archived beside")
            raise SupersededError("another task counts")

    with pytest.raises(SupersededError):
        supersede()
    assert list(tmp_path.iterdir()) == []


HOLD = """
import sys, pathlib
from flows.media.work_directory import work_folder
with work_folder(pathlib.Path(sys.argv[1]), sys.argv[2], "t1") as folder:
    (folder / "video.mp4.part").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.readline()
"""


def test_process_locks_its_folder_until_it_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), KEY],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with work_folder(tmp_path, KEY, "t1") as mine:
            assert mine != theirs
            (mine / "video.mp4.part").write_bytes(b"mine")
            assert (theirs / "video.mp4.part").read_bytes() == b"half"
        other.kill()
    with work_folder(tmp_path, KEY, "t1") as mine:
        assert mine == theirs
        assert (mine / "video.mp4.part").read_bytes() == b"half"


def test_folder_removed_while_waiting_for_its_lock_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock on a removed file keeps no one out: without a check, the next two runs would write into one folder."""
    real = fcntl.flock

    with work_folder(tmp_path, KEY, "t1") as first:
        pass

    def remove_folder_then_lock(descriptor: int, operation: int) -> None:
        shutil.rmtree(first)
        real(descriptor, operation)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", remove_folder_then_lock)
        second = work_folder(tmp_path, KEY, "t1")
        mine = second.__enter__()
    with work_folder(tmp_path, KEY, "t1") as third:
        assert mine.is_dir()
        assert mine != third
    second.__exit__(None, None, None)
