"""`sora` as a person runs it: processes of their own against a real Prefect server, a real MinIO and the sandbox."""

import hashlib
import json
import re
import signal
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prefect.exceptions import PrefectHTTPStatusError, TerminationSignal
from pydantic import BaseModel, Field, ValidationError

from blocks import VideoArchive
from deployments.cli import main
from deployments.cli.failures import fail
from deployments.cli.generate import made_up_key
from deployments.connection import SetupError
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from flows.record.errors import PipelineError, UnconfirmedError
from flows.record.keys import check_key
from tests.deployments.cli.sora import Process, Sora, one_line
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, unique

ASKED = httpx.Request("GET", "http://127.0.0.1:9/api/")
REFUSED = (
    "✗ The Prefect server refused the credentials. Set PREFECT_API_AUTH_STRING (for Prefect Cloud: PREFECT_API_KEY) to "
    "what it expects."
)
COMMANDS = [
    "demo", "up", "sandbox", "setup", "deploy", "doctor", "generate", "batch", "list", "costs", "collect", "show",
    "resolve", "callbacks",
]  # fmt: skip


def test_the_commands_explain_themselves_without_a_server(tmp_path: Path) -> None:
    alone = Sora(tmp_path, {"PREFECT_HOME": str(tmp_path / "home")}, [])
    whole = alone("--help")
    assert whole.code == 0
    assert set(re.findall(r"^\W*([a-z]+) {2,}", whole.out, re.MULTILINE)) >= set(COMMANDS)
    assert not (tmp_path / "home").exists()
    one = alone("generate", "--help")
    assert one.code == 0, one.err
    assert "Run it again with the same --key after anything went wrong" in " ".join(one.out.split())
    assert alone().code != 1  # no command at all shows the help as well


def test_the_doctor_says_what_is_wrong_and_what_to_do(sora: Sora, blocks: list[str], sandbox: SandboxServer) -> None:
    well = sora("doctor", *blocks)
    assert well.code == 0, well.out
    lines = {line[2:24].strip(): line[0] for line in well.out.splitlines()}
    assert lines["prefect server"] == lines["archive"] == lines["api"] == lines["result route"] == "✓"
    assert {"worker", "deployments"} < set(lines)  # other tests share this server: they may have started a worker
    ill = sora("doctor", "--json", "--api", "nowhere", *blocks[2:])
    assert ill.code == 1
    assert "1 thing(s) to put right" in ill.err
    (wrong,) = [item for item in json.loads(ill.out) if item["outcome"] == "error"]
    assert wrong["name"] == "block apixo-api/nowhere"
    assert sandbox.record.submits() == []


def test_a_video_from_the_first_dry_run_to_the_saved_file(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    order = ["generate", "A red kite over dunes", "--key", key, *blocks]

    dry = sora(*order, "--dry-run", "--image", f"{sandbox.base_url}/samples/harbor.jpg")
    assert dry.code == 0, dry.err
    assert "JPEG" in dry.out
    assert key in dry.out
    assert "unknown: the block has no price_per_second" in dry.out
    lines = {line[:10].strip() for line in dry.out.splitlines()}
    assert {"api", "results", "clock", "balance", "image", "callbacks", "disk", "archive"} < lines
    assert "10000.00 USD" in dry.out
    assert "nothing was paid" in dry.out
    assert sandbox.record.submits() == []
    assert sora("show", key, "--archive", stored.name).code == 1

    made = sora(*order, "--verbose")
    assert made.code == 0, made.err
    row = made.out.splitlines()[1].split()
    assert row[:3] == [key, "archived", f"{stored.archive.bucket}/videos/{row[2].split('videos/', 1)[1]}"]
    assert f"sora show {key} --link" in made.err
    assert len(sandbox.record.submits()) == 1

    again = sora(*order)
    assert again.code == 0
    assert again.out == made.out
    assert len(sandbox.record.submits()) == 1

    renamed = ["generate", "A red kite over dunes", "--key", f"{key}-renamed", *blocks]
    dry = sora(*renamed, "--dry-run")
    assert f"asks for the same video as {key}" in dry.out
    for more in (["--dry-run"], []):
        assert "Duplicates are refused" in one_line(sora(*renamed, "--refuse-duplicates", *more), 1)
    assert len(sandbox.record.submits()) == 1

    told = sora("show", key, "--archive", stored.name, "--json", "--save", "kite.mp4")
    assert told.code == 0, told.err
    record = json.loads(told.out)
    video = next(item for item in record["objects"] if item["kind"] == "video")
    saved = (sora.folder / "kite.mp4").read_bytes()
    assert hashlib.sha256(saved).hexdigest() == video["sha256"] == row[-1]
    assert "Saved kite.mp4" in told.err

    shown = sora("show", key, "--archive", stored.name)
    for part in (key, "archived", "A red kite over dunes", record["attempts"][0]["task_id"], video["name"]):
        assert part in shown.out

    linked = sora("show", key, "--archive", stored.name, "--link")
    assert linked.code == 0
    opened = httpx.get(linked.out.strip())
    assert opened.status_code == 200
    assert opened.content == saved

    refused = one_line(sora("show", key, "--archive", stored.name, "--save", "."), 1)
    assert "cannot be written" in refused

    stored.archive.client().remove_object(stored.archive.bucket, video["name"])
    for option in ("--link", "--save=again.mp4"):
        gone = one_line(sora("show", key, "--archive", stored.name, option), 1)
        assert f"{video['name']} is not in the bucket {stored.archive.bucket} any more" in gone
    assert not (sora.folder / "again.mp4").exists()

    price = one_line(sora("generate", "Another prompt", "--key", key, *blocks), 1)
    assert "belongs to another request" in price
    assert len(sandbox.record.submits()) == 1


def test_a_file_as_start_image_is_uploaded_and_asks_for_the_same_video_again(
    sora: Sora, blocks: list[str], sandbox: SandboxServer, key: str
) -> None:
    Image.new("RGB", (64, 36), "teal").save(sora.folder / "start.png")
    order = ["generate", "A red kite over dunes", "--key", key, "--image", "./start.png", *blocks]
    dry = sora(*order, "--dry-run")
    assert "PNG, 64 x 36" in dry.out, dry.all
    for _ in range(2):
        made = sora(*order)
        assert made.code == 0, made.err
    assert len(sandbox.record.submits()) == 1
    assert "X-Amz" not in dry.all + made.all + sora("show", key, *blocks[2:]).all
    assert "nothing.jpg is no file here" in one_line(sora(*order[:5], "nothing.jpg", *blocks), 1)


BAD_ORDERS: list[tuple[list[str], int, str]] = [
    (["generate", "x", "--duration", "5"], 2, "duration: .*4, 8 or 12"),
    (["generate", "x", "--image", "file:///etc/passwd"], 2, "image_urls.*http"),
    (["generate", "x", "--key", "Bad Key"], 1, "'Bad Key' cannot be a key.*such as spring-sale-03"),
    (["generate", "x", "--key", ""], 1, "'' cannot be a key"),
    (["generate", "x", "--api", "nobody"], 1, "no apixo-api block named 'nobody'.*sora setup"),
    (["generate", "x", "--dry-run", "--archive", "nobody"], 1, "no video-archive block named 'nobody'.*sora setup"),
    (["show", "never-heard-of"], 1, "no record of never-heard-of"),
    (["resolve", "never-heard-of", "--resubmit", "--yes"], 1, "no record of never-heard-of"),
    (["resolve", "../escape", "--task-id", "t1"], 1, r"'\.\./escape' cannot be a key"),
]  # fmt: skip


def test_a_bad_order_is_refused_in_one_clear_line_and_pays_nothing(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer
) -> None:
    def complete(arguments: list[str]) -> list[str]:
        options = {"--api": stored.name, "--archive": stored.name}
        if arguments[0] == "show":
            del options["--api"]
        given = [part for name, value in options.items() if name not in arguments for part in (name, value)]
        return arguments + given

    waiting = list(BAD_ORDERS)
    while waiting:  # three at a time: each spends two seconds on its imports
        running = [(sora.start(*complete(order)), code, message) for order, code, message in waiting[:3]]
        del waiting[:3]
        for process, code, message in running:
            assert re.search(message, one_line(sora.end(process), code))
    assert sandbox.record.all() == []


def test_wrong_usage_says_how_it_is_used(sora: Sora, sandbox: SandboxServer, key: str) -> None:
    runs = {
        "give either --task-id": sora.start("resolve", key),
        "give either": sora.start("resolve", key, "--task-id", "t1", "--resubmit"),
        "Missing argument": sora.start("generate"),
        "valid integer": sora.start("generate", "x", "--duration", "four"),
    }
    for message, process in runs.items():
        said = sora.end(process)
        assert said.code == 2, said.all
        assert message in " ".join(re.sub(r"[^\w\s./-]", " ", said.err).split())
    assert sandbox.record.all() == []


def test_without_a_server_it_says_how_to_get_one(sora: Sora, sandbox: SandboxServer) -> None:
    absent = sora.start("generate", "x", PREFECT_API_URL="http://127.0.0.1:9/api")
    none = sora.start("generate", "x", PREFECT_API_URL="", PREFECT_HOME=str(sora.folder / "empty"))
    setting_up = sora.start("setup", PREFECT_API_URL="http://127.0.0.1:9/api", APIXO_API_KEY="k")
    assert "The Prefect server does not answer" in one_line(sora.end(absent), 1)
    assert re.search("no Prefect server.*sora up.*PREFECT_API_URL", one_line(sora.end(none), 1))
    assert "The Prefect server does not answer" in one_line(sora.end(setting_up), 1)
    assert sandbox.record.all() == []


def test_setup_from_the_environment_prints_no_secret(
    sora: Sora, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    name = unique("cli")
    archive = stored.archive
    environ = {
        "APIXO_API_KEY": sandbox.settings.api_key,
        "APIXO_BASE_URL": sandbox.base_url,
        "MINIO_ENDPOINT": archive.endpoint,
        "MINIO_ACCESS_KEY": archive.access_key,
        "MINIO_SECRET_KEY": archive.secret_key.get_secret_value(),
        "MINIO_SECURE": "false",
        "MINIO_BUCKET": unique("bucket"),
    }
    missing = sora("setup", "--no-deploy", "--name", name, **(environ | {"MINIO_SECRET_KEY": ""}))
    assert missing.code == 1
    assert "MINIO_SECRET_KEY" in missing.err
    assert "Traceback" not in missing.err
    bad = one_line(sora("setup", "--no-deploy", "--name", name, **environ, APIXO_DEADLINE_SECONDS="soon"), 2)
    assert "deadline_seconds: " in bad
    first, second = (sora("setup", "--no-deploy", "--name", name, **environ) for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    assert [line.split()[-1] for line in first.out.splitlines()] == ["created"] * 4
    assert [line.split()[-1] for line in second.out.splitlines()] == ["unchanged"] * 4
    dry = sora("generate", "x", "--key", key, "--dry-run", "--api", name, "--archive", name)
    assert dry.code == 0, dry.err


def test_submitting_without_waiting_and_going_on_later(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    order = ["generate", "A paper lantern", "--portrait", "--key", key, *blocks]
    sent = sora(*order, "--no-wait")
    assert sent.code == 0, sent.err
    (paid,) = sandbox.record.submits()
    assert f"{key}" in sent.out
    assert "submitted" in sent.out
    assert f"Submitted as task {paid.task_id}" in sent.err
    early = one_line(sora("show", key, "--archive", stored.name, "--link"), 1)
    assert "no video to see yet" in early
    done = sora(*order)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("taken", [True, False])
def test_an_unclear_payment_is_resolved_by_a_person(
    taken: bool, sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after" if taken else "reset_before"))
    order = ["generate", "A fox in fresh snow", "--key", key, *blocks]
    unclear = one_line(sora(*order), 1)
    assert f"Nobody can know yet whether {key} was paid" in unclear
    assert f"sora resolve {key} --task-id TASK_ID" in unclear
    assert f"sora resolve {key} --resubmit" in unclear
    assert "unconfirmed" in sora("show", key, "--archive", stored.name).out
    assert len(sandbox.record.submits()) == 1

    if taken:
        (paid,) = sandbox.record.charged()
        unknown = one_line(sora("resolve", key, "--task-id", "task_000000000000", *blocks), 1)
        assert "APIXO does not know task task_000000000000" in unknown
        done = sora("resolve", key, "--task-id", paid.task_id or "", *blocks)
    else:
        unasked = sora("resolve", key, "--resubmit", *blocks)  # nobody is there to say yes
        assert unasked.code == 1
        assert "unconfirmed" in unasked.out
        assert f"may pay for {key} once more" in unasked.err
        assert len(sandbox.record.submits()) == 1
        done = sora("resolve", key, "--resubmit", "--yes", *blocks)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == (1 if taken else 2)
    assert len(sandbox.record.charged()) == 1


def until(what: Callable[[], object], process: Process) -> None:
    deadline = time.monotonic() + 60
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
    assert f"run the same command with --key {key} to go on" in stopped.err
    sandbox.faults.clear()
    done = sora(*order)
    assert done.code == 0, done.err
    assert "archived" in done.out
    assert len(sandbox.record.submits()) == 1


@given(st.text(max_size=80))
def test_a_made_up_key_is_a_key(prompt: str) -> None:
    key = made_up_key(prompt)
    assert check_key(key) == key
    assert made_up_key(prompt) != key


def test_a_made_up_key_can_be_recognised() -> None:
    assert made_up_key("A red kite, over DUNES!").startswith("a-red-kite-over-dunes-20")


class Order(BaseModel):
    """Something with two rules."""

    seconds: int = Field(gt=0)
    name: str


def behind(cause: Exception) -> RuntimeError:
    """As Prefect wraps it."""
    error = RuntimeError("Failed to reach API at http://127.0.0.1:9/api/")
    error.__cause__ = cause
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
        (behind(httpx.ReadTimeout("late")), 1, ["✗ The Prefect server does not answer (ReadTimeout). Is it up?"]),
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
    end, code, told = ENDS[which]

    def ended() -> None:
        try:
            raise end
        except BaseException:
            if failing:
                raise ValueError("Task run is not set")  # noqa: B904 - as Prefect does it
            raise

    monkeypatch.setattr("deployments.cli.app.app", ended)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == code
    assert capsys.readouterr().err == told


def test_what_a_person_has_to_do_is_told_also_when_ctrl_c_is_behind_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended() -> None:
        raise PipelineError("Run: sora resolve") from KeyboardInterrupt()

    monkeypatch.setattr("deployments.cli.app.app", ended)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "✗ Run: sora resolve\nInterrupted.\n"


def test_what_was_left_open_is_listed_and_collected(
    sora: Sora, blocks: list[str], stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(Fault(call="submit", kind="reset_after", prompt_contains="lost"))
    sent = sora.start("generate", "A paper lantern", "--key", f"{key}-sent", "--no-wait", *blocks)
    lost = sora.start("generate", "lost", "--key", f"{key}-lost", *blocks)
    assert (sora.end(sent).code, sora.end(lost).code) == (0, 1)
    here = ["--archive", stored.name]
    opened, unclear = sora("list", "--open", *here), sora("list", "--unconfirmed", *here)
    assert {line.split()[0] for line in opened.out.splitlines()[1:]} == {f"{key}-sent", f"{key}-lost"}
    assert [line.split()[0] for line in unclear.out.splitlines()[1:]] == [f"{key}-lost"]
    collected = sora("collect", *blocks)
    assert collected.code == 0, collected.err
    assert f"sora resolve {key}-lost --task-id TASK_ID" in " ".join(collected.out.split())
    everything = sora("list", *here)
    assert {line.split()[1] for line in everything.out.splitlines()[1:]} == {"archived", "unconfirmed"}
    assert len(sandbox.record.submits()) == 2


async def test_what_was_spent_is_shown_by_group_with_what_the_ceilings_leave(
    sora: Sora, sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer, key: str
) -> None:
    limited = make_api(sandbox, price_per_second=Decimal("0.5"), currency="USD", max_spend_per_day=Decimal(3))
    stored = await store_blocks(limited, archive)
    blocks = ["--api", stored.name, "--archive", stored.name]
    assert sora("generate", "A paper lantern", "--key", key, "--tag", "autumn", *blocks).code == 0
    refused = sora("generate", "A paper boat", *blocks)
    assert "max_spend_per_day is 3 USD" in one_line(refused, 1)
    shown = sora("costs", "--by", "tag", *blocks)
    assert shown.code == 0, shown.err
    lines = [line.split() for line in shown.out.splitlines()]
    assert lines[1] == ["autumn", "1", "2.0", "0", "0", "0", "2.0", "USD"]
    assert "max_spend_per_day 3: 2.0 spent, 0 unclear, 0 reserved by runs, 1.0 left" in shown.out
    document = json.loads(sora("costs", "--json", "--month", "2020-02", *blocks).out)
    assert document == {"month": "2020-02", "by": "model", "rows": [], "totals": [], "ceilings": []}
    assert "is no month" in one_line(sora("costs", "--month", "2020-13", *blocks), 1)
