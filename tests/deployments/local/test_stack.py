"""The local stack, with tiny web servers as services: start and stop order, failures, signals, stack.json."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from deployments.local.processes import ManagedProcess, ProcessError, Server, free_port, http_get
from deployments.local.services import Service, default_services
from deployments.local.stack import LocalStack
from deployments.local.stack_info import Credentials, StackInfo, take_lock

# A web server that listens after a pause, which shows what starts in parallel, and logs to a file when it is stopped.
SERVER = """
import os, signal, socket, sys, time
port, pause, ends, name = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
def end(*_):
    with open(ends, "a") as file: file.write(name + "\\n")
    os._exit(0)
time.sleep(pause)
signal.signal(signal.SIGTERM, end)
listener = socket.create_server(("127.0.0.1", port), backlog=64)
while True:
    caller = listener.accept()[0]
    try:
        caller.settimeout(5)
        caller.recv(65536)
        caller.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + os.environ.get("SEEN", "").encode())
    except OSError:
        pass
    caller.close()
"""


def tiny(
    name: str,
    folder: Path,
    *,
    pause: float = 0.0,
    preferred_port: int = 0,
    environment: Mapping[str, str] | None = None,
    secret_files: Mapping[str, Path] | None = None,
    code: str = SERVER,
) -> Service:
    def start(port: int, seen: Mapping[str, str]) -> Server:
        process = ManagedProcess(
            [sys.executable, "-I", "-S", "-c", code, str(port), str(pause), str(folder / "ends"), name],
            name=name,
            log_path=folder / "logs" / f"{name}.log",
            environment={**os.environ, **seen},
        )
        return Server(
            process=process,
            url=f"http://127.0.0.1:{port}",
            environment=dict(environment or {}),
            answers=lambda: http_get(port, "/") is not None,
        )

    return Service(name, start, preferred_port, secret_files=secret_files or {})


def ignore_output(_: str) -> None: ...


def seen_environment(server: Server) -> str:
    answer = http_get(int(server.url.rsplit(":", 1)[1]), "/")
    assert answer is not None
    return answer[1].decode()


def test_services_start_in_parallel_and_stop_in_reverse_order(tmp_path: Path) -> None:
    printed: list[str] = []
    with LocalStack(tmp_path, services=[tiny(name, tmp_path, pause=2) for name in "abcd"], say=printed.append) as stack:
        assert any("Everything is running" in line for line in printed)
        took = float(printed[-1].split("after ")[1].split(" s")[0])
        assert took < 8  # one after the other would take at least 8 s
        processes = [server.process for server in stack.servers.values()]
        assert all(process.is_alive() for process in processes)
    assert not any(process.is_alive() for process in processes)
    assert (tmp_path / "ends").read_text().split() == ["d", "c", "b", "a"]


def test_service_gets_the_environment_of_services_that_are_ready(tmp_path: Path) -> None:
    first = [tiny("a", tmp_path, pause=0.5, environment={"SEEN": "hello"}), tiny("b", tmp_path)]
    with LocalStack(tmp_path, services=first, say=ignore_output) as stack:
        stack.add([tiny("c", tmp_path)])
        assert [seen_environment(stack.servers[name]) for name in "abc"] == ["", "", "hello"]
        assert stack.environment["SEEN"] == "hello"
        info = StackInfo.read(tmp_path)
        assert info is not None
        assert list(info.services) == ["a", "b", "c"]
    assert (tmp_path / "ends").read_text().split() == ["c", "b", "a"]


def test_running_stack_is_found_and_stack_json_has_no_secrets(tmp_path: Path) -> None:
    keys = Credentials.load_or_create(tmp_path / "keys.json")
    service = tiny(
        "a",
        tmp_path,
        environment={"STORE": "here", "STORE_SECRET": keys.secret_key},
        secret_files={"STORE_SECRET": tmp_path / "keys.json"},
    )
    assert StackInfo.read(tmp_path) is None
    with LocalStack(tmp_path, services=[service], say=ignore_output) as stack:
        stack_file = tmp_path / "stack.json"
        assert stack_file.stat().st_mode & 0o777 == 0o600
        assert keys.secret_key not in stack_file.read_text()
        info = StackInfo.read(tmp_path)
        assert info is not None
        assert info.services["a"].url == stack.servers["a"].url
        assert info.load_environment() == stack.environment
    assert not stack_file.exists()
    assert StackInfo.read(tmp_path) is None


def test_stale_or_damaged_stack_file_is_not_a_running_stack(tmp_path: Path) -> None:
    stack_file, left_behind = tmp_path / "stack.json", ""
    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output):
        left_behind = stack_file.read_text()
        for content in ("", "[]", "{}", '{"services": []}', '{"services": {"a": {}}}', "no json"):
            stack_file.write_text(content)
            assert StackInfo.read(tmp_path) is None
        stack_file.write_text(left_behind)
        assert StackInfo.read(tmp_path) is not None
    stack_file.write_text(left_behind)  # as after kill -9: the lock ends with its process
    assert StackInfo.read(tmp_path) is None
    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output):
        assert StackInfo.read(tmp_path) is not None


def test_stack_that_is_starting_or_stopping_is_not_used(tmp_path: Path) -> None:
    seen: list[tuple[str, bool]] = []

    def say(line: str) -> None:
        seen.append((line.partition(" ")[0], StackInfo.read(tmp_path) is not None))

    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=say):
        pass
    assert seen == [("Starting", False), ("Ready", False), ("Everything", True), ("Stopping", False)]


def test_commands_that_check_for_a_stack_do_not_keep_one_from_starting(tmp_path: Path) -> None:
    (tmp_path / "stack.lock").touch()
    with (tmp_path / "stack.lock").open() as check:
        assert take_lock(check, fcntl.LOCK_SH)
        threading.Timer(0.1, check.close).start()
        with LocalStack(tmp_path, services=[], say=ignore_output):
            assert check.closed


def test_second_stack_in_the_same_folder_is_rejected(tmp_path: Path) -> None:
    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output):
        with pytest.raises(ProcessError, match=f"process {os.getpid()}"):
            LocalStack(tmp_path, services=[tiny("b", tmp_path)], say=ignore_output).__enter__()
        assert StackInfo.read(tmp_path) is not None  # the rejected stack removed nothing


def test_failing_service_stops_the_others_and_its_error_is_raised(tmp_path: Path) -> None:
    services = [
        tiny("a", tmp_path),
        tiny("slow", tmp_path, pause=600),
        tiny("broken", tmp_path, code="import time; time.sleep(1); raise SystemExit('no disk')"),
    ]
    began = time.monotonic()
    stack = LocalStack(tmp_path, services=services, say=ignore_output)
    with pytest.raises(ProcessError, match="no disk"):
        stack.__enter__()
    assert time.monotonic() - began < 60
    assert not any(server.process.is_alive() for server in stack.servers.values())
    assert StackInfo.read(tmp_path) is None
    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output):
        pass  # the folder is free again


def test_preferred_port_is_used_if_free_and_another_otherwise(tmp_path: Path) -> None:
    preferred = free_port()
    with LocalStack(
        tmp_path / "1", services=[tiny("a", tmp_path, preferred_port=preferred)], say=ignore_output
    ) as first:
        assert first.servers["a"].url.endswith(f":{preferred}")
        with LocalStack(
            tmp_path / "2", services=[tiny("a", tmp_path, preferred_port=preferred)], say=ignore_output
        ) as second:
            assert not second.servers["a"].url.endswith(f":{preferred}")


def test_concurrent_stacks_do_not_share_a_port_before_it_is_bound(tmp_path: Path) -> None:
    preferred = free_port()
    with LocalStack(
        tmp_path / "1", services=[tiny("a", tmp_path, preferred_port=preferred)], say=ignore_output
    ) as first:
        first.servers["a"].process.kill()  # as if it did not listen yet
        with LocalStack(
            tmp_path / "2", services=[tiny("a", tmp_path, preferred_port=preferred)], say=ignore_output
        ) as second:
            assert not second.servers["a"].url.endswith(f":{preferred}")
    with LocalStack(
        tmp_path / "3", services=[tiny("a", tmp_path, preferred_port=preferred)], say=ignore_output
    ) as third:
        assert third.servers["a"].url.endswith(f":{preferred}")


def test_concurrent_stacks_do_not_share_a_console_port_either(tmp_path: Path) -> None:
    preferred, ports = free_port(), list[int]()

    def with_console(name: str) -> Service:
        plain = tiny(name, tmp_path)

        def start(port: int, seen: Mapping[str, str], *, console_port: int) -> Server:
            ports.append(console_port)  # and nothing listens there yet
            return plain.start(port, seen)

        return Service(name, start, console_port=preferred)

    with (
        LocalStack(tmp_path / "1", services=[with_console("a")], say=ignore_output),
        LocalStack(tmp_path / "2", services=[with_console("b")], say=ignore_output),
    ):
        assert ports[0] == preferred
        assert ports[1] != preferred


def test_reserved_port_is_kept_until_its_service_is_added(tmp_path: Path) -> None:
    """Blocks already refer to that port, so a service on another port would never be called."""
    preferred = free_port()
    with (
        LocalStack(tmp_path / "1", services=[], say=ignore_output) as first,
        LocalStack(tmp_path / "2", services=[], say=ignore_output) as second,
    ):
        first_port, second_port = first.reserve(preferred), second.reserve(preferred)
        assert first_port == preferred != second_port
        for stack, port in ((second, second_port), (first, first_port)):
            stack.add([tiny("a", tmp_path, preferred_port=port)])
            assert stack.servers["a"].url.endswith(f":{port}")


def test_wait_fails_when_a_service_dies(tmp_path: Path) -> None:
    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output) as stack:
        stack.servers["a"].process.kill()
        with pytest.raises(ProcessError, match="a exited unexpectedly"):
            stack.wait()


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_error_inside_the_context_stops_the_stack_and_propagates(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        LocalStack(tmp_path, services=[tiny("a", tmp_path)], say=ignore_output) as stack,
    ):
        raise ZeroDivisionError
    assert not stack.servers["a"].process.is_alive()


PARENT = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_stack import tiny
from deployments.local.stack import LocalStack
folder = pathlib.Path(sys.argv[1])
services = [tiny("a", folder), tiny("b", folder, pause=float(sys.argv[3]))]
with LocalStack(folder, services=services, say=lambda line: print(line, flush=True)) as stack:
    stack.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.parametrize("when", ["running", "starting"])
def test_signal_to_the_parent_leaves_no_child(tmp_path: Path, number: signal.Signals, when: str) -> None:
    pause, awaited_line = ("0", "Everything is running") if when == "running" else ("600", "Ready")
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent), pause]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        for line in parent.stdout:
            if line.startswith(awaited_line):
                break
        parent.send_signal(number)
        parent.communicate(timeout=30)
    expected = {signal.SIGINT: (-signal.SIGINT, 130), signal.SIGKILL: (-signal.SIGKILL,)}
    assert parent.returncode in expected.get(number, (128 + number,))
    assert StackInfo.read(tmp_path) is None
    ends = ["b", "a"] if when == "running" else ["a"]  # "b" has not installed its handler yet
    if number == signal.SIGKILL:  # each guard process ends its command independently
        assert wait_until(lambda: sorted((tmp_path / "ends").read_text().split()) == sorted(ends))
        return
    assert not (tmp_path / "stack.json").exists()
    assert (tmp_path / "ends").read_text().split() == ends


def test_default_services_keep_secrets_out_of_stack_json(tmp_path: Path) -> None:
    services = {service.name: service for service in default_services(tmp_path, say=ignore_output, sandbox_options=[])}
    assert list(services) == ["sandbox", "object store", "prefect"]
    assert "APIXO_API_KEY" in services["sandbox"].secret_files
    assert "MINIO_SECRET_KEY" in services["object store"].secret_files


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    return False
