"""The artifact of a run without a video: what happened, whether it was paid, what to do. No secret gets in."""

import pytest

from flows.record.advice import NOTHING_SENT, UNREADABLE, Advice, advice
from flows.signals.run_artifacts import failure_markdown, on_its_way_markdown

from ..record.changes import claimed, lose, submit
from .test_artifacts import NASTY, RENDERER, inline, shape

UNCONFIRMED = lose(claimed())


def test_failure_artifact_says_what_happened_whether_it_was_paid_and_what_to_do() -> None:
    text = failure_markdown("kite", "No answer came.", advice(UNCONFIRMED, ""), UNCONFIRMED)
    lines = text.splitlines()
    assert lines[0] == "# Unconfirmed: kite"
    assert lines[2] == "**What happened.** No answer came."
    assert lines[4].startswith("**Was it paid?** It is unknown. It is not resent automatically")
    assert [line[:2] for line in lines if line[:1].isdigit()] == ["1.", "2.", "3."]
    assert "| state | unconfirmed |" in lines
    assert "| claimed | 2026\\-03\\-01 12:00:00 UTC |" in lines
    code = [token.content for token in inline(RENDERER.parse(text)) if token.type == "code_inline"]
    assert code == ["sora resolve kite --task-id TASK_ID", "resolve-video", "kite", "sora resolve kite --resubmit"]


@pytest.mark.parametrize("known", [NOTHING_SENT, UNREADABLE])
def test_failure_artifact_without_a_record_says_what_is_known(known: Advice) -> None:
    text = failure_markdown("kite", "There is no block.", known, None)
    assert "| state" not in text
    assert f"**Was it paid?** {known.paid}" in text


@pytest.mark.parametrize("reason", NASTY)
def test_reason_stays_plain_text(reason: str) -> None:
    known = advice(UNCONFIRMED, "")
    assert shape(failure_markdown("kite", reason, known, UNCONFIRMED)) == shape(
        failure_markdown("kite", "no", known, UNCONFIRMED)
    )


def test_reason_is_truncated_and_has_no_signature() -> None:
    reason = "https://h.example/v.mp4?X-Amz-Signature=5ecret failed " + "x" * 100_000
    text = failure_markdown("kite", reason, UNREADABLE, None)
    assert "5ecret" not in text
    assert len(text) < 4_000


def test_on_its_way_artifact_names_the_task_and_what_to_do() -> None:
    text = on_its_way_markdown(submit(claimed()), " --api x --archive y")
    assert text.startswith("# On its way: kite\n")
    for part in (
        "> A red kite over dunes",
        "**Paid:** Yes, as task `t1`",
        "`collect-videos`",
        "`sora show kite --archive y`",
        "| task | t1 |",
    ):
        assert part in text
    assert "`sora show kite`" in on_its_way_markdown(submit(claimed()), " --api x")
