"""The receiver as a process and as a server that faces the internet: limits, signals, and what it prints."""

import asyncio
import contextlib
import logging
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from starlette.applications import Starlette

from blocks import VideoArchive
from deployments.local.prefect_server import PrefectServer
from deployments.receiver import app as receiver_app
from deployments.receiver.app import CallbackServer
from deployments.sandbox import Fault, SandboxServer
from deployments.web_server import QuietServer
from flows.resources import PayingResources
from tests.deployments.cli.sora import Process, Sora, one_line
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.flows.generations import finished, submit
from tests.flows.signals.test_events import read_events
from tests.support import make_api, unique
from tests.support.fork_server import ForkServer
from tests.support.receiver import exchange, named, post

CALLBACK_SECRET = "a-callback-secret-for-tests"


@asynccontextmanager
async def serving(kind: Callable[[Starlette], QuietServer] = CallbackServer) -> AsyncIterator[int]:
    """Runs a server with an empty app and yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = kind(Starlette())
    running = asyncio.create_task(server.serve([listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    await running


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """The port of a callback server with an empty app."""
    async with serving() as port:
        yield port


async def test_connection_without_a_complete_request_is_closed(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_app, "CONNECTION_SECONDS", 0.5)
    async with asyncio.timeout(60):
        silent, dribbling = await asyncio.gather(
            exchange(port, b""), exchange(port, b"POST / HT", then=0.3, more=b"TP/1.1\r\nHost: r\r\nX-More: ")
        )
    assert (silent.status, dribbling.status) == (0, 0)
    assert (await exchange(port, post("/"))).status == 404


async def test_excess_connections_are_dropped_and_server_stays_up(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_app, "MOST_CONNECTIONS", 5)
    held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
    for _ in range(20):
        assert (await exchange(port, b"")).status == 0
    for _, writer in held:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await asyncio.sleep(0.1)
    assert (await exchange(port, post("/"))).status == 404


async def test_connections_over_the_answer_limit_get_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_app, "MOST_ANSWERED", 3)
    async with serving() as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await exchange(port, post("/"))).status == 503
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        await asyncio.sleep(0.1)
        assert (await exchange(port, post("/"))).status == 404


@pytest.mark.parametrize("kind", [CallbackServer, QuietServer])
async def test_requests_are_not_logged_even_if_logging_is_configured_later(
    kind: Callable[[Starlette], QuietServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = logging.getLogger("uvicorn.access")
    async with serving(kind) as port:
        monkeypatch.setattr(access, "propagate", True)  # as a dictConfig of the logger "uvicorn" does
        caplog.set_level(logging.DEBUG, "uvicorn.access")
        await exchange(port, post("/v/kite/video.mp4?t=t0ken", connection="close"))
    assert "t0ken" not in caplog.text


async def test_connections_are_not_reused_and_responses_have_no_server_header(port: int) -> None:
    answer = await exchange(port, post("/") * 2)
    assert answer.headers["connection"] == "close"
    assert "server" not in answer.headers
    assert answer.body.count(b"HTTP/1.1") == 0


@pytest.fixture
async def stored(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Both blocks, saved, with a callback secret and a public URL."""
    name = unique("callback-secret")
    await Secret(value=CALLBACK_SECRET).save(name)
    secret = await Secret.aload(name)
    return await store_blocks(
        make_api(sandbox, callback_url="https://callbacks.example.com", callback_secret=secret), archive
    )


@pytest.fixture
def sora(
    stored: StoredBlocks, sandbox: SandboxServer, prefect_server: PrefectServer, forks: ForkServer, tmp_path: Path
) -> Iterator[Sora]:
    secrets = [sandbox.settings.api_key, stored.archive.secret_key.get_secret_value(), CALLBACK_SECRET]
    runner = Sora(tmp_path, prefect_server.environment, secrets, forks)
    yield runner
    runner.close()


async def wait_for_port(process: Process) -> tuple[int, list[str]]:
    """The port of a started receiver, and the lines it printed up to the one about its public URL."""
    printed: list[str] = []
    while not printed or ("callback_url" not in printed[-1] and "APIXO calls" not in printed[-1]):
        assert process.stderr is not None
        line = await asyncio.to_thread(process.stderr.readline)
        assert line, printed
        printed.append(line)
    match = re.search(r"at http://127\.0\.0\.1:(\d+)/apixo/", "".join(printed))
    assert match, printed
    return int(match[1]), printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_receiver_answers_until_stopped_and_sends_events_before_exit(
    number: signal.Signals,
    sora: Sora,
    stored: StoredBlocks,
    resources: PayingResources,
    prefect_server: PrefectServer,
    sandbox: SandboxServer,
    key: str,
) -> None:
    sandbox.faults.add(Fault(call="callback", kind="drop"))
    task_id = (await submit(key, resources)).task_id
    await finished(sandbox)
    process = sora.start("callbacks", "--port", "0", "--api", stored.name, "--archive", stored.name)
    port, printed = await wait_for_port(process)
    assert "https://callbacks.example.com/apixo/…" in printed[-1]
    assert (await exchange(port, post("/health", method="GET"))).said == "ok"
    token = stored.api.callback_token(key)
    answer = await exchange(port, post(f"/apixo/{key}/{token}", named(task_id)))
    assert answer.said == "finished"
    process.send_signal(number)
    ended = await asyncio.to_thread(sora.end, process)
    assert ended.code == 0, ended.all
    assert "Stopped." in ended.err
    assert f"APIXO called back for {key}, attempt 1: finished." in ended.err
    assert token not in ended.all
    events = await read_events(prefect_server, key, "apixo.task.finished")
    assert events[-1]["payload"]["archive"] == stored.name
    assert len(sandbox.record.submits()) == 1


async def test_invalid_setup_fails_to_start_with_one_error_line(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, archive: VideoArchive
) -> None:
    no_secret = await store_blocks(make_api(sandbox), archive)
    missing_bucket = await store_blocks(stored.api, archive.model_copy(update={"bucket": unique("gone")}))
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    here = ("--archive", stored.name)
    started = {
        "has no callback_secret.*APIXO_CALLBACK_SECRET.*sora setup --name": ("--api", no_secret.name, *here),
        "no apixo-api block named 'nobody'": ("--api", "nobody", *here),
        "There is no bucket": ("--api", stored.name, "--archive", missing_bucket.name),
        f"cannot listen on 127.0.0.1, port {port}": ("--api", stored.name, *here, "--port", port),
    }
    try:
        for message, options in started.items():
            ended = await asyncio.to_thread(sora, "callbacks", "--port", "0", *options)
            assert re.search(message, one_line(ended, 1)), ended.err
    finally:
        taken.close()


async def test_missing_callback_url_is_reported_at_start(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, archive: VideoArchive
) -> None:
    without_url = await store_blocks(make_api(sandbox, callback_secret=stored.api.callback_secret), archive)
    process = sora.start("callbacks", "--port", "0", "--api", without_url.name, "--archive", without_url.name)
    _, printed = await wait_for_port(process)
    assert "callback_url is empty" in printed[-1]
    process.terminate()
    assert (await asyncio.to_thread(sora.end, process)).code == 0
