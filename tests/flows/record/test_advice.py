"""The advice in each state: whether the video was paid for, and what to do, with the command and the deployment."""

import pytest

from apixo.errors import NO_RESULT
from flows.record.advice import advice, duplicate_error, failed_error, task_of_another_key
from flows.record.generation import Generation, State

from .changes import LATER, allow, claimed, fail, lose, reject, submit, succeed


def failed(code: str) -> Generation:
    return fail(submit(claimed()), code=code)


RESOLVE = "a Custom run of the deployment `resolve-video` with the key `kite`"
CASES: list[tuple[str, Generation, str, str, list[str]]] = [
    ("claimed", claimed(), "Stopped", "Unknown so far", ["Run it again with the same key"]),
    (
        "unconfirmed",
        lose(claimed()),
        "Unconfirmed",
        "It is unknown",
        [
            "for a task of 2026-03-01 12:00:00 UTC",
            f"There is one: `sora resolve kite --task-id TASK_ID --api x`, or {RESOLVE}, the decision to go on",
            (
                "There is none: `sora resolve kite --resubmit --api x`, or the same with the decision to submit once "
                "more and attempt 1. It pays."
            ),
        ],
    ),
    (
        "submitted",
        submit(claimed()),
        "Not archived yet",
        "Yes, as task `t1`",
        ["`collect-videos`", "`sora collect --api x`"],
    ),
    (
        "succeeded",
        succeed(submit(claimed())),
        "Not archived yet",
        "Yes, as task `t1`. Nothing is lost.",
        ["`collect-videos`", "pays nothing"],
    ),
    ("failed", failed("ODD"), "Failed", "as task `t1`", [f"`sora resolve kite --resubmit --api x`, or {RESOLVE}"]),
    (
        "given up",
        failed(NO_RESULT),
        "Given up",
        "Yes, as task `t1`",
        [
            "Look at the task in your APIXO account.",
            f"It has a result, or is in progress: `sora resolve kite --task-id t1 --api x`, or {RESOLVE}",
            "It has none: to pay for another try, `sora resolve kite --resubmit --api x`",
        ],
    ),
    ("failed for good", failed("CONTENT_VIOLATION"), "Failed", "as task `t1`", ["change it, and give it a new key"]),
    (
        "rejected",
        reject(claimed()),
        "Rejected",
        "No. APIXO rejected it.",
        ["the deployment `generate-video`"],
    ),
]


@pytest.mark.parametrize(("name", "found", "title", "paid", "steps"), CASES, ids=[case[0] for case in CASES])
def test_each_state_has_its_advice(name: str, found: Generation, title: str, paid: str, steps: list[str]) -> None:
    result = advice(found, " --api x")
    assert result.title == title
    assert result.paid.startswith(paid) or paid in result.paid
    assert len(result.steps) == len(steps)
    assert [text for step, text in zip(result.steps, steps, strict=True) if text not in step] == []


def test_rejection_does_not_hide_earlier_paid_attempt() -> None:
    rejected = reject(claimed(allow(failed("ODD"))))
    assert advice(rejected, "").paid == "Not this attempt: APIXO rejected it. An earlier one was, or may have been."


def test_resubmit_advice_follows_the_recorded_retryable_flag() -> None:
    """A later version may classify the provider's code differently. Its advice must still follow the record."""
    for code, permanent in (("ODD", True), ("CONTENT_VIOLATION", False)):
        found = failed(code)
        assert found.attempt.problem
        recorded = found.attempt.problem.model_copy(update={"retryable": not permanent})
        found = found.with_attempt(1, {"problem": recorded}, now=LATER)
        error = failed_error(found, "")
        assert (error.permanent, "--resubmit" in str(error)) == (permanent, not permanent)


def test_commands_include_api_and_archive_options() -> None:
    options = " --api a --archive b"
    archived = submit(claimed()).model_copy(update={"state": State.ARCHIVED})
    assert advice(archived, options).steps == ("To see it: `sora show kite --link --archive b`.",)
    assert "`sora show kite --archive b`" in str(duplicate_error("other", "kite", options))
    assert "`sora resolve kite --task-id … --api a --archive b`" in task_of_another_key("t", "kite", options).message


def test_resubmit_steps_mention_payment_and_appear_only_in_resubmittable_states() -> None:
    for name, found, *_ in CASES:
        resubmits = [step for step in advice(found, "").steps if "--resubmit" in step]
        assert all("pay" in step.lower() for step in resubmits)
        assert bool(resubmits) is (name in ("unconfirmed", "failed", "given up"))


def test_backtick_in_task_id_does_not_end_the_code_span() -> None:
    assert "`t'x`" in advice(submit(claimed(), "t`x"), "").paid
