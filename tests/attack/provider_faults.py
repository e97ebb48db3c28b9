"""What the provider may do wrong, and what becomes of a generation then: one table, for the test and for the page.

`python -m tests.attack.provider_faults` writes the table into docs/reliability.md; the test plays every row.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, cast

from deployments.sandbox import Fault
from flows.media.errors import (
    CutDownloadError,
    DamagedVideoError,
    DownloadError,
    ForbiddenByHostError,
    ForbiddenUrlError,
    MediaError,
    ResultExpiredError,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN: Final = "<!-- begin: faults of the provider, by `python -m tests.attack.provider_faults` -->"
END: Final = "<!-- end: faults of the provider -->"

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
        advice: what its message says that a person should do, where that depends on the fault: a regular expression.
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


def _archived(text: str, why: str, *script: Fault, posts: int = 1, **more: Any) -> Row:
    return Row(_call(script), text, script, End.ARCHIVED, posts, 1, why, **more)


def _rejected(text: str, why: str, *script: Fault, advice: str, posts: int = 1, **more: Any) -> Row:
    return Row(
        "submit", text, script, End.REJECTED, posts, 0, why,
        rerun=End.ARCHIVED, posts_then=posts + 1, advice=advice, **more,
    )  # fmt: skip


def _unconfirmed(text: str, paid: int, why: str, *script: Fault, posts: int = 1) -> Row:
    return Row("submit", text, script, End.UNCONFIRMED, posts, paid, why, rerun=End.UNCONFIRMED, posts_then=posts)


def _waits_on(text: str, why: str, kind: str, **options: Any) -> Row:
    """A status fault that passes after two questions."""
    return _archived(text, why, fault("status", kind, times=2, **options))


def _never_ends(text: str, why: str, kind: str, **options: Any) -> Row:
    """A status fault that lasts longer than the deadline."""
    script = (fault("status", kind, times=-1, **options),)
    return Row(
        "status", text, script, End.DEADLINE, 1, 1, why,
        rerun=End.ARCHIVED, posts_then=1, setting="short deadline",
    )  # fmt: skip


def _comes_home(text: str, why: str, kind: str, *, times: int = 1, warning: str = "", **options: Any) -> Row:
    """A fault of the download that does not keep the video."""
    return _archived(text, why, fault("result", kind, times=times, **options), warning=warning)


def _stays_away(text: str, why: str, kind: str, error: type[MediaError], advice: str, **options: Any) -> Row:
    """A fault of the download that lasts longer than the retries."""
    return Row(
        "result", text, (fault("result", kind, times=-1, **options),), End.NOT_FETCHED, 1, 1, why,
        rerun=End.ARCHIVED, posts_then=1, error=error, advice=advice,
    )  # fmt: skip


def _call(script: tuple[Fault, ...]) -> Call:
    return cast("Call", script[0].call) if script else "submit"


NOT_KNOWN: Final = "No answer says whether it was taken, so it is not sent again."
NO_YES: Final = "It may be an answer given after the task was made, so it is no proof of a no."
ODD_YES: Final = "It says yes and names no task, so it is paid and nobody knows as what."
DOCUMENTED: Final = "A documented no: nothing was paid."
ASKED_AGAIN: Final = "A question costs nothing and is asked again."
FETCHED_AGAIN: Final = "Fetching costs nothing and is done again."
KEPT_OPEN: Final = "The run fails after six tries; the generation stays open."
KEEPS_OPEN: Final = "The run ends at its deadline; the generation stays open."

MEND: Final = "Fix the request, then"

SUBMIT: Final = (
    _rejected(
        "nobody listens", "Never connected, so nothing was sent; tried five times.", posts=0, setting="down",
        advice="Check the network and base_url",
    ),
    _archived("429 once", "A documented no that asks to wait.", fault("submit", "http_429"), posts=2),
    _archived(
        "429 with `Retry-After: 1`", "It waits at least as long as it is asked to.",
        fault("submit", "http_429", retry_after="1"), posts=2, least_pause_seconds=1.0,
    ),
    _archived(
        "429 with `Retry-After: soon`", "Junk says nothing; its own pause counts.",
        fault("submit", "http_429", retry_after="soon"), posts=2, most_pause_seconds=1.0,
    ),
    _archived(
        "429 with a `Retry-After` in the year 9999", "A pause is cut to 5 minutes (1 second in this test).",
        fault("submit", "http_429", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
        posts=2, least_pause_seconds=1.0, most_pause_seconds=3.0,
    ),
    _archived("200 with code 429 once", "The code in the body counts too.", fault("submit", "code_429_body"), posts=2),
    _rejected(
        "429 for ever", "Five tries, all of them refused.", fault("submit", "http_429", times=-1), posts=TRIES,
        advice="Wait, then run it again",
    ),
    _rejected("400", DOCUMENTED, fault("submit", "http_400"), advice=MEND),
    _rejected("400 with a gateway's page", DOCUMENTED, fault("submit", "http_400_html"), advice=MEND),
    _rejected("200 with code 400", DOCUMENTED, fault("submit", "code_400_body"), advice=MEND),
    _rejected("400 \"Insufficient credits\"", DOCUMENTED, fault("submit", "http_400_credits"), advice="Top it up"),
    _rejected("400 \"MODEL_UNAVAILABLE\"", DOCUMENTED, fault("submit", "http_400_model"), advice="no such model"),
    _rejected("401", DOCUMENTED, fault("submit", "http_401"), advice="Check the API key in the Secret block"),
    _rejected("402", DOCUMENTED, fault("submit", "http_402"), advice="Top it up"),
    _rejected("403", DOCUMENTED, fault("submit", "http_403"), advice="Check what this API key may use"),
    _rejected("404", DOCUMENTED, fault("submit", "http_404"), advice="no such model"),
    _unconfirmed(
        "200 with code 400, and a task in the data", 1, "A no that names a task may be a yes.",
        fault("submit", "code_400_after"),
    ),
    _unconfirmed(
        "429, then a reset after it was taken", 1, "The first no was free; the second call is not clear.",
        fault("submit", "http_429"), fault("submit", "reset_after"), posts=2,
    ),
    _unconfirmed("500", 0, NO_YES, fault("submit", "http_500")),
    _unconfirmed("500 after it was taken", 1, NO_YES, fault("submit", "http_500_after")),
    _unconfirmed("502 with a page", 0, NO_YES, fault("submit", "http_502_html")),
    _unconfirmed("503", 0, NO_YES, fault("submit", "http_503")),
    _unconfirmed(
        "503 with `Retry-After: 1`", 0, "To be asked to come back is no proof of a no.",
        fault("submit", "http_503", retry_after="1"),
    ),
    _unconfirmed("403 with a gateway's page", 0, "Not the API's own no.", fault("submit", "http_403_html")),
    _unconfirmed("404 with a gateway's page", 0, "Not the API's own no.", fault("submit", "http_404_html")),
    _unconfirmed("200 with code 500", 0, NO_YES, fault("submit", "code_500_body")),
    _unconfirmed("a redirect", 0, "Not followed: it would carry the API key elsewhere.", fault("submit", "redirect")),
    _unconfirmed("a reset before it was taken", 0, NOT_KNOWN, fault("submit", "reset_before")),
    _unconfirmed("a reset after it was taken", 1, NOT_KNOWN, fault("submit", "reset_after")),
    _unconfirmed("no answer", 0, NOT_KNOWN, fault("submit", "hang", seconds=5)),
    _unconfirmed("no answer after it was taken", 1, NOT_KNOWN, fault("submit", "hang_after", seconds=5)),
    _archived("a slow answer", "It comes within the time-out.", fault("submit", "slow", seconds=0.6)),
    _unconfirmed(
        "an answer too slow for the time-out", 1, "The time-out is for the whole answer.",
        fault("submit", "slow", seconds=6),
    ),
    _unconfirmed("200 with junk", 1, ODD_YES, fault("submit", "junk")),
    _unconfirmed("200 with half of its JSON", 1, ODD_YES, fault("submit", "half_json")),
    _unconfirmed("200 with a list as task id", 1, ODD_YES, fault("submit", "wrong_types")),
    _unconfirmed("200 without a task id", 1, ODD_YES, fault("submit", "missing_fields")),
    _unconfirmed("200 with null as data", 1, ODD_YES, fault("submit", "null_data")),
    _unconfirmed("200 without data", 1, ODD_YES, fault("submit", "no_data")),
    _unconfirmed("200 with 50 MB", 1, "Not read beyond 1 MiB, so no task is known.", fault("submit", "huge_body")),
)  # fmt: skip

STATUS: Final = (
    _waits_on("task unknown right after the submission", "Not documented: is it known at once?", "task_unknown"),
    _waits_on("400", "Even a no is waited out: the task is paid.", "http_400"),
    _waits_on("400 \"Insufficient credits\"", "Even a no is waited out: the task is paid.", "http_400_credits"),
    _waits_on("400 \"MODEL_UNAVAILABLE\"", "Even a no is waited out: the task is paid.", "http_400_model"),
    _waits_on("400 with a gateway's page", "Even a no is waited out: the task is paid.", "http_400_html"),
    _waits_on("429", ASKED_AGAIN, "http_429"),
    _waits_on("429 with `Retry-After: 1`", ASKED_AGAIN, "http_429", retry_after="1"),
    _waits_on("429 with `Retry-After: soon`", ASKED_AGAIN, "http_429", retry_after="soon"),
    _archived(
        "429 with a `Retry-After` in the year 9999", "No pause outlasts the deadline; the last question counts.",
        fault("status", "http_429", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"), setting="short deadline",
    ),
    _waits_on("200 with code 429", ASKED_AGAIN, "code_429_body"),
    _waits_on("200 with code 400", ASKED_AGAIN, "code_400_body"),
    _waits_on("200 with code 400, and the status", ASKED_AGAIN, "code_400_after"),
    _waits_on("500", ASKED_AGAIN, "http_500"),
    _waits_on("500 after it was worked out", ASKED_AGAIN, "http_500_after"),
    _waits_on("502 with a page", ASKED_AGAIN, "http_502_html"),
    _waits_on("503", ASKED_AGAIN, "http_503"),
    _waits_on("503 with `Retry-After: 1`", ASKED_AGAIN, "http_503", retry_after="1"),
    _waits_on("402", ASKED_AGAIN, "http_402"),
    _waits_on("403", ASKED_AGAIN, "http_403"),
    _waits_on("403 with a gateway's page", ASKED_AGAIN, "http_403_html"),
    _waits_on("404", ASKED_AGAIN, "http_404"),
    _waits_on("404 with a gateway's page", ASKED_AGAIN, "http_404_html"),
    _waits_on("200 with code 500", ASKED_AGAIN, "code_500_body"),
    _waits_on("a redirect", "Not followed: it would carry the API key elsewhere.", "redirect"),
    _waits_on("a reset", ASKED_AGAIN, "reset_before"),
    _waits_on("a reset instead of the answer", ASKED_AGAIN, "reset_after"),
    _waits_on("no answer", "Silence of 30 seconds (0.5 in this test) ends a question.", "hang", seconds=5),
    _waits_on("no answer, though worked out", "Silence ends a question.", "hang_after", seconds=5),
    _waits_on("a slow answer", "It is waited for.", "slow", seconds=0.6),
    _waits_on("200 with junk", ASKED_AGAIN, "junk"),
    _waits_on("200 with half of its JSON", ASKED_AGAIN, "half_json"),
    _waits_on("200 with numbers for texts", ASKED_AGAIN, "wrong_types"),
    _waits_on("200 without a state", ASKED_AGAIN, "missing_fields"),
    _waits_on("200 with null as data", ASKED_AGAIN, "null_data"),
    _waits_on("200 without data", ASKED_AGAIN, "no_data"),
    _waits_on("200 with 50 MB", "Not read beyond 1 MiB, and asked again.", "huge_body"),
    _waits_on("an unknown state", "It may well be followed by a known one.", "unknown_state"),
    _waits_on("the status of another task", "An answer to another question.", "other_task"),
    _waits_on("success, and `resultJson` is broken", ASKED_AGAIN, "result_json_broken"),
    _waits_on("success, and `resultJson` holds no URL", ASKED_AGAIN, "result_json_empty"),
    _archived("success, `resultJson` is an object", "Taken as it is.", fault("status", "result_json_object", times=-1)),
    _archived(
        "success, and `resultJson` holds two URLs", "Both videos are archived.",
        fault("status", "result_json_two", times=-1), videos=2,
    ),
    _archived("success in capitals", "The word counts.", fault("status", "success_upper", times=-1)),
    _archived(
        "a state of another name, with the result", "Whoever brings the result has succeeded.",
        fault("status", "success_completed", times=-1),
    ),
    _archived(
        "success, and the address stands elsewhere", "It is taken from where it stands.",
        fault("status", "result_json_elsewhere", times=-1),
    ),
    _never_ends("task unknown for ever", KEEPS_OPEN, "task_unknown"),
    _never_ends("500 for ever", KEEPS_OPEN, "http_500"),
    _never_ends("429 for ever", KEEPS_OPEN, "http_429"),
    _never_ends("resets for ever", KEEPS_OPEN, "reset_before"),
    _never_ends("no answer for ever", KEEPS_OPEN, "hang", seconds=5),
    _never_ends("junk for ever", KEEPS_OPEN, "junk"),
    _never_ends("an unknown state for ever", KEEPS_OPEN, "unknown_state"),
    _never_ends("`expired` for ever", "After a day the collector leaves it to a person.", "stuck_state"),
    _never_ends("the status of another task for ever", KEEPS_OPEN, "other_task"),
    _never_ends("success without a URL for ever", KEEPS_OPEN, "result_json_empty"),
    Row(
        "status", "401", (fault("status", "http_401"),), End.KEY_REFUSED, 1, 1,
        "No question is answered with this key, so the run ends at once.", rerun=End.ARCHIVED, posts_then=1,
    ),
    Row(
        "status", "failed with an unknown failCode", (fault("status", "unknown_fail_code"),), End.FAILED, 1, 1,
        "The provider gave up, and says nothing that makes another try senseless.", rerun=End.FAILED, posts_then=1,
    ),
    Row(
        "status", "failed with `CONTENT_VIOLATION`", (), End.FAILED_FOR_GOOD, 1, 1,
        "The same prompt cannot succeed.", rerun=End.FAILED_FOR_GOOD, posts_then=1, setting="forbidden prompt",
    ),
    Row(
        "status", "failed with `INVALID_IMAGE_URL`", (fault("image", "http_404", skip=1, times=-1),),
        End.FAILED_FOR_GOOD, 1, 1, "We could read the image, the provider could not.",
        rerun=End.FAILED_FOR_GOOD, posts_then=1, setting="image",
    ),
)  # fmt: skip

RESULT: Final = (
    _comes_home("cut half-way", "The next try goes on where it was cut.", "cut"),
    _archived(
        "cut, then no ranges", "The next try begins anew.", fault("result", "cut"), fault("result", "no_range")
    ),
    _comes_home("no length", "What arrived is decoded to its end, so a cut would show.", "no_length", times=-1),
    _comes_home("a `Content-Encoding` that is only a label", "The bytes are taken as they come.", "labeled", times=-1),
    _comes_home(
        "the framing of an upload around the video", "It is taken off.", "framed", times=-1,
        warning="came wrapped in aws-chunked",
    ),
    _comes_home(
        "a length that is too long, for ever", "What arrived is whole by its own account.", "long_length", times=-1,
        warning="all that the host gives is archived",
    ),
    _comes_home("a redirect", "Followed, each address checked like the first.", "redirect"),
    _comes_home("a slow answer", "It is waited for, for half an hour.", "slow", seconds=0.6),
    _comes_home("429", FETCHED_AGAIN, "http_429"),
    _comes_home("429 with `Retry-After: 1`", FETCHED_AGAIN, "http_429", retry_after="1"),
    _comes_home("429 with `Retry-After: soon`", FETCHED_AGAIN, "http_429", retry_after="soon"),
    _comes_home("500", FETCHED_AGAIN, "http_500"),
    _comes_home("502 with a page", FETCHED_AGAIN, "http_502_html"),
    _comes_home("a reset", FETCHED_AGAIN, "reset_before"),
    _comes_home("no answer", "Silence of 30 seconds (0.5 in this test) ends a try.", "hang", seconds=5),
    _comes_home("403", "The host may refuse our name: it is asked under the other one.", "http_403"),
    _comes_home(
        "403 twice", "A signature may be over: the status is asked for a fresh address.", "http_403", times=2
    ),
    _comes_home("404", "The status is asked for a fresh address.", "http_404"),
    _comes_home("200 with a sign-in page", "Not a video, so it is fetched again.", "html_200"),
    _comes_home("an empty file", "Not a video, so it is fetched again.", "empty"),
    _comes_home("the first 60 % of the video as if it were whole", "It is decoded to its end.", "truncated_mp4"),
    _comes_home(
        "a video of another duration", "Paid for, so it is kept, with a warning.", "other_duration", times=-1,
        warning="8",
    ),
    _comes_home(
        "a video of another orientation", "Paid for, so it is kept, with a warning.", "other_orientation", times=-1,
        warning="portrait",
    ),
    _stays_away("cut for ever", KEPT_OPEN, "cut", CutDownloadError, "try again to fetch the rest"),
    _stays_away("429 for ever", KEPT_OPEN, "http_429", DownloadError, "try again later"),
    _stays_away("500 for ever", KEPT_OPEN, "http_500", DownloadError, "try again later"),
    _stays_away("502 for ever", KEPT_OPEN, "http_502_html", DownloadError, "try again later"),
    _stays_away("resets for ever", KEPT_OPEN, "reset_before", DownloadError, "try again later"),
    _stays_away("no answer for ever", KEPT_OPEN, "hang", DownloadError, "try again later", seconds=5),
    _stays_away("403 for ever", KEPT_OPEN, "http_403", ForbiddenByHostError, "Ask for the task's status again"),
    _stays_away("404 for ever", KEPT_OPEN, "http_404", ResultExpiredError, "Ask for the task's status again"),
    _stays_away("a page for ever", KEPT_OPEN, "html_200", DamagedVideoError, "a rerun can fetch it again"),
    _stays_away("an empty file for ever", KEPT_OPEN, "empty", DamagedVideoError, "a rerun can fetch it again"),
    _stays_away("half a video for ever", KEPT_OPEN, "truncated_mp4", DamagedVideoError, "a rerun can fetch it again"),
    _stays_away("redirects for ever", "Five are followed.", "redirect", DownloadError, "give the final URL"),
    _stays_away(
        "a redirect to a private address", "Not followed: it may be the cloud's metadata service.",
        "redirect_private", ForbiddenUrlError, "is not public: ",
    ),
    _stays_away(
        "3 GiB", "Refused by its announced length; the limit is 2 GiB.", "huge_body", DownloadError, "raise the limit"
    ),
)  # fmt: skip

ROWS: Final = SUBMIT + STATUS + RESULT


def table() -> str:
    """The rows as Markdown, with what the ends mean."""
    head = [
        "| call | what the provider does | the run ends | POSTs | paid | why | a rerun, once it has passed | POSTs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ends = [f"- **{end}**: {MEANING[end]}." for end in End]
    return "\n".join([*ends, "", *head, *map(_line, ROWS)])


def _line(row: Row) -> str:
    then = ("", "") if row.rerun is None else (row.rerun.value, str(row.posts_then))
    cells = (row.call, row.fault, row.end.value, str(row.posts), str(row.paid), row.why, *then)
    return f"| {' | '.join(cells)} |"


def with_table(page: str) -> str:
    """A page with the table between its markers, as it is now."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
