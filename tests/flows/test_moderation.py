"""Moderation verdicts on a finished video: it is submitted again as often as allowed, each time as a new attempt."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

import flows.generate_video
from apixo.errors import NO_END, may_be_mistaken
from blocks import VideoArchive
from blocks.store_errors import StoreError
from deployments.local.prefect_server import PrefectServer
from deployments.sandbox import Fault, SandboxServer
from deployments.sandbox import tasks as sandbox_tasks
from flows.batch.calendar_rows import BatchItem
from flows.batch.summary import BatchFailedError
from flows.generate_batch import generate_batch
from flows.record import moderation
from flows.record.generation import Generation, State
from flows.record.ledger import Entry, Ledger
from flows.record.pipeline_errors import UnconfirmedError, VideoFailedError
from flows.resolution import load_generation, resolve_as_task
from flows.resolve_video import GO_ON, resolve_video
from flows.resources import Resources
from flows.signals.events import publish_end
from tests.flows.conftest import StoredBlocks, store_blocks
from tests.flows.generations import granted_by_click
from tests.flows.record.changes import claimed, fail, lose, resolve, submit
from tests.support import KITE, make_api

OUTPUT = "InputOutputSensitiveContentDetected"
NOW = datetime(2026, 11, 28, tzinfo=UTC)


@pytest.mark.parametrize(
    ("code", "mistakable"),
    [
        (OUTPUT, True),
        ("input_output_sensitive_content_detected", True),
        ("OutputVideoSensitiveContentDetected", True),
        ("InputImageSensitiveContentDetected", False),
        ("SensitiveContentDetected", True),  # does not say whether the input or the output was judged
        ("sensitive_content", True),
        ("CONTENT_VIOLATION", False),
        ("NSFW_DETECTED", True),
        ("nsfw", True),
        ("ProhibitedContentDetected", False),
        ("INVALID_PROMPT", False),
        ("OUTPUT_TOO_LARGE", False),
        ("GENERATION_FAILED", False),
        ("", False),
    ],
)
def test_verdicts_that_may_be_mistaken_are_recognized(code: str, mistakable: bool) -> None:
    assert may_be_mistaken(code) is mistakable


def failed_by_moderation(
    over: Generation | None = None, code: str = OUTPUT, granted_by: str | None = None
) -> Generation:
    found = claimed(over, granted_by=granted_by)
    task_id = f"t{found.attempt.number}"
    return fail(submit(found, task_id), task_id, code)


def test_moderation_retries_are_counted_in_the_record() -> None:
    once = failed_by_moderation()
    assert [moderation.may_submit_again(once, retries) for retries in (0, 1, 3)] == [False, True, True]
    again = failed_by_moderation(once, granted_by=moderation.GRANTED_BY)
    assert [moderation.may_submit_again(again, retries) for retries in (1, 2)] == [False, True]
    assert (
        moderation.reason(again, 2)
        == f"APIXO's verdict on attempt 2 ({OUTPUT}) may be mistaken: moderation retry 2 of 2"
    )
    assert not moderation.may_submit_again(failed_by_moderation(again, code="CONTENT_VIOLATION"), 3)


def test_nothing_is_paid_again_while_an_attempt_is_unconfirmed() -> None:
    once = failed_by_moderation()
    lost = once.attempt.model_copy(update={"number": 1, "state": State.UNCONFIRMED, "task_id": None})
    unclear = once.model_copy(update={"attempts": (lost, once.attempt.model_copy(update={"number": 2}))})
    assert not moderation.may_submit_again(unclear, 3)
    assert not moderation.may_submit_again(lose(claimed(once)), 3)


RESOLVED_BY_USER = {
    "no answer": lambda: resolve(lose(claimed())),
    "another task": lambda: resolve(submit(claimed(), "other")),
    "its own task": lambda: resolve(submit(claimed())),
    "a task that was given up": lambda: resolve(fail(submit(claimed()), code=NO_END)),
}


@pytest.mark.parametrize("how", RESOLVED_BY_USER)
def test_task_named_by_a_user_is_never_paid_again_by_moderation_retries(how: str) -> None:
    rejected = fail(RESOLVED_BY_USER[how](), code=OUTPUT)
    assert rejected.state is State.FAILED
    assert not moderation.may_submit_again(rejected, 3)


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch, sandbox: SandboxServer) -> list[str]:
    """The sandbox fails its next finished videos with these codes, in order."""
    codes: list[str] = []
    end = sandbox_tasks.Task.end

    def end_with_verdict(task: Any, fail_code: str | None = None, fail_message: str | None = None) -> None:
        is_our_sandbox = task.base_url.startswith(sandbox.base_url)  # a task of another test may end at the same time
        if fail_code is None and codes and is_our_sandbox:
            fail_code, fail_message = codes.pop(0), "judged"
        end(task, fail_code, fail_message)

    monkeypatch.setattr(sandbox_tasks.Task, "end", end_with_verdict)
    return codes


@pytest.fixture
async def lenient(sandbox: SandboxServer, archive: VideoArchive, prefect_server: PrefectServer) -> StoredBlocks:
    """Blocks that allow two moderation retries."""
    api = make_api(sandbox, moderation_retries=2, price_per_second=Decimal("0.5"), submit_timeout_seconds=20)
    return await store_blocks(api, archive)


async def test_video_rejected_by_output_moderation_is_submitted_again(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = ["NSFW_DETECTED", OUTPUT]
    made = await lenient.generate(KITE, key=key)
    assert (made.state, len(sandbox.record.submits())) == (State.ARCHIVED, 3)
    assert [attempt.granted_by for attempt in made.attempts] == [None, "moderation_retries", "moderation_retries"]
    assert made.attempt.note == f"APIXO's verdict on attempt 2 ({OUTPUT}) may be mistaken: moderation retry 2 of 2"


async def test_generation_fails_for_good_after_the_last_moderation_retry(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = [OUTPUT] * 9
    for _ in range(2):  # a rerun gets no retries of its own
        with pytest.raises(VideoFailedError, match=OUTPUT):
            await lenient.generate(KITE, key=key)
        assert len(sandbox.record.submits()) == 3


async def test_manual_rerun_is_used_up_even_if_moderation_retries_allow_the_attempt(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, a worker that starts the run again would pay once more."""
    verdicts[:] = [OUTPUT]
    strict = await store_blocks(lenient.api.model_copy(update={"moderation_retries": 0}), lenient.archive)
    with pytest.raises(VideoFailedError):
        await strict.generate(KITE, key=key)
    monkeypatch.setattr(flows.generate_video, "rerun_by_person", granted_by_click)
    verdicts[:] = ["GENERATION_FAILED"] * 3
    for _ in range(3):
        with pytest.raises(VideoFailedError):
            await lenient.generate(KITE, key=key)
    made = await lenient.existing(key)
    assert [attempt.granted_by for attempt in made.attempts] == [None, "a click"]
    assert len(sandbox.record.submits()) == 2


async def test_store_outage_after_the_verdict_pays_nothing_and_keeps_the_verdict_in_the_error(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts[:] = [OUTPUT]

    async def unavailable(ledger: Ledger, key: str) -> Entry | None:
        raise StoreError("The store is unavailable.")

    async def publish_then_fail_reads(*arguments: Any, **options: Any) -> None:
        await publish_end(*arguments, **options)
        monkeypatch.setattr(Ledger, "read", unavailable)

    monkeypatch.setattr("flows.task_end.publish_end", publish_then_fail_reads)
    with pytest.raises(VideoFailedError, match=OUTPUT):
        await lenient.generate(KITE, key=key)
    assert len(sandbox.record.submits()) == 1


async def test_verdict_on_the_input_is_final(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = ["InputImageSensitiveContentDetected"]
    with pytest.raises(VideoFailedError):
        await lenient.generate(KITE, key=key)
    assert len(sandbox.record.submits()) == 1


async def test_no_verdict_is_paid_again_by_default(
    stored: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = [OUTPUT]
    with pytest.raises(VideoFailedError):
        await stored.generate(KITE, key=key)
    assert len(sandbox.record.submits()) == 1


@pytest.mark.parametrize("by", ["form", "command"])
async def test_resolving_with_a_task_id_never_pays_for_a_moderation_retry(
    by: str, lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = [OUTPUT]
    sandbox.faults.add(Fault(call="submit", kind="reset_after"))
    with pytest.raises(UnconfirmedError):
        await lenient.generate(KITE, key=key)
    task_id = sandbox.record.charged()[-1].task_id or ""
    if by == "form":
        with pytest.raises(VideoFailedError, match=OUTPUT):
            await resolve_video(key=key, decision=GO_ON, task_id=task_id, api=lenient.name, archive=lenient.name)
    else:
        async with Resources(lenient.api, lenient.archive) as resources:
            await resolve_as_task(await load_generation(key, resources.ledger), task_id, resources)
    for _ in range(2):  # and not if the same video is run again, by a calendar or a user
        with pytest.raises(VideoFailedError, match=OUTPUT):
            await lenient.generate(KITE, key=key)
    assert len(sandbox.record.submits()) == 1


async def test_unconfirmed_moderation_retry_is_not_repeated(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = [OUTPUT]
    sandbox.faults.add(Fault(call="submit", kind="reset_after", skip=1))
    with pytest.raises(UnconfirmedError):
        await lenient.generate(KITE, key=key)
    with pytest.raises(UnconfirmedError):
        await lenient.generate(KITE, key=key)
    assert len(sandbox.record.submits()) == 2


async def test_each_moderation_retry_counts_against_max_spend(
    lenient: StoredBlocks, sandbox: SandboxServer, verdicts: list[str], key: str
) -> None:
    verdicts[:] = [OUTPUT, OUTPUT]
    with pytest.raises(BatchFailedError, match="max_spend is 5"):
        await generate_batch(
            requests=[BatchItem(prompt="A kite")], key=key, max_spend=5, api=lenient.name, archive=lenient.name
        )
    assert len(sandbox.record.submits()) == 2  # each costs 2
