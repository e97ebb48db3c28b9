"""Starting and stopping the sandbox server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

import deployments.sandbox
from deployments.sandbox import Fault, SandboxServer, SandboxSettings
from deployments.sandbox.app import create_app
from deployments.sandbox.landscapes import sample
from deployments.sandbox.tasks import SandboxState
from tests.deployments.sandbox.caller import KEY, SUBMIT, Caller, body
from tests.deployments.sandbox.conftest import StartSandbox


def test_public_names_are_exported() -> None:
    assert {"SandboxSettings", "SandboxServer", "Fault", "serve"} <= set(deployments.sandbox.__all__)


def leftover_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    deadline = time.monotonic() + 60
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left


def test_server_stops_immediately_with_requests_in_progress(http: httpx.Client) -> None:
    before = set(threading.enumerate())
    failures: list[type[Exception]] = []
    sample("lake", "jpg")  # rendered in advance, so that only the stop is measured
    with SandboxServer(SandboxSettings(speed=500, video_height=720)) as sandbox:
        call = Caller(sandbox.base_url, http, KEY)
        sandbox.faults.add(Fault(call="image", kind="endless", times=-1), Fault(call="status", kind="hang", times=-1))
        for number in range(4):
            call.task(prompt=f"rendered while it stops {number}", duration=12)

        def wait_forever(url: str) -> None:
            try:
                httpx.get(url, headers=call.headers, timeout=120, trust_env=False)
            except httpx.TransportError as error:
                failures.append(type(error))

        urls = [f"{sandbox.base_url}{path}" for path in ("/samples/lake.jpg", "/api/v1/statusTask/sora-2?taskId=x")]
        callers = [threading.Thread(target=wait_forever, args=(url,)) for url in urls]
        for caller in callers:
            caller.start()
        # On a busy machine, a task may go through `processing` between two checks.
        while len(sandbox.record) < 6 or all(task.state == "pending" for task in sandbox.tasks.all()):
            time.sleep(0.01)
        time.sleep(0.2)
        started = time.monotonic()
    # This takes 0.25 s on a quiet machine, and longer on a busy one. Waiting for the callers would take 120 s.
    assert time.monotonic() - started < 60
    for caller in callers:
        caller.join(60)
    assert len(failures) == 2
    assert leftover_threads(before) == set()
    with pytest.raises(RuntimeError, match="not running"):
        _ = sandbox.base_url
    sandbox.stop()


def test_temporary_folder_is_removed_and_configured_folder_is_kept(
    http: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with SandboxServer(SandboxSettings(speed=2000, video_height=90)) as sandbox:
        Caller(sandbox.base_url, http, KEY).video_url()
        assert len(list(temporary.glob("apixo-sandbox-*/*.mp4"))) == 1
    assert list(temporary.iterdir()) == []
    (kept := tmp_path / "kept").mkdir()
    with SandboxServer(SandboxSettings(speed=2000, video_height=90, data_dir=kept)) as sandbox:
        call = Caller(sandbox.base_url, http, KEY)
        for _ in range(3):
            call.video_url()
    assert len(list(kept.iterdir())) == 1


def test_two_servers_run_independently(start_sandbox: StartSandbox, http: httpx.Client) -> None:
    first, second = start_sandbox(), start_sandbox(api_key="another")
    assert first.base_url != second.base_url
    task_id = Caller(first.base_url, http, KEY).task()
    assert Caller(second.base_url, http, "another").status(task_id).status_code == 400
    assert (len(first.tasks), len(second.tasks)) == (1, 0)


def test_port_in_use_is_an_error(sandbox: SandboxServer) -> None:
    with pytest.raises(OSError, match="in use"):
        SandboxServer(port=int(sandbox.base_url.rsplit(":", 1)[1])).start()


async def test_cutting_connections_requires_uvicorn() -> None:
    app = create_app(SandboxState())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://sandbox") as client:
        await client.post("/sandbox/faults", json=[{"call": "submit", "kind": "reset_before"}])
        with pytest.raises(TypeError, match="only under uvicorn"):
            await client.post("/api/v1/generateTask/sora-2", json=body())


async def test_caller_that_disconnects_during_submit_gets_no_reply() -> None:
    state, sent = SandboxState(), []
    received: list[Message] = [
        {"type": "http.request", "body": b'{"input"', "more_body": True}, {"type": "http.disconnect"}
    ]  # fmt: skip

    async def receive() -> Message:
        return received.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": SUBMIT, "query_string": b"", "headers": []}
    await create_app(state)(scope, receive, send)
    assert sent == []
    assert len(state.record) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_server_exits_cleanly_on_a_signal(http: httpx.Client, number: signal.Signals) -> None:
    root = Path(deployments.sandbox.__file__).parents[2]
    # The child gets a socket that listens already: a free port could be taken before the child is up.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        code = (
            "import socket; from deployments.sandbox import SandboxSettings, serve;"
            f"listener = socket.socket(fileno={listener.fileno()});"
            "serve(SandboxSettings(speed=500, video_height=90), listener); print('ended')"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=dict(os.environ), pass_fds=[listener.fileno()],
        )  # fmt: skip
        port = listener.getsockname()[1]
    try:
        reply = Caller(f"http://127.0.0.1:{port}", http, KEY).submit(timeout_seconds=60)  # waits until the child is up
        assert reply.json()["code"] == 200
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output) == (0, b"ended\n")


def test_concurrent_callers_get_their_own_task_ids(sandbox: SandboxServer, http: httpx.Client) -> None:
    call = Caller(sandbox.base_url, http, KEY)
    ids: list[str] = []
    threads = [threading.Thread(target=lambda: ids.extend(call.task() for _ in range(10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ids)) == len(sandbox.record.charged()) == 80
    assert {request.task_id for request in sandbox.record.charged()} == set(ids)
