"""One row of the table: a fault of the provider, and its outcome."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, cast

from deployments.sandbox import Fault
from flows.media.media_errors import MediaError

TRIES: Final = 5
"""The maximum number of tries while the request is provably rejected (`apixo.constants.MAX_TRIES`)."""


class Outcome(StrEnum):
    """How a run ends."""

    ARCHIVED = "archived"
    REJECTED = "rejected"
    UNCONFIRMED = "unconfirmed"
    FAILED = "failed"
    FAILED_FOR_GOOD = "failed for good"
    DEADLINE = "deadline"
    KEY_REJECTED = "key rejected"
    NOT_FETCHED = "not fetched"


MEANINGS: Final = {
    Outcome.ARCHIVED: "the video is in the archive, read back and complete",
    Outcome.REJECTED: "provably not paid; a rerun submits",
    Outcome.UNCONFIRMED: "it may have been paid or not; nothing is sent again until a callback or a user settles it",
    Outcome.FAILED: "the provider accepted it and gave up; only a rerun by a user pays again",
    Outcome.FAILED_FOR_GOOD: "the same request cannot succeed; no rerun pays again",
    Outcome.DEADLINE: "paid and not yet archived; a rerun or the collector continues to wait",
    Outcome.KEY_REJECTED: "paid and not yet archived; with a valid API key, a rerun or the collector continues",
    Outcome.NOT_FETCHED: "paid, generated and not yet archived; a rerun or the collector fetches it again",
}

Call = Literal["submit", "status", "result"]
Setting = Literal["down", "short deadline", "forbidden prompt", "image"]


@dataclass(frozen=True)
class Row:
    """One fault and its outcome.

    Attributes:
        call: the call that is affected.
        description: what happens, for the page.
        faults: what the sandbox does.
        outcome: how the run ends.
        posts: how many paid calls the provider received.
        paid: how many of them it charged.
        why: the reason, as a sentence.
        rerun: how a second run with the same key ends, after the fault has passed.
        posts_then: how many paid calls the provider has received after that; unchanged if nothing is sent again.
        min_pause_seconds: the minimum time between the first and the second POST.
        max_pause_seconds: and the maximum; None: not checked.
        videos: how many videos are archived in the end.
        error: what a run raises that could not fetch the result.
        advice: what the error tells the user to do, if that depends on the fault: a regular expression.
        warning: what the record says about the archived video: a regular expression.
        setting: what else the test sets up.
    """

    call: Call
    description: str
    faults: tuple[Fault, ...]
    outcome: Outcome
    posts: int
    paid: int
    why: str
    rerun: Outcome | None = None
    posts_then: int | None = None
    min_pause_seconds: float = 0.0
    max_pause_seconds: float | None = None
    videos: int = 1
    error: type[MediaError] | None = None
    advice: str = ""
    warning: str = ""
    setting: Setting | None = None

    @property
    def name(self) -> str:
        """The id of the test."""
        return f"{self.call}: {self.description}"


def fault(call: str, kind: str, **options: Any) -> Fault:
    """One fault that the sandbox injects."""
    return Fault.model_validate({"call": call, "kind": kind, **options})


def archived(text: str, why: str, *faults: Fault, posts: int = 1, **more: Any) -> Row:
    return Row(_call(faults), text, faults, Outcome.ARCHIVED, posts, 1, why, **more)


def rejected(text: str, why: str, *faults: Fault, advice: str, posts: int = 1, **more: Any) -> Row:
    return Row(
        "submit", text, faults, Outcome.REJECTED, posts, 0, why,
        rerun=Outcome.ARCHIVED, posts_then=posts + 1, advice=advice, **more,
    )  # fmt: skip


def unconfirmed(text: str, paid: int, why: str, *faults: Fault, posts: int = 1) -> Row:
    return Row(
        "submit", text, faults, Outcome.UNCONFIRMED, posts, paid, why, rerun=Outcome.UNCONFIRMED, posts_then=posts
    )


def polls_again(text: str, why: str, kind: str, **options: Any) -> Row:
    """A status fault that passes after two polls."""
    return archived(text, why, fault("status", kind, times=2, **options))


def outlasts_deadline(text: str, why: str, kind: str, **options: Any) -> Row:
    """A status fault that lasts longer than the deadline."""
    faults = (fault("status", kind, times=-1, **options),)
    return Row(
        "status", text, faults, Outcome.DEADLINE, 1, 1, why,
        rerun=Outcome.ARCHIVED, posts_then=1, setting="short deadline",
    )  # fmt: skip


def fails(fail_code: str, why: str, *, says: str = "a new submission may succeed") -> Row:
    """A task that the provider gave up on, for a reason that may pass."""
    faults = (fault("status", "failed", times=-1, fail_code=fail_code),)
    return Row(
        "status", f"failed with `{fail_code}`", faults, Outcome.FAILED, 1, 1, why, rerun=Outcome.FAILED, posts_then=1,
        advice=says,
    )  # fmt: skip


def fails_for_good(fail_code: str, why: str, *, says: str = "use a new key") -> Row:
    """A task that the provider gave up on, for a reason that will not pass for the same request."""
    faults = (fault("status", "failed", times=-1, fail_code=fail_code),)
    return Row(
        "status", f"failed with `{fail_code}`", faults, Outcome.FAILED_FOR_GOOD, 1, 1, why,
        rerun=Outcome.FAILED_FOR_GOOD, posts_then=1, advice=says,
    )  # fmt: skip


def fetched(text: str, why: str, kind: str, *, times: int = 1, warning: str = "", **options: Any) -> Row:
    """A fault of the download that does not keep the video from the archive."""
    return archived(text, why, fault("result", kind, times=times, **options), warning=warning)


def not_fetched(text: str, why: str, kind: str, error: type[MediaError], advice: str, **options: Any) -> Row:
    """A fault of the download that lasts longer than the retries."""
    return Row(
        "result", text, (fault("result", kind, times=-1, **options),), Outcome.NOT_FETCHED, 1, 1, why,
        rerun=Outcome.ARCHIVED, posts_then=1, error=error, advice=advice,
    )  # fmt: skip


def _call(faults: tuple[Fault, ...]) -> Call:
    return cast("Call", faults[0].call) if faults else "submit"


CONTENT: Final = "The content was rejected: the same request cannot succeed."
INPUT: Final = "The input cannot be used: the same request cannot succeed."
PROVIDER: Final = "The problem is the provider's own: another submission may succeed, if a user wants it."
SPELLED: Final = "Names are compared without regard to case and underscores."
WORSE: Final = "HTTP status and code disagree: the worse one counts."

UNKNOWN: Final = "No answer says whether it was accepted, so it is not sent again."
NO_PROOF: Final = "The task may have been created before this answer, so it does not prove a rejection."
NO_TASK: Final = "An acceptance without a task id: it is paid, but the task is unknown."
DOCUMENTED: Final = "A documented rejection: nothing was paid."
ALREADY_PAID: Final = "Polling continues even after a rejection, because the task is paid."
POLLED_AGAIN: Final = "Polling costs nothing and is repeated."
FETCHED_AGAIN: Final = "Fetching costs nothing and is repeated."
KEPT_OPEN: Final = "The run fails after six tries; the generation stays open."
KEEPS_OPEN: Final = "The run ends at its deadline; the generation stays open."

FIX: Final = "Fix the request, then"
