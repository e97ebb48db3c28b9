"""The receiver as a process and as a server that faces the internet: limits, signals, and what a person is told."""

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
from typer.testing import CliRunner

from blocks import VideoArchive
from deployments.cli.app import app
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
    """The port of a server whose app has nothing."""
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
    """Of a server as it is."""
    async with serving() as port:
        yield port


async def test_a_connection_that_never_says_what_it_wants_ends(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver_app, "CONNECTION_SECONDS", 0.5)
    async with asyncio.timeout(60):
        silent, dribbling = await asyncio.gather(
            exchange(port, b""), exchange(port, b"POST / HT", then=0.3, more=b"TP/1.1\r\nHost: r\r\nX-More: ")
        )
    assert (silent.status, dribbling.status) == (0, 0)
    assert (await exchange(port, post("/"))).status == 404


async def test_a_flood_of_connections_is_cut_and_the_server_stays_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_more_connections_than_can_be_answered_are_answered_busy(monkeypatch: pytest.MonkeyPatch) -> None:
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
async def test_requests_are_not_logged_whatever_is_set_up_for_logging_later(
    kind: Callable[[Starlette], QuietServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = logging.getLogger("uvicorn.access")
    async with serving(kind) as port:
        monkeypatch.setattr(access, "propagate", True)  # as a dictConfig of the logger "uvicorn" does
        caplog.set_level(logging.DEBUG, "uvicorn.access")
        await exchange(port, post("/v/kite/video.mp4?t=t0ken", connection="close"))
    assert "t0ken" not in caplog.text


async def test_each_connection_is_used_once_and_names_no_server(port: int) -> None:
    answer = await exchange(port, post("/") * 2)
    assert answer.headers["connection"] == "close"
    assert "server" not in answer.headers
    assert answer.body.count(b"HTTP/1.1") == 0


@pytest.fixture
async def stored(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Both blocks, saved, with a callback secret and a public address."""
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
    made = Sora(tmp_path, prefect_server.environment, secrets, forks)
    yield made
    made.close()


async def listening(process: Process) -> tuple[int, list[str]]:
    """The port of a started receiver, and what it said until it named its public address."""
    said: list[str] = []
    while not said or ("callback_url" not in said[-1] and "APIXO calls" not in said[-1]):
        assert process.stderr is not None
        line = await asyncio.to_thread(process.stderr.readline)
        assert line, said
        said.append(line)
    found = re.search(r"at http://127\.0\.0\.1:(\d+)/apixo/", "".join(said))
    assert found, said
    return int(found[1]), said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_answers_until_it_is_stopped_and_sends_its_events_before_it_ends(
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
    port, said = await listening(process)
    assert "https://callbacks.example.com/apixo/…" in said[-1]
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


async def test_a_wrong_set_up_ends_the_start_with_one_clear_line(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, archive: VideoArchive
) -> None:
    without = await store_blocks(make_api(sandbox), archive)
    gone = await store_blocks(stored.api, archive.model_copy(update={"bucket": unique("gone")}))
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    here = ("--archive", stored.name)
    started = {
        "has no callback_secret.*APIXO_CALLBACK_SECRET.*sora setup --name": ("--api", without.name, *here),
        "no apixo-api block named 'nobody'": ("--api", "nobody", *here),
        "There is no bucket": ("--api", stored.name, "--archive", gone.name),
        f"cannot listen on 127.0.0.1, port {port}": ("--api", stored.name, *here, "--port", port),
    }
    try:
        for message, options in started.items():
            ended = await asyncio.to_thread(sora, "callbacks", "--port", "0", *options)
            assert re.search(message, one_line(ended, 1)), ended.err
    finally:
        taken.close()


async def test_without_a_public_address_it_says_that_nobody_will_call(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, archive: VideoArchive
) -> None:
    without_address = await store_blocks(make_api(sandbox, callback_secret=stored.api.callback_secret), archive)
    process = sora.start("callbacks", "--port", "0", "--api", without_address.name, "--archive", without_address.name)
    _, said = await listening(process)
    assert "callback_url is empty" in said[-1]
    process.terminate()
    assert (await asyncio.to_thread(sora.end, process)).code == 0


def test_the_help_teaches() -> None:
    said = CliRunner().invoke(app, ["callbacks", "--help"])
    assert said.exit_code == 0
    for word in ("nothing in it is", "TLS", "callback_url", "--port", "/health", "only costs time"):
        assert word in " ".join(said.output.split())
