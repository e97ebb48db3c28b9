"""What the provider may do wrong, and what becomes of a generation then: one table, for the test and for the page.

`python -m tests.attack.provider_faults` writes the table into docs/reliability.md; the test plays every row.
"""

from pathlib import Path
from typing import Final

from flows.media.errors import (
    CutDownloadError,
    DamagedVideoError,
    DownloadError,
    ForbiddenByHostError,
    ForbiddenUrlError,
    ResultExpiredError,
)
from tests.attack.fault_rows import (
    ASKED_AGAIN,
    CONTENT,
    DOCUMENTED,
    FETCHED_AGAIN,
    INPUT,
    KEEPS_OPEN,
    KEPT_OPEN,
    MEANING,
    MEND,
    NO_YES,
    NOT_KNOWN,
    ODD_YES,
    PROVIDER,
    SPELLED,
    TRIES,
    WORSE,
    End,
    Row,
    archived,
    comes_home,
    fails,
    fails_for_good,
    fault,
    never_ends,
    rejected,
    stays_away,
    unconfirmed,
    waits_on,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN: Final = "<!-- begin: faults of the provider, by `python -m tests.attack.provider_faults` -->"
END: Final = "<!-- end: faults of the provider -->"

SUBMIT: Final = (
    rejected(
        "nobody listens", "Never connected, so nothing was sent; tried five times.", posts=0, setting="down",
        advice="Check the network and base_url",
    ),
    archived("429 once", "A documented no that asks to wait.", fault("submit", "http_429"), posts=2),
    archived(
        "429 with `Retry-After: 1`", "It waits at least as long as it is asked to.",
        fault("submit", "http_429", retry_after="1"), posts=2, least_pause_seconds=1.0,
    ),
    archived(
        "429 with `Retry-After: soon`", "Junk says nothing; its own pause counts.",
        fault("submit", "http_429", retry_after="soon"), posts=2, most_pause_seconds=1.0,
    ),
    archived(
        "429 with a `Retry-After` in the year 9999", "A pause is cut to 5 minutes (1 second in this test).",
        fault("submit", "http_429", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
        posts=2, least_pause_seconds=1.0, most_pause_seconds=3.0,
    ),
    archived("200 with code 429 once", "The code in the body counts too.", fault("submit", "code_429_body"), posts=2),
    rejected(
        "429 for ever", "Five tries, all of them refused.", fault("submit", "http_429", times=-1), posts=TRIES,
        advice="Wait, then run it again",
    ),
    rejected("400", DOCUMENTED, fault("submit", "http_400"), advice=MEND),
    rejected("400 with a gateway's page", DOCUMENTED, fault("submit", "http_400_html"), advice=MEND),
    rejected("200 with code 400", DOCUMENTED, fault("submit", "code_400_body"), advice=MEND),
    rejected("400 \"Insufficient credits\"", DOCUMENTED, fault("submit", "http_400_credits"), advice="Top it up"),
    rejected("400 \"MODEL_UNAVAILABLE\"", DOCUMENTED, fault("submit", "http_400_model"), advice="no such model"),
    rejected("401", DOCUMENTED, fault("submit", "http_401"), advice="Check the API key in the Secret block"),
    rejected("402", DOCUMENTED, fault("submit", "http_402"), advice="Top it up"),
    rejected("403", DOCUMENTED, fault("submit", "http_403"), advice="Check what this API key may use"),
    rejected("404", DOCUMENTED, fault("submit", "http_404"), advice="no such model"),
    rejected(
        "403 about the content", DOCUMENTED, fault("submit", "http_403_content"), advice="Change the prompt or the"
    ),
    rejected(
        "400 with `{\"error\": …}` as data", DOCUMENTED, fault("submit", "http_400_error"), advice="field: input.prompt"
    ),
    rejected(
        "401 with `{\"error\": …}` as data", DOCUMENTED, fault("submit", "http_401_error"),
        advice="No such key.*Check the API key in the Secret block",
    ),
    rejected("402 without data", DOCUMENTED, fault("submit", "http_402_no_data"), advice="Top it up"),
    rejected("404 without data", DOCUMENTED, fault("submit", "http_404_no_data"), advice="no such model"),
    rejected("200 with code 401", DOCUMENTED, fault("submit", "code_401_body"), advice="Check the API key"),
    rejected("200 with code 402", DOCUMENTED, fault("submit", "code_402_body"), advice="Top it up"),
    rejected("200 with code 403", DOCUMENTED, fault("submit", "code_403_body"), advice="Check what this API key may"),
    rejected("200 with code 404", DOCUMENTED, fault("submit", "code_404_body"), advice="no such model"),
    rejected(
        "402 with code 403", "Both are a documented no.", fault("submit", "http_402_code_403"),
        advice="Check what this API key may use",
    ),
    unconfirmed("400 with code 200", 0, WORSE, fault("submit", "http_400_code_200")),
    unconfirmed("400 with code 500", 0, WORSE, fault("submit", "http_400_code_500")),
    unconfirmed("500 with code 400", 0, WORSE, fault("submit", "http_500_code_400")),
    unconfirmed("503 with code 200", 0, WORSE, fault("submit", "http_503_code_200")),
    unconfirmed("200 with code 503", 0, WORSE, fault("submit", "code_503_body")),
    archived("200 with `\"200\"` as code", "Read as what it means.", fault("submit", "text_code")),
    archived("200 with a number as task id", "Its digits are the id.", fault("submit", "number_id")),
    unconfirmed(
        "200 with code 400, and a task in the data", 1, "A no that names a task may be a yes.",
        fault("submit", "code_400_after"),
    ),
    unconfirmed(
        "429, then a reset after it was taken", 1, "The first no was free; the second call is not clear.",
        fault("submit", "http_429"), fault("submit", "reset_after"), posts=2,
    ),
    unconfirmed("500", 0, NO_YES, fault("submit", "http_500")),
    unconfirmed("500 after it was taken", 1, NO_YES, fault("submit", "http_500_after")),
    unconfirmed("502 with a page", 0, NO_YES, fault("submit", "http_502_html")),
    unconfirmed("503", 0, NO_YES, fault("submit", "http_503")),
    unconfirmed(
        "503 with `Retry-After: 1`", 0, "To be asked to come back is no proof of a no.",
        fault("submit", "http_503", retry_after="1"),
    ),
    unconfirmed("403 with a gateway's page", 0, "Not the API's own no.", fault("submit", "http_403_html")),
    unconfirmed("404 with a gateway's page", 0, "Not the API's own no.", fault("submit", "http_404_html")),
    unconfirmed("200 with code 500", 0, NO_YES, fault("submit", "code_500_body")),
    unconfirmed("a redirect", 0, "Not followed: it would carry the API key elsewhere.", fault("submit", "redirect")),
    unconfirmed("a reset before it was taken", 0, NOT_KNOWN, fault("submit", "reset_before")),
    unconfirmed("a reset after it was taken", 1, NOT_KNOWN, fault("submit", "reset_after")),
    unconfirmed("no answer", 0, NOT_KNOWN, fault("submit", "hang", seconds=5)),
    unconfirmed("no answer after it was taken", 1, NOT_KNOWN, fault("submit", "hang_after", seconds=5)),
    archived("a slow answer", "It comes within the time-out.", fault("submit", "slow", seconds=0.6)),
    unconfirmed(
        "an answer too slow for the time-out", 1, "The time-out is for the whole answer.",
        fault("submit", "slow", seconds=6),
    ),
    unconfirmed("200 with junk", 1, ODD_YES, fault("submit", "junk")),
    unconfirmed("200 with half of its JSON", 1, ODD_YES, fault("submit", "half_json")),
    unconfirmed("200 with a list as task id", 1, ODD_YES, fault("submit", "wrong_types")),
    unconfirmed("200 without a task id", 1, ODD_YES, fault("submit", "missing_fields")),
    unconfirmed("200 with null as data", 1, ODD_YES, fault("submit", "null_data")),
    unconfirmed("200 without data", 1, ODD_YES, fault("submit", "no_data")),
    unconfirmed("200 with 50 MB", 1, "Not read beyond 1 MiB, so no task is known.", fault("submit", "huge_body")),
)  # fmt: skip

STATUS: Final = (
    waits_on("task unknown right after the submission", "Not documented: is it known at once?", "task_unknown"),
    waits_on("400", "Even a no is waited out: the task is paid.", "http_400"),
    waits_on("400 \"Insufficient credits\"", "Even a no is waited out: the task is paid.", "http_400_credits"),
    waits_on("400 \"MODEL_UNAVAILABLE\"", "Even a no is waited out: the task is paid.", "http_400_model"),
    waits_on("400 with a gateway's page", "Even a no is waited out: the task is paid.", "http_400_html"),
    waits_on("429", ASKED_AGAIN, "http_429"),
    waits_on("429 with `Retry-After: 1`", ASKED_AGAIN, "http_429", retry_after="1"),
    waits_on("429 with `Retry-After: soon`", ASKED_AGAIN, "http_429", retry_after="soon"),
    archived(
        "429 with a `Retry-After` in the year 9999", "No pause outlasts the deadline; the last question counts.",
        fault("status", "http_429", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"), setting="short deadline",
    ),
    waits_on("200 with code 429", ASKED_AGAIN, "code_429_body"),
    waits_on("200 with code 400", ASKED_AGAIN, "code_400_body"),
    waits_on("200 with code 400, and the status", ASKED_AGAIN, "code_400_after"),
    waits_on("500", ASKED_AGAIN, "http_500"),
    waits_on("500 after it was worked out", ASKED_AGAIN, "http_500_after"),
    waits_on("502 with a page", ASKED_AGAIN, "http_502_html"),
    waits_on("503", ASKED_AGAIN, "http_503"),
    waits_on("503 with `Retry-After: 1`", ASKED_AGAIN, "http_503", retry_after="1"),
    waits_on("402", ASKED_AGAIN, "http_402"),
    waits_on("403", ASKED_AGAIN, "http_403"),
    waits_on("403 with a gateway's page", ASKED_AGAIN, "http_403_html"),
    waits_on("404", ASKED_AGAIN, "http_404"),
    waits_on("404 with a gateway's page", ASKED_AGAIN, "http_404_html"),
    waits_on("403 about the content", ASKED_AGAIN, "http_403_content"),
    waits_on("400 with `{\"error\": …}` as data", ASKED_AGAIN, "http_400_error"),
    waits_on("402 without data", ASKED_AGAIN, "http_402_no_data"),
    waits_on("404 without data", ASKED_AGAIN, "http_404_no_data"),
    waits_on("200 with code 402", ASKED_AGAIN, "code_402_body"),
    waits_on("200 with code 403", ASKED_AGAIN, "code_403_body"),
    waits_on("200 with code 404", ASKED_AGAIN, "code_404_body"),
    waits_on("200 with code 500", ASKED_AGAIN, "code_500_body"),
    waits_on("200 with code 503", ASKED_AGAIN, "code_503_body"),
    waits_on("400 with code 200", ASKED_AGAIN, "http_400_code_200"),
    waits_on("400 with code 500", ASKED_AGAIN, "http_400_code_500"),
    waits_on("402 with code 403", ASKED_AGAIN, "http_402_code_403"),
    waits_on("500 with code 400", ASKED_AGAIN, "http_500_code_400"),
    waits_on("503 with code 200", ASKED_AGAIN, "http_503_code_200"),
    archived("200 with `\"200\"` as code", "Read as what it means.", fault("status", "text_code", times=-1)),
    waits_on("a redirect", "Not followed: it would carry the API key elsewhere.", "redirect"),
    waits_on("a reset", ASKED_AGAIN, "reset_before"),
    waits_on("a reset instead of the answer", ASKED_AGAIN, "reset_after"),
    waits_on("no answer", "Silence of 30 seconds (0.5 in this test) ends a question.", "hang", seconds=5),
    waits_on("no answer, though worked out", "Silence ends a question.", "hang_after", seconds=5),
    waits_on("a slow answer", "It is waited for.", "slow", seconds=0.6),
    waits_on("200 with junk", ASKED_AGAIN, "junk"),
    waits_on("200 with half of its JSON", ASKED_AGAIN, "half_json"),
    waits_on("200 with numbers for texts", ASKED_AGAIN, "wrong_types"),
    waits_on("200 without a state", ASKED_AGAIN, "missing_fields"),
    waits_on("200 with null as data", ASKED_AGAIN, "null_data"),
    waits_on("200 without data", ASKED_AGAIN, "no_data"),
    waits_on("200 with 50 MB", "Not read beyond 1 MiB, and asked again.", "huge_body"),
    waits_on("an unknown state", "It may well be followed by a known one.", "unknown_state"),
    waits_on("the status of another task", "An answer to another question.", "other_task"),
    waits_on("success, and `resultJson` is broken", ASKED_AGAIN, "result_json_broken"),
    waits_on("success, and `resultJson` holds no URL", ASKED_AGAIN, "result_json_empty"),
    archived("success, `resultJson` is an object", "Taken as it is.", fault("status", "result_json_object", times=-1)),
    archived(
        "success, and `resultJson` holds two URLs", "Both videos are archived.",
        fault("status", "result_json_two", times=-1), videos=2,
    ),
    archived("success in capitals", "The word counts.", fault("status", "success_upper", times=-1)),
    archived(
        "a state of another name, with the result", "Whoever brings the result has succeeded.",
        fault("status", "success_completed", times=-1),
    ),
    archived(
        "success, and the address stands elsewhere", "It is taken from where it stands.",
        fault("status", "result_json_elsewhere", times=-1),
    ),
    never_ends("task unknown for ever", KEEPS_OPEN, "task_unknown"),
    never_ends("500 for ever", KEEPS_OPEN, "http_500"),
    never_ends("429 for ever", KEEPS_OPEN, "http_429"),
    never_ends("resets for ever", KEEPS_OPEN, "reset_before"),
    never_ends("no answer for ever", KEEPS_OPEN, "hang", seconds=5),
    never_ends("junk for ever", KEEPS_OPEN, "junk"),
    never_ends("an unknown state for ever", KEEPS_OPEN, "unknown_state"),
    never_ends("`expired` for ever", "After a day the collector leaves it to a person.", "stuck_state"),
    never_ends("the status of another task for ever", KEEPS_OPEN, "other_task"),
    never_ends("success without a URL for ever", KEEPS_OPEN, "result_json_empty"),
    Row(
        "status", "401", (fault("status", "http_401"),), End.KEY_REFUSED, 1, 1,
        "No question is answered with this key, so the run ends at once.", rerun=End.ARCHIVED, posts_then=1,
    ),
    *(
        Row(
            "status", name, (fault("status", kind),), End.KEY_REFUSED, 1, 1,
            "No question is answered with this key, so the run ends at once.", rerun=End.ARCHIVED, posts_then=1,
        )
        for name, kind in (
            ("200 with code 401", "code_401_body"), ("401 with `{\"error\": …}` as data", "http_401_error"),
        )
    ),
    fails("SOMETHING_NEW", "The provider gave up, and says nothing that makes another try senseless."),
    *(fails_for_good(code, CONTENT) for code in (
        "NSFW_DETECTED", "NSFW", "SensitiveContent", "SensitiveContentDetected", "ProhibitedContentDetected",
    )),
    fails_for_good("InputImageSensitiveContentDetected", CONTENT, says="It is about the image.*use a new key"),
    fails_for_good(
        "InputOutputSensitiveContentDetected", CONTENT, says="It is about the input or the video.*use a new key"
    ),
    *(fails_for_good(code, SPELLED) for code in (
        "ContentViolation", "nsfw_detected", "SENSITIVE_CONTENT_DETECTED", "prohibitedContentDetected",
    )),
    *(
        fails_for_good(code, INPUT, says=f"It is about {part}.*use a new key")
        for code, part in (
            ("PROMPT_TOO_LONG", "the prompt"), ("PromptLengthExceeded", "the prompt"), ("INVALID_PROMPT", "the prompt"),
            ("IMAGE_TOO_LARGE", "the image"), ("UNSUPPORTED_FORMAT", "the image"),
        )
    ),
    *(
        fails_for_good(code, SPELLED, says=f"It is about {part}.*use a new key")
        for code, part in (("InvalidPrompt", "the prompt"), ("INVALID_IMAGEURL", "the image"))
    ),
    fails(
        "IMAGE_DOWNLOAD_FAILED", "The image may be reachable later.",
        says="It is about the image. Make sure that the image is reachable",
    ),
    fails("imageDownloadFailed", SPELLED, says="Make sure that the image is reachable"),
    *(
        fails(code, PROVIDER, says="The trouble is the provider's own")
        for code in ("PROCESSING_TIMEOUT", "MODEL_UNAVAILABLE", "GENERATION_FAILED")
    ),
    *(
        fails(code, SPELLED, says="The trouble is the provider's own")
        for code in ("ProcessingTimeout", "generationFailed")
    ),
    fails("INSUFFICIENT_CREDITS", "Nothing succeeds until a person pays.", says="Top up the APIXO account"),
    fails("InsufficientCredits", SPELLED, says="Top up the APIXO account"),
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
    comes_home("cut half-way", "The next try goes on where it was cut.", "cut"),
    archived(
        "cut, then no ranges", "The next try begins anew.", fault("result", "cut"), fault("result", "no_range")
    ),
    comes_home("no length", "What arrived is decoded to its end, so a cut would show.", "no_length", times=-1),
    comes_home("a `Content-Encoding` that is only a label", "The bytes are taken as they come.", "labeled", times=-1),
    comes_home(
        "the framing of an upload around the video", "It is taken off.", "framed", times=-1,
        warning="came wrapped in aws-chunked",
    ),
    comes_home(
        "a length that is too long, for ever", "What arrived is whole by its own account.", "long_length", times=-1,
        warning="everything that the host sends is archived",
    ),
    comes_home("a redirect", "Followed, each address checked like the first.", "redirect"),
    comes_home("a slow answer", "It is waited for, for half an hour.", "slow", seconds=0.6),
    comes_home("429", FETCHED_AGAIN, "http_429"),
    comes_home("429 with `Retry-After: 1`", FETCHED_AGAIN, "http_429", retry_after="1"),
    comes_home("429 with `Retry-After: soon`", FETCHED_AGAIN, "http_429", retry_after="soon"),
    comes_home("500", FETCHED_AGAIN, "http_500"),
    comes_home("502 with a page", FETCHED_AGAIN, "http_502_html"),
    comes_home("a reset", FETCHED_AGAIN, "reset_before"),
    comes_home("no answer", "Silence of 30 seconds (0.5 in this test) ends a try.", "hang", seconds=5),
    comes_home("403", "The host may refuse our name: it is asked under the other one.", "http_403"),
    comes_home(
        "403 twice", "A signature may be over: the status is asked for a fresh address.", "http_403", times=2
    ),
    comes_home("404", "The status is asked for a fresh address.", "http_404"),
    comes_home("200 with a sign-in page", "Not a video, so it is fetched again.", "html_200"),
    comes_home("an empty file", "Not a video, so it is fetched again.", "empty"),
    comes_home("the first 60 % of the video as if it were whole", "It is decoded to its end.", "truncated_mp4"),
    comes_home(
        "a video of another duration", "Paid for, so it is kept, with a warning.", "other_duration", times=-1,
        warning="8",
    ),
    comes_home(
        "a video of another orientation", "Paid for, so it is kept, with a warning.", "other_orientation", times=-1,
        warning="portrait",
    ),
    comes_home("an animated GIF", "Paid for, and it plays: kept as it is.", "gif", times=-1),
    stays_away("cut for ever", KEPT_OPEN, "cut", CutDownloadError, "try again to fetch the rest"),
    stays_away("429 for ever", KEPT_OPEN, "http_429", DownloadError, "try again later"),
    stays_away("500 for ever", KEPT_OPEN, "http_500", DownloadError, "try again later"),
    stays_away("502 for ever", KEPT_OPEN, "http_502_html", DownloadError, "try again later"),
    stays_away("resets for ever", KEPT_OPEN, "reset_before", DownloadError, "try again later"),
    stays_away("no answer for ever", KEPT_OPEN, "hang", DownloadError, "try again later", seconds=5),
    stays_away("403 for ever", KEPT_OPEN, "http_403", ForbiddenByHostError, "Poll the task again"),
    stays_away("404 for ever", KEPT_OPEN, "http_404", ResultExpiredError, "Poll the task again"),
    stays_away("a page for ever", KEPT_OPEN, "html_200", DamagedVideoError, "a rerun can fetch it again"),
    stays_away("an empty file for ever", KEPT_OPEN, "empty", DamagedVideoError, "a rerun can fetch it again"),
    stays_away("half a video for ever", KEPT_OPEN, "truncated_mp4", DamagedVideoError, "a rerun can fetch it again"),
    stays_away("redirects for ever", "Five are followed.", "redirect", DownloadError, "give the final URL"),
    stays_away(
        "a redirect to a private address", "Not followed: it may be the cloud's metadata service.",
        "redirect_private", ForbiddenUrlError, "is not public: ",
    ),
    stays_away(
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
