"""The local object store: a real MinIO, the SeaweedFS fallback, building MinIO, and the credentials."""

import io
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from minio import Minio
from minio.error import S3Error

from deployments.local.minio_build import build_minio, find_minio
from deployments.local.processes import ProcessError, free_port, http_get
from deployments.local.stack_info import Credentials
from deployments.local.store_server import ObjectStoreServer, start_object_store
from tests.e2e.running import descendants

CHECKOUT = Path(__file__).parents[3]
KEYS = Credentials("sora", "a-secret-of-enough-length")

# The first test may have to build MinIO.
pytestmark = pytest.mark.timeout(2000)


@pytest.fixture(scope="module")
def minio_local_dir() -> Path:
    """A folder with a MinIO. If there is none, it is built there."""
    local_dir = CHECKOUT / ".local"
    if (find_minio(local_dir) or build_minio(local_dir, print)) is None:
        pytest.skip("MinIO is neither installed nor can it be built here")
    return local_dir


def client(server: ObjectStoreServer, secret_key: str | None = None) -> Minio:
    return Minio(
        server.endpoint,
        access_key=server.access_key,
        secret_key=secret_key or server.secret_key,
        secure=False,
        region="us-east-1",
    )


def listening_addresses(pid: int) -> set[str]:
    """The IP addresses on which a process listens."""
    folder = Path("/proc") / str(pid)
    sockets = set()
    for item in (folder / "fd").iterdir():
        with suppress(FileNotFoundError):  # closed in the meantime
            sockets.add(str(item.readlink()))
    found = set()
    for line in [
        *(folder / "net/tcp").read_text().splitlines()[1:],
        *(folder / "net/tcp6").read_text().splitlines()[1:],
    ]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in sockets:
            packed = bytes.fromhex(local.partition(":")[0])
            found.add(socket.inet_ntop(socket.AF_INET, packed[::-1]) if len(packed) == 4 else "an IPv6 one")
    return found


def fake_go(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Puts a fake `go` on PATH that appends its arguments to the returned file and then runs the script."""
    calls = folder / "calls"
    bin_dir = folder / "fake-bin"
    bin_dir.mkdir()
    (bin_dir / "go").write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{script}\n')
    (bin_dir / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_dir}:/usr/bin:/bin")
    return calls


WRITES_A_PROGRAM = "sleep 0.5; printf '#!/bin/sh\\n' > $GOBIN/minio; chmod +x $GOBIN/minio"


def test_minio_keeps_objects_across_restarts_and_checks_its_secret(minio_local_dir: Path, tmp_path: Path) -> None:
    for round_ in (1, 2):
        server = start_object_store(
            local_dir=minio_local_dir, data_dir=tmp_path / "data", log_dir=tmp_path, credentials=KEYS
        ).ready()
        with server.process:
            assert server.kind == "minio"
            assert server.endpoint.startswith("127.0.0.1:")
            if round_ == 1:
                client(server).make_bucket("videos")
                client(server).put_object("videos", "a.mp4", io.BytesIO(b"clip"), 4)
            assert client(server).stat_object("videos", "a.mp4").size == 4
            with pytest.raises(S3Error, match="signature"):
                client(server, secret_key="wrong").list_buckets()
            assert server.console_url is not None
            console_port = int(server.console_url.rsplit(":", 1)[1])
            while http_get(console_port, "/") is None:  # the console starts a moment after the store
                time.sleep(0.05)
    assert KEYS.secret_key not in (tmp_path / "minio.log").read_text()


def test_minio_ignores_settings_in_the_callers_environment(
    minio_local_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    monkeypatch.setenv("MINIO_VOLUMES", str(elsewhere))
    monkeypatch.setenv("MINIO_ACCESS_KEY", "stranger")
    monkeypatch.setenv("MINIO_ROOT_PASSWORD", "a-secret-of-a-stranger")
    port = free_port()
    server = start_object_store(
        local_dir=minio_local_dir, data_dir=tmp_path / "data", log_dir=tmp_path, credentials=KEYS, port=port
    ).ready()
    with server.process:
        assert server.endpoint == f"127.0.0.1:{port}"
        assert not elsewhere.exists()
        others = Credentials("sora", "another-secret-of-enough-length")
        with pytest.raises(ProcessError, match="port is already in use"):
            start_object_store(
                local_dir=minio_local_dir, data_dir=tmp_path / "2", log_dir=tmp_path, credentials=others, port=port
            ).ready()


def test_seaweedfs_keeps_objects_across_restarts_and_checks_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SORA_OBJECT_STORE", "seaweedfs")
    for round_ in (1, 2):
        server = start_object_store(
            local_dir=tmp_path, data_dir=tmp_path / "minio", log_dir=tmp_path, credentials=KEYS
        ).ready()
        with server.process:
            assert (server.kind, server.console_url) == ("seaweedfs", None)
            if round_ == 1:
                client(server).make_bucket("videos")
                client(server).put_object("videos", "a.mp4", io.BytesIO(b"video"), 5)
            assert client(server).stat_object("videos", "a.mp4").size == 5
            with pytest.raises(S3Error, match="signature"):
                client(server, secret_key="wrong").list_buckets()
            pids = descendants(server.process.pid)
            assert set().union(*(listening_addresses(pid) for pid in pids)) == {"127.0.0.1"}
    assert KEYS.secret_key not in (tmp_path / "seaweedfs.log").read_text()


def test_unknown_object_store_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORA_OBJECT_STORE", "ceph")
    with pytest.raises(ProcessError, match="minio or seaweedfs"):
        start_object_store(local_dir=tmp_path, data_dir=tmp_path / "d", log_dir=tmp_path, credentials=KEYS)


def test_secret_key_is_not_in_repr(tmp_path: Path) -> None:
    assert KEYS.secret_key not in repr(KEYS)


def test_credentials_are_created_once_in_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "minio.json"
    first = Credentials.load_or_create(path)
    assert first.access_key == "sora"
    assert len(first.secret_key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert Credentials.load_or_create(path) == first
    assert Credentials.load_or_create(tmp_path / "other.json") != first
    assert [entry.name for entry in path.parent.iterdir()] == ["minio.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", "no json"])
def test_unreadable_credentials_error_says_to_delete_the_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "minio.json"
    path.write_text(content)
    with pytest.raises(ProcessError, match="Delete it"):
        Credentials.load_or_create(path)


def test_minio_on_path_is_preferred_to_the_built_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if find_minio(tmp_path) is not None:
        pytest.skip("this system has its own MinIO")
    programs = [tmp_path / "bin" / "minio", tmp_path / "path" / "minio"]
    for program in programs:
        program.parent.mkdir()
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    assert find_minio(tmp_path) == programs[0].resolve()
    monkeypatch.setenv("PATH", f"{programs[1].parent}:/usr/bin:/bin")
    assert find_minio(tmp_path) == programs[1].resolve()


def test_non_executable_minio_file_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "minio").write_text("half a download")
    assert find_minio(tmp_path) is None


def test_concurrent_processes_build_minio_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_go(tmp_path, monkeypatch, WRITES_A_PROGRAM)
    script = (
        "import pathlib, sys; from deployments.local.minio_build import build_minio\n"
        "print(build_minio(pathlib.Path(sys.argv[1]), print))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "local")]
    builders = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [builder.communicate(timeout=60)[0] for builder in builders]
    built = tmp_path / "local" / "bin" / "minio"
    assert [output.splitlines()[-1] for output in outputs] == [str(built.resolve())] * 3
    assert len(calls.read_text().splitlines()) == 1
    assert "github.com/minio/minio@v0.0.0-20260212201848-7aac2a2c5b7c" in calls.read_text()
    assert [entry.name for entry in built.parent.iterdir()] == ["minio"]


def test_failed_build_prints_its_last_lines_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_go(tmp_path, monkeypatch, "echo half > $GOBIN/minio; echo 'no route to the module proxy' >&2; exit 1")
    printed: list[str] = []
    assert build_minio(tmp_path, printed.append) is None
    assert "no route to the module proxy" in printed[-1]
    assert list((tmp_path / "bin").iterdir()) == []


def test_missing_go_is_reported_and_nothing_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    printed: list[str] = []
    assert build_minio(tmp_path, printed.append) is None
    assert "Go" in printed[0]


@pytest.mark.parametrize("home", [None, ""])
def test_go_caches_are_in_the_local_folder_without_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    fake_go(tmp_path, monkeypatch, f"env > {tmp_path}/environment; {WRITES_A_PROGRAM}")
    if home is None:
        monkeypatch.delenv("HOME")
    else:
        monkeypatch.setenv("HOME", home)
    assert build_minio(tmp_path, print) == (tmp_path / "bin" / "minio").resolve()
    go_environment = dict(
        line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line
    )
    assert go_environment["GOPATH"].startswith(str(tmp_path))
    assert go_environment["GOCACHE"].startswith(str(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["building", "waiting"])
def test_signal_ends_the_build_immediately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str, number: signal.Signals
) -> None:
    calls = fake_go(tmp_path, monkeypatch, "sleep 600")
    script = (
        "import pathlib, signal, sys; from deployments.local.minio_build import build_minio\n"
        "signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))\n"
        "build_minio(pathlib.Path(sys.argv[1]), lambda line: print(line, flush=True))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]

    def build(until: str) -> subprocess.Popen[str]:
        builder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert builder.stdout is not None
        assert until in builder.stdout.readline()
        return builder

    builders = [build("Building it with Go")]
    while not calls.exists() or not calls.read_text():  # the shell creates the file before it writes to it
        time.sleep(0.01)
    if phase == "waiting":
        builders.append(build("Waiting for it"))
        time.sleep(0.2)
    for builder in reversed(builders):
        builder.send_signal(number)
        builder.communicate(timeout=60)
        assert builder.returncode in (-number, 128 + number)
    assert list((tmp_path / "bin").iterdir()) == []
    assert len(calls.read_text().splitlines()) == 1
