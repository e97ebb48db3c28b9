"""What a fault of the provider does, and what becomes of the generation: one row of the table."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, cast

from deployments.sandbox import Fault
from flows.media.errors import (
    MediaError,
)

TRIES: Final = 5
"""How often a provable no is sent again in all (`apixo.constants.MAX_TRIES`)."""


class End(StrEnum):
    """How a run ends."""

    ARCHIVED = "archived"
    REJECTED = "rejected"
    UNCONFIRMED = "unconfirmed"
    FAILED = "failed"
    FAILED_FOR_GOOD = "failed for good"
    DEADLINE = "deadline"
    KEY_REFUSED = "key refused"
    NOT_FETCHED = "not fetched"


MEANING: Final = {
    End.ARCHIVED: "the video lies in the archive, read back and whole",
    End.REJECTED: "provably not paid; a rerun submits",
    End.UNCONFIRMED: "paid or not, nobody can know; nothing is sent again until a callback or a person says which",
    End.FAILED: "the provider took it and gave up; only a person's rerun pays again",
    End.FAILED_FOR_GOOD: "the same request cannot succeed; no rerun pays again",
    End.DEADLINE: "paid and not yet home; a rerun, or the collector, goes on waiting",
    End.KEY_REFUSED: "paid and not yet home; with a right API key a rerun, or the collector, goes on",
    End.NOT_FETCHED: "paid, made and not yet home; a rerun, or the collector, fetches it again",
}

Call = Literal["submit", "status", "result"]
Setting = Literal["down", "short deadline", "forbidden prompt", "image"]


@dataclass(frozen=True)
class Row:
    """One fault and its end.

    Attributes:
        call: the call that it happens to.
        fault: what happens, for the page.
        script: what the sandbox does.
        end: how the run ends.
        posts: how many paid calls the provider saw.
        paid: how many of them it charged.
        why: in a sentence.
        rerun: how a second run with the same key ends, when the fault has passed.
        posts_then: how many paid calls it has seen after that; the same as before where nothing is sent again.
        least_pause_seconds: how long the second POST came after the first at least.
        most_pause_seconds: and at most; None: not looked at.
        videos: how many videos are archived in the end.
        error: what a run raises that could not fetch the result.
        advice: what its message says, and a person should do, where that depends on the fault: a regular expression.
        warning: what the record says about the archived video: a regular expression.
        setting: what else the test sets up.
    """

    call: Call
    fault: str
    script: tuple[Fault, ...]
    end: End
    posts: int
    paid: int
    why: str
    rerun: End | None = None
    posts_then: int | None = None
    least_pause_seconds: float = 0.0
    most_pause_seconds: float | None = None
    videos: int = 1
    error: type[MediaError] | None = None
    advice: str = ""
    warning: str = ""
    setting: Setting | None = None

    @property
    def name(self) -> str:
        """For the test's id."""
        return f"{self.call}: {self.fault}"


def fault(call: str, kind: str, **options: Any) -> Fault:
    """One scripted fault."""
    return Fault.model_validate({"call": call, "kind": kind, **options})


def archived(text: str, why: str, *script: Fault, posts: int = 1, **more: Any) -> Row:
    return Row(_call(script), text, script, End.ARCHIVED, posts, 1, why, **more)


def rejected(text: str, why: str, *script: Fault, advice: str, posts: int = 1, **more: Any) -> Row:
    return Row(
        "submit", text, script, End.REJECTED, posts, 0, why,
        rerun=End.ARCHIVED, posts_then=posts + 1, advice=advice, **more,
    )  # fmt: skip


def unconfirmed(text: str, paid: int, why: str, *script: Fault, posts: int = 1) -> Row:
    return Row("submit", text, script, End.UNCONFIRMED, posts, paid, why, rerun=End.UNCONFIRMED, posts_then=posts)


def waits_on(text: str, why: str, kind: str, **options: Any) -> Row:
    """A status fault that passes after two questions."""
    return archived(text, why, fault("status", kind, times=2, **options))


def never_ends(text: str, why: str, kind: str, **options: Any) -> Row:
    """A status fault that lasts longer than the deadline."""
    script = (fault("status", kind, times=-1, **options),)
    return Row(
        "status", text, script, End.DEADLINE, 1, 1, why,
        rerun=End.ARCHIVED, posts_then=1, setting="short deadline",
    )  # fmt: skip


def fails(fail_code: str, why: str, *, says: str = "a new submission may succeed") -> Row:
    """A task that the provider gave up on, for a reason that may pass."""
    script = (fault("status", "failed", times=-1, fail_code=fail_code),)
    return Row(
        "status", f"failed with `{fail_code}`", script, End.FAILED, 1, 1, why, rerun=End.FAILED, posts_then=1,
        advice=says,
    )  # fmt: skip


def fails_for_good(fail_code: str, why: str, *, says: str = "use a new key") -> Row:
    """A task that the provider gave up on, for a reason that the same request cannot outlive."""
    script = (fault("status", "failed", times=-1, fail_code=fail_code),)
    return Row(
        "status", f"failed with `{fail_code}`", script, End.FAILED_FOR_GOOD, 1, 1, why,
        rerun=End.FAILED_FOR_GOOD, posts_then=1, advice=says,
    )  # fmt: skip


def comes_home(text: str, why: str, kind: str, *, times: int = 1, warning: str = "", **options: Any) -> Row:
    """A fault of the download that does not keep the video."""
    return archived(text, why, fault("result", kind, times=times, **options), warning=warning)


def stays_away(text: str, why: str, kind: str, error: type[MediaError], advice: str, **options: Any) -> Row:
    """A fault of the download that lasts longer than the retries."""
    return Row(
        "result", text, (fault("result", kind, times=-1, **options),), End.NOT_FETCHED, 1, 1, why,
        rerun=End.ARCHIVED, posts_then=1, error=error, advice=advice,
    )  # fmt: skip


def _call(script: tuple[Fault, ...]) -> Call:
    return cast("Call", script[0].call) if script else "submit"


CONTENT: Final = "The content was judged: the same request cannot succeed."
INPUT: Final = "The input cannot be used: the same request cannot succeed."
PROVIDER: Final = "The provider's own trouble: another submission may succeed, where a person wants it."
SPELLED: Final = "Names are compared without case and underscores."
WORSE: Final = "HTTP status and code disagree: the worse reading counts."

NOT_KNOWN: Final = "No answer says whether it was taken, so it is not sent again."
NO_YES: Final = "It may be an answer given after the task was made, so it is no proof of a no."
ODD_YES: Final = "It says yes and names no task, so it is paid and nobody knows as what."
DOCUMENTED: Final = "A documented no: nothing was paid."
ASKED_AGAIN: Final = "A question costs nothing and is asked again."
FETCHED_AGAIN: Final = "Fetching costs nothing and is done again."
KEPT_OPEN: Final = "The run fails after six tries; the generation stays open."
KEEPS_OPEN: Final = "The run ends at its deadline; the generation stays open."

MEND: Final = "Fix the request, then"
