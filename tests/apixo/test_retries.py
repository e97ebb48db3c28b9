"""Retry-After, the delays between retries, and which calls may be repeated."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from apixo import errors, may_resubmit, parse_retry_after, retry_delay
from apixo.constants import MAX_RETRY_AFTER_SECONDS, MAX_RETRY_DELAY_SECONDS
from apixo.errors import ApixoError

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

HEADERS: list[tuple[str | None, str | None, float | None]] = [
    # Retry-After, retry-after-ms, seconds
    ("7", None, 7),
    ("0", None, 0),
    ("1.5", None, 1.5),
    (" 7 ", None, 7),
    ("1e2", None, 100),
    ("300", None, 300),
    ("301", None, 300),
    ("1e300", None, 300),
    ("9" * 400, None, None),
    (None, "1500", 1.5),
    (None, "0", 0),
    (None, "0.5", 0.0005),
    (None, "999999999", 300),
    ("7", "1500", 1.5),
    ("7", "junk", 7),
    ("7", "-1", 7),
    ("7", "", 7),
    ("7", "nan", 7),
    ("Sun, 01 Mar 2026 12:00:30 GMT", None, 30),
    ("Sun, 01 Mar 2026 13:00:30 +0100", None, 30),
    ("Sun, 01 Mar 2026 12:00:30 -0000", None, 30),  # without a zone, which in HTTP means GMT
    ("Sun, 01 Mar 2026 12:00:30", None, 30),
    ("Sun Mar  1 12:00:30 2026", None, 30),
    ("Sunday, 01-Mar-26 12:00:30 GMT", None, 30),
    ("Sun, 01 Mar 2026 11:59:00 GMT", None, 0),
    ("Thu, 01 Jan 1970 00:00:00 GMT", None, 0),
    ("Fri, 31 Dec 9999 23:59:59 GMT", None, 300),
    ("Sun, 01 Mar 2026 12:00:30 +9999", None, None),
    ("Sun, 99 Mar 2026 12:00:30 GMT", None, None),
    ("-1", None, None),
    ("inf", None, None),
    ("-inf", None, None),
    ("nan", None, None),
    ("soon", None, None),
    ("7 s", None, None),
    ("", None, None),
    (" ", None, None),
    (None, None, None),
    (None, "soon", None),
    ("\x00", None, None),
]


@pytest.mark.parametrize(("value", "milliseconds", "seconds"), HEADERS)
def test_parse_retry_after_accepts_every_form(
    value: str | None, milliseconds: str | None, seconds: float | None
) -> None:
    assert parse_retry_after(value, milliseconds=milliseconds, now=NOW) == seconds


@given(
    st.none() | st.text() | st.floats().map(str) | st.datetimes().map(lambda date: f"{date:%a, %d %b %Y %H:%M:%S GMT}"),
    st.none() | st.text() | st.integers().map(str),
)
@example("Mon, 01 Jan 0001 00:00:00 +2359", None)
@example("Fri, 31 Dec 9999 23:59:59 -2359", None)
@example("1 1 1 1 1", None)
def test_no_header_crashes_parse_retry_after(value: str | None, milliseconds: str | None) -> None:
    seconds = parse_retry_after(value, milliseconds=milliseconds, now=NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS


@pytest.mark.parametrize(
    ("tries", "requested", "draw", "seconds"),
    [
        (1, None, 0.0, 1.0),
        (1, None, 1.0, 2.0),
        (2, None, 0.0, 2.0),
        (2, None, 1.0, 4.0),
        (5, None, 1.0, 32.0),
        (6, None, 1.0, 60.0),
        (10_000, None, 1.0, 60.0),
        (1, 10.0, 0.0, 10.5),
        (1, 10.0, 1.0, 11.0),
        (1, 0.0, 0.0, 0.5),
    ],
)
def test_retry_delay_doubles_and_is_at_least_the_retry_after(
    tries: int, requested: float | None, draw: float, seconds: float
) -> None:
    assert retry_delay(tries, retry_after_seconds=requested, first_seconds=2.0, rng=lambda: draw) == seconds


@given(
    tries=st.integers(1, 10**6),
    requested=st.none() | st.floats(0, MAX_RETRY_AFTER_SECONDS),
    first=st.floats(0.001, 1e6),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_retry_delay_is_bounded(tries: int, requested: float | None, first: float, draw: float) -> None:
    seconds = retry_delay(tries, retry_after_seconds=requested, first_seconds=first, rng=lambda: draw)
    backoff = min(first * 2.0 ** min(tries - 1, 30), MAX_RETRY_DELAY_SECONDS)
    assert math.isfinite(seconds)
    assert seconds > 0
    if requested is None:
        assert backoff / 2 <= seconds <= backoff
    else:
        assert requested <= seconds <= requested + backoff / 2


ALL: list[tuple[BaseException, bool, bool, bool]] = [
    # error, provably unpaid, may be resubmitted, may be retried
    (errors.ApixoError("?"), False, False, False),
    (errors.ProvablyUnpaidError("?"), True, False, False),
    (errors.NotSentError("nothing was sent"), True, True, True),
    (errors.UntrustedCertificateError("nothing was sent"), True, False, False),
    (errors.RefusedError("?"), True, False, False),
    (errors.BadRequestError("the same request is rejected again"), True, False, False),
    (errors.AuthenticationError("the same key is rejected again"), True, False, False),
    (errors.InsufficientBalanceError("the same account is rejected again"), True, False, False),
    (errors.PermissionDeniedError("the same key is rejected again"), True, False, False),
    (errors.ContentRefusedError("the same request is rejected again"), True, False, False),
    (errors.ModelNotFoundError("the same model is rejected again"), True, False, False),
    (errors.RateLimitError("a later one is accepted"), True, True, True),
    (errors.UnclearError("it may be paid"), False, False, True),
    (errors.NoReplyError("it may be paid"), False, False, True),
    (errors.ServerError("it may be paid"), False, False, True),
    (errors.UnexpectedReplyError("it may be paid"), False, False, True),
    (errors.DeadlineError("it is paid"), False, False, True),
    (errors.GenerationFailedError("it is over"), False, False, False),
    (errors.ContentViolationError("it is over"), False, False, False),
    (errors.InvalidInputError("it is over"), False, False, False),
    (errors.InvalidImageUrlError("it is over"), False, False, False),
    (errors.InputDownloadError("it is over"), False, False, False),
    (errors.ProviderFailureError("it is over"), False, False, False),
    (errors.InsufficientCreditsError("it is over"), False, False, False),
    (errors.GivenUpError("it is over"), False, False, False),
    (TimeoutError(), False, False, False),
    (ConnectionError(), False, False, False),
    (KeyboardInterrupt(), False, False, False),
]


@pytest.mark.parametrize(("error", "unpaid", "resubmit", "retry"), ALL, ids=[type(row[0]).__name__ for row in ALL])
def test_which_errors_may_be_resubmitted_or_retried(
    error: BaseException, unpaid: bool, resubmit: bool, retry: bool
) -> None:
    assert isinstance(error, errors.ProvablyUnpaidError) == unpaid
    assert may_resubmit(error) == resubmit
    assert (isinstance(error, ApixoError) and error.retryable) == retry


def test_table_covers_every_error_class() -> None:
    classes = {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ApixoError)}
    assert classes <= {type(row[0]) for row in ALL}
