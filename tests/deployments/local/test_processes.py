"""Child processes: how they end, their logs, their ports."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.local.processes import (
    FREE_PORTS,
    LOOPBACK,
    ManagedProcess,
    ProcessError,
    Server,
    free_port,
    port_is_free,
    wait_until_ready,
)

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
# A command that starts a child in its process group and prints both process ids.
FAMILY = [
    sys.executable,
    "-c",
    "import os, subprocess, sys, time\n"  # noqa: ISC004
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print('up', os.getpid(), child.pid, flush=True)\n"
    "time.sleep(600)",
]


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(pid: int) -> bool:
    """Whether the process has ended. A zombie that its new parent has not reaped yet counts as ended."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() == "" or state.strip().startswith("Z")


def start(command: list[str], folder: Path) -> ManagedProcess:
    process = ManagedProcess(command, name="a child", log_path=folder / "child.log")
    assert wait_until(lambda: "up" in process.log_tail())
    return process


def test_stop_ends_the_process_quickly_and_can_be_repeated(tmp_path: Path) -> None:
    process = start(SLEEPER, tmp_path)
    assert process.is_alive()
    began = time.monotonic()
    assert process.stop() == 128 + signal.SIGTERM
    assert time.monotonic() - began < 30
    assert process.stop() == process.kill() == 128 + signal.SIGTERM
    assert not process.is_alive()
    assert is_gone(process.pid)


def test_process_that_ignores_sigterm_is_killed_after_grace_period(tmp_path: Path) -> None:
    process = start(STUBBORN, tmp_path)
    began = time.monotonic()
    process.stop(grace_seconds=0.5)
    assert 0.5 <= time.monotonic() - began < 60
    assert is_gone(process.pid)


def test_kill_during_stop_ends_the_grace_period(tmp_path: Path) -> None:
    process = start(STUBBORN, tmp_path)
    kill_timer = threading.Timer(0.3, process.send, [signal.SIGKILL])
    kill_timer.start()
    began = time.monotonic()
    process.stop(120.0)
    kill_timer.join()
    assert time.monotonic() - began < 60
    assert is_gone(process.pid)
    process.send(signal.SIGKILL)  # by now, its id may belong to another process


@pytest.mark.parametrize("end", [ManagedProcess.stop, ManagedProcess.kill])
def test_grandchildren_end_with_the_child(tmp_path: Path, end: Callable[[ManagedProcess], int]) -> None:
    process = start(FAMILY, tmp_path)
    pids = [int(word) for word in process.log_tail().split()[1:]]
    end(process)
    assert wait_until(lambda: all(map(is_gone, pids)))


def test_grandchildren_end_when_the_child_dies(tmp_path: Path) -> None:
    process = start(FAMILY, tmp_path)
    command, grandchild = (int(word) for word in process.log_tail().split()[1:])
    os.kill(command, signal.SIGKILL)
    assert wait_until(lambda: not process.is_alive())
    assert process.exit_code == 128 + signal.SIGKILL
    assert wait_until(lambda: is_gone(grandchild))


def test_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    # The child is started in a thread that has ended, which would trigger the kernel's parent-death signal too early.
    script = (
        "import pathlib, sys, threading, time\n"
        "from deployments.local.processes import ManagedProcess\n"
        "kept = []\n"
        "def start(): kept.append(ManagedProcess(sys.argv[2:], name='x', log_path=pathlib.Path(sys.argv[1])))\n"
        "thread = threading.Thread(target=start); thread.start(); thread.join()\n"
        "print(kept[0].pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    log = tmp_path / "child.log"
    command = [sys.executable, "-c", script, str(log), *FAMILY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        guard_pid = int(parent.stdout.readline())
        assert wait_until(lambda: "up" in log.read_text())
        pids = [guard_pid, *(int(word) for word in log.read_text().split()[1:])]
        time.sleep(0.3)
        assert not any(map(is_gone, pids))
        parent.kill()
    assert wait_until(lambda: all(map(is_gone, pids)))


def test_child_is_in_its_own_session_so_ctrl_c_does_not_reach_it(tmp_path: Path) -> None:
    with start(SLEEPER, tmp_path) as process:
        assert os.getpgid(process.pid) == os.getsid(process.pid) == process.pid != os.getpgid(0)


def test_child_gets_default_signal_handling(tmp_path: Path) -> None:
    show = "import signal; print([signal.getsignal(s).name for s in (signal.SIGTERM, signal.SIGHUP)])"
    process = ManagedProcess([sys.executable, "-c", show], name="x", log_path=tmp_path / "x.log")
    assert wait_until(lambda: not process.is_alive())
    assert process.log_tail() == "['SIG_DFL', 'SIG_DFL']"


def test_log_is_private_and_previous_log_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    for word in ("first", "second"):
        process = ManagedProcess(["sh", "-c", f"echo {word}; echo {word} >&2"], name="x", log_path=log)
        assert wait_until(lambda p=process: not p.is_alive())  # type: ignore[misc]
    assert log.read_text() == "second\nsecond\n"
    assert log.with_name("x.log.1").read_text() == "first\nfirst\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_process_gets_the_given_environment_and_folder(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "COLOR": "blue"}
    command = ["sh", "-c", "echo $COLOR $HOME; pwd"]
    process = ManagedProcess(command, name="x", log_path=tmp_path / "x.log", environment=environment, cwd=tmp_path)
    assert wait_until(lambda: not process.is_alive())
    assert process.log_tail().split() == ["blue", str(tmp_path.resolve())]


def test_child_that_dies_while_starting_is_reported_with_end_of_its_log(tmp_path: Path) -> None:
    command = ["sh", "-c", "for i in $(seq 100); do echo line $i; done; echo 'bind: address already in use'; exit 3"]
    process = ManagedProcess(command, name="The thing", log_path=tmp_path / "x.log")
    began = time.monotonic()
    with pytest.raises(ProcessError, match="The thing exited while starting") as caught:
        wait_until_ready(lambda: False, process=process, timeout_seconds=120)
    assert time.monotonic() - began < 60
    assert "exit code 3" in str(caught.value)
    assert "line 100" in str(caught.value)
    assert "line 1\n" not in str(caught.value)
    assert str(caught.value).endswith("address already in use")


def test_missing_program_is_reported_by_name(tmp_path: Path) -> None:
    process = ManagedProcess([str(tmp_path / "no-such-program")], name="x", log_path=tmp_path / "x.log")
    with pytest.raises(ProcessError, match="no-such-program could not be started"):
        wait_until_ready(lambda: False, process=process, timeout_seconds=60)


def test_dead_child_is_not_ready_even_if_its_port_answers(tmp_path: Path) -> None:
    process = ManagedProcess(["false"], name="x", log_path=tmp_path / "x.log")
    assert wait_until(lambda: not process.is_alive())
    with pytest.raises(ProcessError, match="exited while starting"):
        wait_until_ready(lambda: True, process=process, timeout_seconds=60)


def test_start_timeout_error_names_the_log(tmp_path: Path) -> None:
    with start(SLEEPER, tmp_path) as process, pytest.raises(ProcessError, match=r"child\.log") as caught:
        wait_until_ready(lambda: False, process=process, timeout_seconds=0.3)
    assert "not ready after 0 s" in str(caught.value)


@pytest.mark.parametrize("answers", [True, False])
def test_server_that_does_not_get_ready_is_stopped(tmp_path: Path, answers: bool) -> None:
    process = start(SLEEPER, tmp_path)
    server = Server(process=process, url="http://127.0.0.1:1", answers=lambda: answers, timeout_seconds=0.3)
    if answers:
        with server.ready().process:
            assert process.is_alive()
    else:
        with pytest.raises(ProcessError, match="a child is running"):
            server.ready()
    assert not process.is_alive()


def test_port_in_use_is_detected() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        assert not port_is_free(port)
    assert port_is_free(port)


def test_preferred_port_is_used_only_if_free() -> None:
    preferred = free_port()
    assert free_port(preferred) == preferred
    with socket.create_server((LOOPBACK, preferred)):
        assert free_port(preferred) != preferred


def test_free_ports_are_outside_the_range_for_outgoing_connections() -> None:
    """Between choosing a port and binding it, the system may give ports to outgoing connections."""
    configured = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if configured.exists() and int(configured.read_text().split()[0]) in range(FREE_PORTS.stop):
        pytest.skip("this system gives other ports to connections than Linux does by default")
    with socket.create_server((LOOPBACK, 0)) as server, socket.create_connection(server.getsockname()) as connection:
        system_ports = [server.getsockname()[1], connection.getsockname()[1]]
    assert all(port not in FREE_PORTS for port in system_ports)
    assert all(free_port() in FREE_PORTS for _ in range(20))
