"""How a command ends: what an error prints, and that Ctrl-C and SIGTERM lose nothing and leave no traceback."""

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

ASKED = httpx.Request("GET", "http://127.0.0.1:9/api/")


REFUSED = (
    "✗ The Prefect server rejected the credentials. Set PREFECT_API_AUTH_STRING (for Prefect Cloud: PREFECT_API_KEY) "
    "to what it expects."
)


NOT_PREFECT = (
    "✗ What answers at PREFECT_API_URL is not a working Prefect server: HTTP {}. Check the URL, and that the server is "
    "up. If the environment sets a proxy, add the server to NO_PROXY."
)


def until(what: Callable[[], object], process: Process) -> None:
    deadline = time.monotonic() + 150
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("step", ["submit", "wait"])
def test_ctrl_c_loses_nothing_and_the_same_command_goes_on(
    step: str, sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    order = ["generate", "A red kite", "--key", key, *blocks]
    if step == "submit":
        sandbox.faults.add(Fault(call="submit", kind="slow", seconds=1))
    else:
        sandbox.faults.add(Fault(call="status", kind="unknown_state", times=-1))
    process = sora.start(*order)
    until(sandbox.record.submits if step == "submit" else sandbox.record.statuses, process)
    process.send_signal(signal.SIGINT)
    stopped = sora.end(process)
    assert stopped.code == 130, stopped.all
    assert "Traceback" not in stopped.all
    assert f"run the same command with --key {key} to continue" in stopped.err
    sandbox.faults.clear()
    done = sora(*order)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == 1


class Order(BaseModel):
    """Something with two rules."""

    seconds: int = Field(gt=0)
    name: str


def behind(cause: Exception) -> RuntimeError:
    """As Prefect wraps it."""
    error = RuntimeError("Failed to reach API at http://127.0.0.1:9/api/")
    error.__cause__ = cause
    return error


def answered(status: int) -> PrefectHTTPStatusError:
    """What a proxy answers in the server's place."""
    message = f"HTTP {status} - For more information check: https://example.com"
    return PrefectHTTPStatusError(message, request=ASKED, response=httpx.Response(status, request=ASKED))


def noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


def test_errors_are_printed_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValidationError) as invalid:
        Order.model_validate({"seconds": 0})
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
            PrefectHTTPStatusError("401", request=ASKED, response=httpx.Response(401, request=ASKED)),
            1,
            [REFUSED],
        ),
        (answered(503), 1, [NOT_PREFECT.format(503)]),
        (behind(answered(404)), 1, [NOT_PREFECT.format(404)]),
        (noted(PipelineError("No space left."), "kite is paid."), 1, ["✗ No space left.", "kite is paid."]),
        (behind(httpx.ReadTimeout("late")), 1, ["✗ The Prefect server does not answer (ReadTimeout). Is it up?"]),
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


def test_an_error_nobody_foresaw_comes_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(ZeroDivisionError("a bug")) == 1
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


ENDS: dict[str, tuple[BaseException, int, str]] = {
    "SIGTERM": (TerminationSignal(signal=signal.SIGTERM), 143, "Ended by SIGTERM.\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "Interrupted.\n"),
}


@pytest.mark.parametrize("failing", [False, True], ids=["as it is", "Prefect's engine or pydantic fails of it"])
@pytest.mark.parametrize("which", list(ENDS))
def test_a_command_that_is_ended_ends_without_a_traceback(
    which: str, failing: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end, code, reported = ENDS[which]

    def ended() -> None:
        try:
            raise end
        except BaseException:
            if failing:
                raise ValueError("Task run is not set")  # noqa: B904 - as Prefect does it
            raise

    monkeypatch.setattr("deployments.cli.app.app", ended)
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == code
    assert capsys.readouterr().err == reported


def test_what_a_person_has_to_do_is_shown_also_when_ctrl_c_is_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended() -> None:
        raise PipelineError("Run: sora resolve") from KeyboardInterrupt()

    monkeypatch.setattr("deployments.cli.app.app", ended)
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "✗ Run: sora resolve\nInterrupted.\n"


@pytest.mark.parametrize(("order", "code"), [(["--version"], 0), (["no-such-command"], 2)])
def test_a_command_leaves_before_the_interpreter_is_taken_down(order: list[str], code: int) -> None:
    """There a thread of the store's client that wants the interpreter would abort the process."""
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
    done = subprocess.run([sys.executable, "-c", script, *order], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert "taken down" not in done.stdout
    assert done.stdout + done.stderr != ""


def test_certificates_that_are_not_there_are_named_before_prefect_stumbles_over_them(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pem")
    said = Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home"), "SSL_CERT_FILE": gone}, [])("list")
    assert one_line(said, 1) == f"✗ SSL_CERT_FILE is {gone}, which does not exist. Correct it, or unset it."


def test_a_prefect_server_on_this_machine_is_reached_past_the_proxy(sora: Sora, blocks: list[str]) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"  # nobody listens
    unset = dict.fromkeys(("no_proxy", "NO_PROXY"), "")
    said = sora("list", *blocks[2:], HTTP_PROXY=proxy, http_proxy=proxy, HTTPS_PROXY=proxy, https_proxy=proxy, **unset)
    assert said.code == 0, said.all


def test_whoever_paid_for_what_cannot_be_fetched_is_told_that_nothing_is_lost(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="result", kind="http_404", times=-1))
    said = sora("generate", "A red kite", "--key", key, *blocks)
    assert one_line(said, 1)
    task_id = sandbox.record.charged()[0].task_id
    assert f"{key} is paid, as task {task_id}, and not archived yet. Nothing is lost: run it again" in said.err
    sandbox.faults.clear()
    assert sora("generate", "A red kite", "--key", key, *blocks).code == 0
    assert len(sandbox.record.submits()) == 1
