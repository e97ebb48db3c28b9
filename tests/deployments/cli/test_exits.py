"""How a command ends: what an error prints, and that Ctrl-C and SIGTERM lose nothing and print no traceback."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError, TerminationSignal
from pydantic import BaseModel, Field, ValidationError

from deployments.cli import run
from deployments.cli.failures import fail
from deployments.connection import SetupError
from deployments.local.processes import free_port
from deployments.sandbox import Fault, SandboxServer
from flows.record.pipeline_errors import PipelineError, UnconfirmedError
from tests.deployments.cli.sora import Process, Sora, one_line

REQUEST = httpx.Request("GET", "http://127.0.0.1:9/api/")


UNAUTHORIZED = (
    "✗ The Prefect server rejected the credentials. Set PREFECT_API_AUTH_STRING (for Prefect Cloud: PREFECT_API_KEY) "
    "to what it expects."
)


NOT_PREFECT = (
    "✗ What answers at PREFECT_API_URL is not a working Prefect server: HTTP {}. Check the URL, and that the server is "
    "up. If the environment sets a proxy, add the server to NO_PROXY."
)


def wait_until(condition: Callable[[], object], process: Process) -> None:
    deadline = time.monotonic() + 150
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("step", ["submit", "wait"])
def test_ctrl_c_loses_nothing_and_same_command_continues(
    step: str, sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    command = ["generate", "A red kite", "--key", key, *blocks]
    if step == "submit":
        sandbox.faults.add(Fault(call="submit", kind="slow", seconds=1))
    else:
        sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    process = sora.start(*command)
    wait_until(sandbox.record.submits if step == "submit" else sandbox.record.statuses, process)
    process.send_signal(signal.SIGINT)
    stopped = sora.end(process)
    assert stopped.code == 130, stopped.all
    assert "Traceback" not in stopped.all
    assert f"run the same command with --key {key} to continue" in stopped.err
    sandbox.faults.clear()
    done = sora(*command)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == 1


class TwoFields(BaseModel):
    """A model with two fields to validate."""

    seconds: int = Field(gt=0)
    name: str


def wrapped(cause: Exception) -> RuntimeError:
    """The cause in an error like the one that Prefect wraps it in."""
    error = RuntimeError("Failed to reach API at http://127.0.0.1:9/api/")
    error.__cause__ = cause
    return error


def http_error(status: int) -> PrefectHTTPStatusError:
    """The error for a proxy's answer in place of the Prefect server's."""
    message = f"HTTP {status} - For more information check: https://example.com"
    return PrefectHTTPStatusError(message, request=REQUEST, response=httpx.Response(status, request=REQUEST))


def with_note(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


def test_known_errors_are_printed_as_readable_lines_with_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError) as invalid:
        TwoFields.model_validate({"seconds": 0})
    cases: list[tuple[BaseException, int, list[str]]] = [
        (invalid.value, 2, ["✗ seconds: Input should be greater than 0", "✗ name: Field required"]),
        (UnconfirmedError("[bold]a[/] is [unclear]"), 1, ["✗ [bold]a[/] is [unclear]"]),
        (SetupError("Run `sora up`."), 1, ["✗ Run `sora up`."]),
        (
            httpx.ConnectError("no"),
            1,
            ["✗ The Prefect server does not answer (ConnectError). Is it up?"],
        ),
        (
            PrefectHTTPStatusError("401", request=REQUEST, response=httpx.Response(401, request=REQUEST)),
            1,
            [UNAUTHORIZED],
        ),
        (http_error(503), 1, [NOT_PREFECT.format(503)]),
        (wrapped(http_error(404)), 1, [NOT_PREFECT.format(404)]),
        (with_note(PipelineError("No space left."), "kite is paid."), 1, ["✗ No space left.", "kite is paid."]),
        (wrapped(httpx.ReadTimeout("late")), 1, ["✗ The Prefect server does not answer (ReadTimeout). Is it up?"]),
        (
            httpx.InvalidURL("Invalid port: ':1'"),
            1,
            [
                (
                    "✗ Prefect's client cannot read the environment's proxies, or PREFECT_API_URL (Invalid port: "
                    "':1'). It does not support IPv6 networks such as ::1/128 or brackets as in [::1] in NO_PROXY: "
                    "remove them. This program reaches ::1 directly without them."
                )
            ],
        ),
    ]
    for error, code, lines in cases:
        assert fail(error) == code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.splitlines() == lines


def test_unexpected_error_is_printed_with_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(ZeroDivisionError("a bug")) == 1
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


INTERRUPTIONS: dict[str, tuple[BaseException, int, str]] = {
    "SIGTERM": (TerminationSignal(signal=signal.SIGTERM), 143, "Ended by SIGTERM.\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "Interrupted.\n"),
}


@pytest.mark.parametrize("failing", [False, True], ids=["raised as is", "masked by another error"])
@pytest.mark.parametrize("which", list(INTERRUPTIONS))
def test_interrupted_command_prints_no_traceback(
    which: str, failing: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end, code, reported = INTERRUPTIONS[which]

    def ended() -> None:
        try:
            raise end
        except BaseException:
            if failing:
                raise ValueError("Task run is not set")  # noqa: B904 - as Prefect does
            raise

    monkeypatch.setattr("deployments.cli.app.app", ended)
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == code
    assert capsys.readouterr().err == reported


def test_error_caused_by_ctrl_c_still_prints_the_next_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended() -> None:
        raise PipelineError("Run: sora resolve") from KeyboardInterrupt()

    monkeypatch.setattr("deployments.cli.app.app", ended)
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "✗ Run: sora resolve\nInterrupted.\n"


@pytest.mark.parametrize(("command", "code"), [(["--version"], 0), (["no-such-command"], 2)])
def test_command_exits_before_interpreter_finalization(command: list[str], code: int) -> None:
    """During finalization, a store client's thread that needs the interpreter would abort the process."""
    script = """
import os, sys
from deployments.cli import main

class Late:
    def __del__(self, write=os.write):
        write(1, b"taken down")

late = Late()
sys.argv = ["sora", *sys.argv[1:]]
main()
"""
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "taken down" not in done.stdout
    assert done.stdout + done.stderr != ""


def test_missing_certificate_file_is_reported_before_prefect_fails(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pem")
    result = Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home"), "SSL_CERT_FILE": gone}, [])("list")
    assert one_line(result, 1) == f"✗ SSL_CERT_FILE is {gone}, which does not exist. Correct it, or unset it."


def test_local_prefect_server_is_reached_without_the_proxy(sora: Sora, blocks: list[str]) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"  # nothing listens there
    unset = dict.fromkeys(("no_proxy", "NO_PROXY"), "")
    result = sora(
        "list", *blocks[2:], HTTP_PROXY=proxy, http_proxy=proxy, HTTPS_PROXY=proxy, https_proxy=proxy, **unset
    )
    assert result.code == 0, result.all


def test_paid_video_that_cannot_be_fetched_is_reported_as_not_lost(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    result = sora("generate", "A red kite", "--key", key, *blocks)
    assert one_line(result, 1)
    task_id = sandbox.record.charged()[0].task_id
    assert f"{key} is paid, as task {task_id}, and not archived yet. Nothing is lost: run it again" in result.err
    sandbox.faults.clear()
    assert sora("generate", "A red kite", "--key", key, *blocks).code == 0
    assert len(sandbox.record.submits()) == 1
