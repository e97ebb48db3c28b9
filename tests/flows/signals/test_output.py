"""Consoles that cannot be written to: their output is lost, and nothing else."""

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from flows.signals.output import protect_log_handlers, protect_standard_streams
from tests.support import unique


def closed_pipe() -> TextIO:
    read_end, write_end = os.pipe()
    os.close(read_end)
    return os.fdopen(write_end, "w")


def full_disk() -> TextIO:
    return Path("/dev/full").open("w")


def closed_file() -> TextIO:
    with Path(os.devnull).open("w") as stream:
        return stream


BROKEN = [closed_pipe, full_disk, closed_file]


@pytest.fixture(params=BROKEN, ids=lambda make: make.__name__)
def broken_stream(request: pytest.FixtureRequest) -> Iterator[TextIO]:
    """A stream that cannot be written to."""
    stream: TextIO = request.param()
    yield stream
    with suppress(OSError):
        stream.close()


class KeepingHandler(logging.Handler):
    """A handler in addition to the console, such as the one that sends records to the Prefect server."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logger(broken_stream: TextIO) -> logging.Logger:
    """A logger whose console is broken."""
    made = logging.getLogger(unique("prefect.flow_runs"))
    made.propagate = False
    made.setLevel(logging.INFO)
    made.addHandler(PrefectConsoleHandler(stream=broken_stream))
    return made


def in_this_thread(work: Callable[[], None]) -> None:
    work()


def in_another_thread(work: Callable[[], None]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - what would end the thread
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("run", [in_this_thread, in_another_thread])
def test_broken_console_raises_no_error_and_other_handlers_get_all_records(
    run: Callable[[Callable[[], None]], None],
    logger: logging.Logger,
    broken_stream: TextIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stderr", broken_stream)  # where `logging` reports a failing handler
    kept = KeepingHandler()
    logger.addHandler(kept)
    protect_log_handlers()

    def work() -> None:
        for number in range(3):
            logger.info("number %d", number)

    run(work)
    run(work)
    assert kept.messages == ["number 0", "number 1", "number 2"] * 2


def test_closed_pipe_becomes_the_null_device_for_all_writers() -> None:
    stream = closed_pipe()
    logger = logging.getLogger(unique("prefect.flow_runs"))
    logger.addHandler(PrefectConsoleHandler(stream=stream))
    before = os.fstat(1)
    protect_log_handlers()
    logger.error("first")
    assert os.path.samestat(os.fstat(stream.fileno()), Path(os.devnull).stat())
    assert os.path.samestat(os.fstat(1), before)  # rich would have redirected this one
    stream.write("a line of another writer\n")
    stream.close()  # raises for a pipe that is still broken


def test_log_is_written_again_once_the_disk_has_space() -> None:
    class Disk:
        def __init__(self) -> None:
            self.full, self.text = True, ""

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            self.text += text
            return len(text)

        def flush(self) -> None: ...

    disk = Disk()
    logger = logging.getLogger(unique("prefect.flow_runs"))
    logger.addHandler(PrefectConsoleHandler(stream=disk))  # type: ignore[arg-type]
    protect_log_handlers()
    logger.error("lost")
    disk.full = False
    logger.error("written")
    assert disk.text.splitlines() == ["written"]


def test_only_prefects_console_handlers_are_changed_and_each_only_once() -> None:
    own = logging.StreamHandler()
    logger = logging.getLogger(unique("somebody"))
    logger.addHandler(own)
    mine = PrefectConsoleHandler(stream=sys.stdout)
    logger.addHandler(mine)
    before = own.stream
    protect_log_handlers()
    safe = mine.console.file
    protect_log_handlers()
    assert own.stream is before
    assert mine.console.file is mine.stream is safe
    assert safe is not sys.stdout


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_standard_streams_drop_what_cannot_be_written(
    name: str, broken_stream: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, broken_stream)
    protect_standard_streams()
    safe = getattr(sys, name)
    protect_standard_streams()
    assert getattr(sys, name) is safe
    for _ in range(2):
        print("a line", file=safe, flush=True)
        safe.writelines(["a line\n"])
    assert safe.fileno() > 2 if not broken_stream.closed else safe.closed


def test_missing_standard_stream_becomes_the_null_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    protect_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        print("a line", file=stream, flush=True)
        assert stream.name == os.devnull
        stream.close()


def test_characters_missing_in_the_encoding_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        protect_standard_streams()
        print("a café")
    assert (tmp_path / "out").read_text() == "a caf\\xe9\n"


def test_non_terminal_console_gets_the_lines_that_rich_would_write(tmp_path: Path) -> None:
    message = "Task run 'wait a-b' - [bold]a  b[/bold] at http://127.0.0.1:1/x\r\a, " + 100 * "long "
    written = []
    for name, protects in (("rich", False), ("plain", True)):
        with (tmp_path / name).open("w+", encoding="utf-8") as stream:
            logger = logging.getLogger(unique("prefect.flow_runs"))
            logger.propagate = False
            logger.setLevel(logging.INFO)
            handler = PrefectConsoleHandler(stream=stream)
            logger.addHandler(handler)
            if protects:
                protect_log_handlers()
                assert type(handler.console).__name__ == "_PlainConsole"
            logger.info(message)
            logger.removeHandler(handler)
            stream.seek(0)
            written.append(stream.read())
    assert written[0] == written[1] != ""
