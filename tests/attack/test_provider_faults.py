"""Every fault of the provider, through the whole flow: how the run ends, what is sent, and what a rerun does."""

import re
from contextlib import aclosing
from typing import Any, Final

import pytest

from apixo import ApixoClient, AuthenticationError, DeadlineError, VideoRequest
from apixo.constants import MAX_TRIES
from deployments.sandbox import SandboxServer
from deployments.sandbox.faults import KINDS, FaultCall
from flows.media.guarded_client import guarded_client
from flows.media.media_errors import MediaError
from flows.record.generation import Generation, State
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import SubmissionRejectedError, UnconfirmedError, VideoFailedError
from tests.apixo.wire import closed_port
from tests.attack.fault_rows import TRIES, Outcome, Row
from tests.attack.provider_faults import PAGE, RESULT, ROWS, STATUS, SUBMIT, with_table
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.support import make_api, make_archive

ERRORS: Final[dict[Outcome, type[Exception]]] = {
    Outcome.REJECTED: SubmissionRejectedError,
    Outcome.UNCONFIRMED: UnconfirmedError,
    Outcome.FAILED: VideoFailedError,
    Outcome.FAILED_FOR_GOOD: VideoFailedError,
    Outcome.DEADLINE: DeadlineError,
    Outcome.KEY_REJECTED: AuthenticationError,
    Outcome.NOT_FETCHED: MediaError,
}
ADVICE: Final = {
    Outcome.UNCONFIRMED: (
        r"`sora resolve {key} --task-id TASK_ID{options}`.* or `sora resolve {key} --resubmit{options}`"
    ),
    Outcome.FAILED: r"run `sora resolve {key} --resubmit{options}`, or rerun",
    Outcome.FAILED_FOR_GOOD: r"use a new key",
    Outcome.DEADLINE: r"{key}: Task {task_id} .* poll again later\..* the same key, which pays nothing",
    Outcome.KEY_REJECTED: r"Check the API key in the Secret block",
}
"""What the error tells the user to do, if that does not depend on the fault."""
STATES: Final = {
    Outcome.ARCHIVED: State.ARCHIVED,
    Outcome.REJECTED: State.REJECTED,
    Outcome.UNCONFIRMED: State.UNCONFIRMED,
    Outcome.FAILED: State.FAILED,
    Outcome.FAILED_FOR_GOOD: State.FAILED,
    Outcome.DEADLINE: State.SUBMITTED,
    Outcome.KEY_REJECTED: State.SUBMITTED,
    Outcome.NOT_FETCHED: State.SUCCEEDED,
}
OPEN: Final = {Outcome.UNCONFIRMED, Outcome.DEADLINE, Outcome.KEY_REJECTED, Outcome.NOT_FETCHED}
"""After these outcomes, a video may still be archived, so the generation stays marked."""
PERMANENT: Final = {Outcome.FAILED_FOR_GOOD: True, Outcome.FAILED: False}

SAMPLED: Final = [
    pytest.param(row, marks=pytest.mark.sample) if number % 28 == 4 else row for number, row in enumerate(ROWS)
]
"""All rows. One in 28 is also in the fixed sample."""


def request_of(row: Row, sandbox: SandboxServer) -> VideoRequest:
    prompt = "something forbidden" if row.setting == "forbidden prompt" else "A red kite over dunes"
    urls = [f"{sandbox.base_url}/samples/harbor.jpg"] if row.setting == "image" else []
    return VideoRequest(prompt=prompt, image_urls=urls)


async def run_and_check(row: Row, outcome: Outcome, stored: StoredBlocks, sandbox: SandboxServer, key: str) -> None:
    """Runs the flow once, and checks the outcome and the record."""
    request = request_of(row, sandbox)
    if outcome is Outcome.ARCHIVED:
        generation = await stored.generate(request, key=key)
        assert generation == await stored.recorded(key)
        assert sum(item.kind == "video" for item in generation.objects) == row.videos
        if row.warning:
            assert re.search(row.warning, " ".join(generation.warnings))
        raised = None
    else:
        with pytest.raises(ERRORS[outcome]) as caught:
            await stored.generate(request, key=key)
        raised = caught.value
    found = await stored.existing(key)
    if raised is not None:
        check_error(raised, row, outcome, found, stored)
    assert found.state is STATES[outcome]
    assert await is_open(key, stored) == (outcome in OPEN)
    check_record_has_charges(found, sandbox)


def check_error(raised: Exception, row: Row, outcome: Outcome, found: Generation, stored: StoredBlocks) -> None:
    """The error has the class that a caller expects, names the key, and says what to do."""
    assert type(raised) is (row.error if outcome is Outcome.NOT_FETCHED else ERRORS[outcome])
    if outcome in PERMANENT:
        assert getattr(raised, "permanent", None) is PERMANENT[outcome]
    if outcome in (Outcome.REJECTED, Outcome.UNCONFIRMED, Outcome.FAILED, Outcome.FAILED_FOR_GOOD):
        assert found.key in str(raised)
    options = f" --api {stored.name} --archive {stored.name}"
    advice = [text for text in (ADVICE.get(outcome), row.advice) if text]
    assert advice
    for text in advice:
        wanted = text.format(key=re.escape(found.key), task_id=found.task_id, options=re.escape(options))
        assert re.search(wanted, str(raised), re.DOTALL), str(raised)


def check_record_has_charges(found: Generation, sandbox: SandboxServer) -> None:
    """A charged task is in the record, or the record is unconfirmed."""
    charged = {request.task_id for request in sandbox.record.charged()}
    assert len(charged) <= 1
    assert charged <= {attempt.task_id for attempt in found.attempts} or found.state is State.UNCONFIRMED


async def is_open(key: str, stored: StoredBlocks) -> bool:
    async with aclosing(stored.archive.store()) as store:
        return await Ledger(store).is_published(key) is not None


@pytest.fixture
def short_waits(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter timeouts: 30 seconds without data and pauses of 5 minutes are too long for a test."""
    fetching = 0.5 if row.call == "result" else 5.0  # an image is rendered first, which takes some time
    for function, name, seconds in (
        (ApixoClient.__init__, "read_timeout_seconds", 0.5),
        (guarded_client, "timeout_seconds", fetching),
    ):
        defaults: dict[str, Any] = function.__kwdefaults__ or {}
        monkeypatch.setitem(defaults, name, seconds)
    monkeypatch.setattr("apixo.retries.MAX_RETRY_AFTER_SECONDS", 1.0)


@pytest.fixture
async def stored(row: Row, sandbox: SandboxServer, minio: Any, prefect_server: object) -> StoredBlocks:
    """The blocks for the test of this row."""
    changed = {"deadline_seconds": 1.5} if row.setting == "short deadline" else {}
    return await store_blocks(make_api(sandbox, **changed), make_archive(minio))


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("row", SAMPLED, ids=lambda row: row.name)
async def test_provider_fault_leads_to_documented_outcome(
    row: Row, stored: StoredBlocks, sandbox: SandboxServer, key: str
) -> None:
    sandbox.faults.add(*row.faults)
    if row.setting == "down":
        await point_to(f"http://127.0.0.1:{closed_port()}", stored)
    await run_and_check(row, row.outcome, stored, sandbox, key)
    assert len(sandbox.record.submits()) == row.posts
    assert len(sandbox.record.charged()) == row.paid
    check_pause(row, sandbox)
    if row.rerun is None:
        assert row.posts_then is None
        await run_and_check(row, row.outcome, stored, sandbox, key)
        assert len(sandbox.record.submits()) == row.posts
        return
    sandbox.faults.clear()
    await point_to(sandbox.base_url, stored)
    await run_and_check(row, row.rerun, stored, sandbox, key)
    assert len(sandbox.record.submits()) == row.posts_then


def check_pause(row: Row, sandbox: SandboxServer) -> None:
    if row.posts != 2:
        return
    first, second = sandbox.record.submits()
    pause = second.time - first.time
    assert row.min_pause_seconds <= pause
    assert row.max_pause_seconds is None or pause <= row.max_pause_seconds


async def point_to(base_url: str, stored: StoredBlocks) -> None:
    stored.api.base_url = base_url
    stored.api.deadline_seconds = 20
    await stored.api.save(stored.name, overwrite=True)


@pytest.mark.sample
def test_page_contains_current_fault_table() -> None:
    page = PAGE.read_text()
    assert page == with_table(page), "run `python -m tests.attack.provider_faults`"


@pytest.mark.sample
def test_every_sandbox_fault_has_a_row() -> None:
    matrix: dict[FaultCall, Any] = {"submit": SUBMIT, "status": STATUS, "result": RESULT}
    for call, rows in matrix.items():
        covered = {fault.kind for row in rows for fault in row.faults if fault.call == call}
        assert covered == KINDS[call]
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert TRIES == MAX_TRIES
