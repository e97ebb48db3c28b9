"""What the provider may do wrong, and how a generation ends then: one table, for the tests and for the page.

`python -m tests.attack.provider_faults` writes the table into docs/reliability.md. The tests run every row.
"""

from pathlib import Path
from typing import Final

from flows.media.media_errors import (
    CutDownloadError,
    DamagedVideoError,
    DownloadError,
    ForbiddenByHostError,
    ForbiddenUrlError,
    ResultExpiredError,
)
from tests.attack.fault_rows import (
    ALREADY_PAID,
    CONTENT,
    DOCUMENTED,
    FETCHED_AGAIN,
    FIX,
    INPUT,
    KEEPS_OPEN,
    KEPT_OPEN,
    MEANINGS,
    NO_PROOF,
    NO_TASK,
    POLLED_AGAIN,
    PROVIDER,
    SPELLED,
    TRIES,
    UNKNOWN,
    WORSE,
    Outcome,
    Row,
    archived,
    fails,
    fails_for_good,
    fault,
    fetched,
    not_fetched,
    outlasts_deadline,
    polls_again,
    rejected,
    unconfirmed,
)

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN: Final = "<!-- begin: faults of the provider, by `python -m tests.attack.provider_faults` -->"
END: Final = "<!-- end: faults of the provider -->"

SUBMIT: Final = (
    rejected(
        "nothing listens", "Never connected, so nothing was sent; tried five times.", posts=0, setting="down",
        advice="Check the network and base_url",
    ),
    archived("429 once", "A documented rejection that asks to wait.", fault("submit", "http_429"), posts=2),
    archived(
        "429 with `Retry-After: 1`", "It waits at least that long.",
        fault("submit", "http_429", retry_after="1"), posts=2, min_pause_seconds=1.0,
    ),
    archived(
        "429 with `Retry-After: soon`", "Junk is ignored; the default pause applies.",
        fault("submit", "http_429", retry_after="soon"), posts=2, max_pause_seconds=1.0,
    ),
    archived(
        "429 with a `Retry-After` in the year 9999", "A pause is limited to 5 minutes (1 second in this test).",
        fault("submit", "http_429", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"),
        posts=2, min_pause_seconds=1.0, max_pause_seconds=3.0,
    ),
    archived("200 with code 429 once", "The code in the body counts too.", fault("submit", "code_429_body"), posts=2),
    rejected(
        "429 forever", "Five tries, all of them rejected.", fault("submit", "http_429", times=-1), posts=TRIES,
        advice="Wait, then run it again",
    ),
    rejected("400", DOCUMENTED, fault("submit", "http_400"), advice=FIX),
    rejected("400 with a gateway's page", DOCUMENTED, fault("submit", "http_400_html"), advice=FIX),
    rejected("200 with code 400", DOCUMENTED, fault("submit", "code_400_body"), advice=FIX),
    rejected("400 \"Insufficient credits\"", DOCUMENTED, fault("submit", "http_400_credits"), advice="Top it up"),
    rejected("400 \"MODEL_UNAVAILABLE\"", DOCUMENTED, fault("submit", "http_400_model"), advice="no such model"),
    rejected("401", DOCUMENTED, fault("submit", "http_401"), advice="Check the API key in the Secret block"),
    rejected("402", DOCUMENTED, fault("submit", "http_402"), advice="Top it up"),
    rejected("403", DOCUMENTED, fault("submit", "http_403"), advice="lacks another permission"),
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
    rejected("200 with code 403", DOCUMENTED, fault("submit", "code_403_body"), advice="lacks another permission"),
    rejected("200 with code 404", DOCUMENTED, fault("submit", "code_404_body"), advice="no such model"),
    rejected(
        "402 with code 403", "Both are documented rejections.", fault("submit", "http_402_code_403"),
        advice="lacks another permission",
    ),
    unconfirmed("400 with code 200", 0, WORSE, fault("submit", "http_400_code_200")),
    unconfirmed("400 with code 500", 0, WORSE, fault("submit", "http_400_code_500")),
    unconfirmed("500 with code 400", 0, WORSE, fault("submit", "http_500_code_400")),
    unconfirmed("503 with code 200", 0, WORSE, fault("submit", "http_503_code_200")),
    unconfirmed("200 with code 503", 0, WORSE, fault("submit", "code_503_body")),
    archived("200 with `\"200\"` as code", "The text is read as a number.", fault("submit", "text_code")),
    archived("200 with a number as the task id", "Its digits are the id.", fault("submit", "number_id")),
    unconfirmed(
        "200 with code 400, and a task in the data", 1, "A rejection that names a task may be an acceptance.",
        fault("submit", "code_400_after"),
    ),
    unconfirmed(
        "429, then a reset after it was accepted", 1, "The first call was rejected; the second is unclear.",
        fault("submit", "http_429"), fault("submit", "reset_after"), posts=2,
    ),
    unconfirmed("500", 0, NO_PROOF, fault("submit", "http_500")),
    unconfirmed("500 after it was accepted", 1, NO_PROOF, fault("submit", "http_500_after")),
    unconfirmed("502 with an HTML page", 0, NO_PROOF, fault("submit", "http_502_html")),
    unconfirmed("503", 0, NO_PROOF, fault("submit", "http_503")),
    unconfirmed(
        "503 with `Retry-After: 1`", 0, "A request to try again later does not prove a rejection.",
        fault("submit", "http_503", retry_after="1"),
    ),
    unconfirmed("403 with a gateway's page", 0, "Not a rejection by the API itself.", fault("submit", "http_403_html")),
    unconfirmed("404 with a gateway's page", 0, "Not a rejection by the API itself.", fault("submit", "http_404_html")),
    unconfirmed("200 with code 500", 0, NO_PROOF, fault("submit", "code_500_body")),
    unconfirmed("a redirect", 0, "Not followed: it would carry the API key elsewhere.", fault("submit", "redirect")),
    unconfirmed("a reset before it was accepted", 0, UNKNOWN, fault("submit", "reset_before")),
    unconfirmed("a reset after it was accepted", 1, UNKNOWN, fault("submit", "reset_after")),
    unconfirmed("no answer", 0, UNKNOWN, fault("submit", "hang", seconds=5)),
    unconfirmed("no answer after it was accepted", 1, UNKNOWN, fault("submit", "hang_after", seconds=5)),
    archived("a slow answer", "It arrives within the timeout.", fault("submit", "slow", seconds=0.6)),
    unconfirmed(
        "an answer too slow for the timeout", 1, "The timeout applies to the whole answer.",
        fault("submit", "slow", seconds=6),
    ),
    unconfirmed("200 with junk", 1, NO_TASK, fault("submit", "junk")),
    unconfirmed("200 with half of its JSON", 1, NO_TASK, fault("submit", "half_json")),
    unconfirmed("200 with a list as the task id", 1, NO_TASK, fault("submit", "wrong_types")),
    unconfirmed("200 without a task id", 1, NO_TASK, fault("submit", "missing_fields")),
    unconfirmed("200 with null as data", 1, NO_TASK, fault("submit", "null_data")),
    unconfirmed("200 without data", 1, NO_TASK, fault("submit", "no_data")),
    unconfirmed("200 with 50 MB", 1, "Only 1 MiB is read, so the task is unknown.", fault("submit", "huge_body")),
)  # fmt: skip

STATUS: Final = (
    polls_again(
        "task unknown right after the submission", "It is not documented whether a new task is known at once.",
        "task_unknown",
    ),
    polls_again("400", ALREADY_PAID, "http_400"),
    polls_again("400 \"Insufficient credits\"", ALREADY_PAID, "http_400_credits"),
    polls_again("400 \"MODEL_UNAVAILABLE\"", ALREADY_PAID, "http_400_model"),
    polls_again("400 with a gateway's page", ALREADY_PAID, "http_400_html"),
    polls_again("429", POLLED_AGAIN, "http_429"),
    polls_again("429 with `Retry-After: 1`", POLLED_AGAIN, "http_429", retry_after="1"),
    polls_again("429 with `Retry-After: soon`", POLLED_AGAIN, "http_429", retry_after="soon"),
    archived(
        "429 with a `Retry-After` in the year 9999", "No pause extends beyond the deadline; the last poll counts.",
        fault("status", "http_429", retry_after="Fri, 31 Dec 9999 23:59:59 GMT"), setting="short deadline",
    ),
    polls_again("200 with code 429", POLLED_AGAIN, "code_429_body"),
    polls_again("200 with code 400", POLLED_AGAIN, "code_400_body"),
    polls_again("200 with code 400, and the status", POLLED_AGAIN, "code_400_after"),
    polls_again("500", POLLED_AGAIN, "http_500"),
    polls_again("500 after it was processed", POLLED_AGAIN, "http_500_after"),
    polls_again("502 with an HTML page", POLLED_AGAIN, "http_502_html"),
    polls_again("503", POLLED_AGAIN, "http_503"),
    polls_again("503 with `Retry-After: 1`", POLLED_AGAIN, "http_503", retry_after="1"),
    polls_again("402", POLLED_AGAIN, "http_402"),
    polls_again("403", POLLED_AGAIN, "http_403"),
    polls_again("403 with a gateway's page", POLLED_AGAIN, "http_403_html"),
    polls_again("404", POLLED_AGAIN, "http_404"),
    polls_again("404 with a gateway's page", POLLED_AGAIN, "http_404_html"),
    polls_again("403 about the content", POLLED_AGAIN, "http_403_content"),
    polls_again("400 with `{\"error\": …}` as data", POLLED_AGAIN, "http_400_error"),
    polls_again("402 without data", POLLED_AGAIN, "http_402_no_data"),
    polls_again("404 without data", POLLED_AGAIN, "http_404_no_data"),
    polls_again("200 with code 402", POLLED_AGAIN, "code_402_body"),
    polls_again("200 with code 403", POLLED_AGAIN, "code_403_body"),
    polls_again("200 with code 404", POLLED_AGAIN, "code_404_body"),
    polls_again("200 with code 500", POLLED_AGAIN, "code_500_body"),
    polls_again("200 with code 503", POLLED_AGAIN, "code_503_body"),
    polls_again("400 with code 200", POLLED_AGAIN, "http_400_code_200"),
    polls_again("400 with code 500", POLLED_AGAIN, "http_400_code_500"),
    polls_again("402 with code 403", POLLED_AGAIN, "http_402_code_403"),
    polls_again("500 with code 400", POLLED_AGAIN, "http_500_code_400"),
    polls_again("503 with code 200", POLLED_AGAIN, "http_503_code_200"),
    archived("200 with `\"200\"` as code", "The text is read as a number.", fault("status", "text_code", times=-1)),
    polls_again("a redirect", "Not followed: it would carry the API key elsewhere.", "redirect"),
    polls_again("a reset", POLLED_AGAIN, "reset_before"),
    polls_again("a reset instead of the answer", POLLED_AGAIN, "reset_after"),
    polls_again("no answer", "A poll times out after 30 seconds without data (0.5 in this test).", "hang", seconds=5),
    polls_again("no answer after it was processed", "The poll times out.", "hang_after", seconds=5),
    polls_again("a slow answer", "It waits for it.", "slow", seconds=0.6),
    polls_again("200 with junk", POLLED_AGAIN, "junk"),
    polls_again("200 with half of its JSON", POLLED_AGAIN, "half_json"),
    polls_again("200 with numbers instead of strings", POLLED_AGAIN, "wrong_types"),
    polls_again("200 without a state", POLLED_AGAIN, "missing_fields"),
    polls_again("200 with null as data", POLLED_AGAIN, "null_data"),
    polls_again("200 without data", POLLED_AGAIN, "no_data"),
    polls_again("200 with 50 MB", "Only 1 MiB is read, and the poll is repeated.", "huge_body"),
    polls_again("an unknown state", "A known one may follow.", "unknown_state"),
    polls_again("the status of another task", "It is the answer to another request.", "other_task"),
    polls_again("success, and `resultJson` is invalid", POLLED_AGAIN, "result_json_broken"),
    polls_again("success, and `resultJson` contains no URL", POLLED_AGAIN, "result_json_empty"),
    archived(
        "success, and `resultJson` is an object", "Used as it is.", fault("status", "result_json_object", times=-1)
    ),
    archived(
        "success, and `resultJson` contains two URLs", "Both videos are archived.",
        fault("status", "result_json_two", times=-1), videos=2,
    ),
    archived("success in capitals", "Case does not matter.", fault("status", "success_upper", times=-1)),
    archived(
        "a state with another name, with the result", "A task with a result has succeeded.",
        fault("status", "success_completed", times=-1),
    ),
    archived(
        "success, and the URL is in another field", "It is found there.",
        fault("status", "result_json_elsewhere", times=-1),
    ),
    outlasts_deadline("task unknown forever", KEEPS_OPEN, "task_unknown"),
    outlasts_deadline("500 forever", KEEPS_OPEN, "http_500"),
    outlasts_deadline("429 forever", KEEPS_OPEN, "http_429"),
    outlasts_deadline("resets forever", KEEPS_OPEN, "reset_before"),
    outlasts_deadline("no answer forever", KEEPS_OPEN, "hang", seconds=5),
    outlasts_deadline("junk forever", KEEPS_OPEN, "junk"),
    outlasts_deadline("an unknown state forever", KEEPS_OPEN, "unknown_state"),
    outlasts_deadline("`expired` forever", "After a day, the collector leaves it to a user.", "stuck_state"),
    outlasts_deadline("the status of another task forever", KEEPS_OPEN, "other_task"),
    outlasts_deadline("success without a URL forever", KEEPS_OPEN, "result_json_empty"),
    Row(
        "status", "401", (fault("status", "http_401"),), Outcome.KEY_REJECTED, 1, 1,
        "No poll can succeed with this key, so the run ends at once.", rerun=Outcome.ARCHIVED, posts_then=1,
    ),
    *(
        Row(
            "status", name, (fault("status", kind),), Outcome.KEY_REJECTED, 1, 1,
            "No poll can succeed with this key, so the run ends at once.", rerun=Outcome.ARCHIVED, posts_then=1,
        )
        for name, kind in (
            ("200 with code 401", "code_401_body"), ("401 with `{\"error\": …}` as data", "http_401_error"),
        )
    ),
    fails("SOMETHING_NEW", "The provider gave up, without a reason why another try would be pointless."),
    *(fails_for_good(code, CONTENT) for code in (
        "NSFW_DETECTED", "NSFW", "SensitiveContent", "SensitiveContentDetected", "ProhibitedContentDetected",
    )),
    fails_for_good("InputImageSensitiveContentDetected", CONTENT, says="This concerns the image.*use a new key"),
    fails_for_good(
        "InputOutputSensitiveContentDetected", CONTENT, says="This concerns the input or the video.*use a new key"
    ),
    *(fails_for_good(code, SPELLED) for code in (
        "ContentViolation", "nsfw_detected", "SENSITIVE_CONTENT_DETECTED", "prohibitedContentDetected",
    )),
    *(
        fails_for_good(code, INPUT, says=f"This concerns {part}.*use a new key")
        for code, part in (
            ("PROMPT_TOO_LONG", "the prompt"), ("PromptLengthExceeded", "the prompt"), ("INVALID_PROMPT", "the prompt"),
            ("IMAGE_TOO_LARGE", "the image"), ("UNSUPPORTED_FORMAT", "the image"),
        )
    ),
    *(
        fails_for_good(code, SPELLED, says=f"This concerns {part}.*use a new key")
        for code, part in (("InvalidPrompt", "the prompt"), ("INVALID_IMAGEURL", "the image"))
    ),
    fails(
        "IMAGE_DOWNLOAD_FAILED", "The image may be reachable later.",
        says="This concerns the image. Make sure that the image is reachable",
    ),
    fails("imageDownloadFailed", SPELLED, says="Make sure that the image is reachable"),
    *(
        fails(code, PROVIDER, says="The error is on the provider's side")
        for code in ("PROCESSING_TIMEOUT", "MODEL_UNAVAILABLE", "GENERATION_FAILED")
    ),
    *(
        fails(code, SPELLED, says="The error is on the provider's side")
        for code in ("ProcessingTimeout", "generationFailed")
    ),
    fails("INSUFFICIENT_CREDITS", "Nothing succeeds until the account is topped up.", says="Top up the APIXO account"),
    fails("InsufficientCredits", SPELLED, says="Top up the APIXO account"),
    Row(
        "status", "failed, and afterwards a success", (fault("status", "failed_once"),), Outcome.FAILED, 1, 1,
        "A callback takes the failure back, and so does a user who wants another try: the task is polled once more.",
        rerun=Outcome.FAILED, posts_then=1, advice="a new submission may succeed",
    ),
    Row(
        "status", "failed with `CONTENT_VIOLATION`", (), Outcome.FAILED_FOR_GOOD, 1, 1,
        "The same prompt cannot succeed.", rerun=Outcome.FAILED_FOR_GOOD, posts_then=1, setting="forbidden prompt",
    ),
    Row(
        "status", "failed with `INVALID_IMAGE_URL`", (fault("image", "http_404", skip=1, times=-1),),
        Outcome.FAILED_FOR_GOOD, 1, 1, "The image was readable here, but not for the provider.",
        rerun=Outcome.FAILED_FOR_GOOD, posts_then=1, setting="image",
    ),
)  # fmt: skip

RESULT: Final = (
    fetched("cut off halfway", "The next try resumes where it was cut off.", "cut"),
    archived(
        "cut off, then no ranges", "The next try starts over.", fault("result", "cut"), fault("result", "no_range")
    ),
    fetched("no length", "It is decoded to its end, which would reveal a cut.", "no_length", times=-1),
    fetched("a `Content-Encoding` that is only a label", "The bytes are used as they are.", "labeled", times=-1),
    fetched(
        "the framing of an upload around the video", "It is removed.", "framed", times=-1,
        warning="came wrapped in aws-chunked",
    ),
    fetched(
        "a length that is too long, forever", "The file itself is complete.", "long_length", times=-1,
        warning="everything that the host sends is archived",
    ),
    fetched("a redirect", "Followed; each URL is checked like the first.", "redirect"),
    fetched("a slow answer", "It waits for up to half an hour.", "slow", seconds=0.6),
    fetched("429", FETCHED_AGAIN, "http_429"),
    fetched("429 with `Retry-After: 1`", FETCHED_AGAIN, "http_429", retry_after="1"),
    fetched("429 with `Retry-After: soon`", FETCHED_AGAIN, "http_429", retry_after="soon"),
    fetched("500", FETCHED_AGAIN, "http_500"),
    fetched("502 with an HTML page", FETCHED_AGAIN, "http_502_html"),
    fetched("a reset", FETCHED_AGAIN, "reset_before"),
    fetched("no answer", "A try times out after 30 seconds without data (0.5 in this test).", "hang", seconds=5),
    fetched("403", "The host may reject the user agent; the next try uses another one.", "http_403"),
    fetched(
        "403 twice", "The signature may have expired; polling gives a new URL.", "http_403", times=2
    ),
    fetched("404", "Polling gives a new URL.", "http_404"),
    fetched("200 with a sign-in page", "Not a video, so it is fetched again.", "html_200"),
    fetched("an empty file", "Not a video, so it is fetched again.", "empty"),
    fetched("the first 60% of the video as if it were complete", "It is decoded to its end.", "truncated_mp4"),
    fetched(
        "a video with another duration", "It is paid for, so it is kept with a warning.", "other_duration", times=-1,
        warning="8",
    ),
    fetched(
        "a video with another orientation", "It is paid for, so it is kept with a warning.", "other_orientation",
        times=-1, warning="portrait",
    ),
    fetched("an animated GIF", "It is paid for and playable, so it is kept as it is.", "gif", times=-1),
    not_fetched("cut off forever", KEPT_OPEN, "cut", CutDownloadError, "try again to fetch the rest"),
    not_fetched("429 forever", KEPT_OPEN, "http_429", DownloadError, "try again later"),
    not_fetched("500 forever", KEPT_OPEN, "http_500", DownloadError, "try again later"),
    not_fetched("502 forever", KEPT_OPEN, "http_502_html", DownloadError, "try again later"),
    not_fetched("resets forever", KEPT_OPEN, "reset_before", DownloadError, "try again later"),
    not_fetched("no answer forever", KEPT_OPEN, "hang", DownloadError, "try again later", seconds=5),
    not_fetched("403 forever", KEPT_OPEN, "http_403", ForbiddenByHostError, "Poll the task again"),
    not_fetched("404 forever", KEPT_OPEN, "http_404", ResultExpiredError, "Poll the task again"),
    not_fetched("an HTML page forever", KEPT_OPEN, "html_200", DamagedVideoError, "a rerun can fetch it again"),
    not_fetched("an empty file forever", KEPT_OPEN, "empty", DamagedVideoError, "a rerun can fetch it again"),
    not_fetched("half a video forever", KEPT_OPEN, "truncated_mp4", DamagedVideoError, "a rerun can fetch it again"),
    not_fetched("redirects forever", "Five redirects are followed.", "redirect", DownloadError, "give the final URL"),
    not_fetched(
        "a redirect to a private address", "Not followed: it may be the cloud's metadata service.",
        "redirect_private", ForbiddenUrlError, "is not public: ",
    ),
    not_fetched(
        "3 GiB", "Rejected by its announced length; the limit is 2 GiB.", "huge_body", DownloadError, "raise the limit"
    ),
)  # fmt: skip

ROWS: Final = SUBMIT + STATUS + RESULT


def table() -> str:
    """The rows as Markdown, after the meaning of each outcome."""
    head = [
        "| call | what the provider does | the run ends | POSTs | paid | why | a rerun after the fault | POSTs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    outcomes = [f"- **{outcome}**: {MEANINGS[outcome]}." for outcome in Outcome]
    return "\n".join([*outcomes, "", *head, *map(_line, ROWS)])


def _line(row: Row) -> str:
    then = ("", "") if row.rerun is None else (row.rerun.value, str(row.posts_then))
    cells = (row.call, row.description, row.outcome.value, str(row.posts), str(row.paid), row.why, *then)
    return f"| {' | '.join(cells)} |"


def with_table(page: str) -> str:
    """The page with the current table between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
