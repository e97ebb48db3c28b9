"""Whether a call is retried, and after which pause. All pure: clock and randomness are passed in as arguments."""

import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from apixo.constants import MAX_RETRY_AFTER_SECONDS, MAX_RETRY_DELAY_SECONDS, RETRY_DELAY_SECONDS
from apixo.errors import ProvablyUnpaidError


def may_resubmit(error: BaseException) -> bool:
    """Whether the paid call may be retried automatically: nothing was paid, and a retry can help."""
    return isinstance(error, ProvablyUnpaidError) and error.retryable


def parse_retry_after(value: str | None, *, milliseconds: str | None = None, now: datetime) -> float | None:
    """Seconds to wait according to the headers, at most `MAX_RETRY_AFTER_SECONDS`; None if they have no usable value.

    Args:
        value: the `Retry-After` header: seconds, or an HTTP date (RFC 9110, 10.2.3).
        milliseconds: the `retry-after-ms` header, which several providers send; it is more precise and takes
            precedence.
        now: the time an HTTP date is measured from.
    """
    for text, unit in ((milliseconds, 0.001), (value, 1.0)):
        seconds = _number(text)
        if seconds is not None:
            return _capped(seconds * unit)
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value.strip())
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return _capped((date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def retry_delay(
    tries: int,
    *,
    retry_after_seconds: float | None = None,
    first_seconds: float = RETRY_DELAY_SECONDS,
    rng: Callable[[], float] = random.random,
) -> float:
    """Seconds to wait after the given number of tries: doubling, half of it random, never less than requested.

    Half is random, so that runs that failed together do not retry together; half is fixed, so that none retries at
    once.
    """
    backoff = min(first_seconds * 2.0 ** min(tries - 1, 30), MAX_RETRY_DELAY_SECONDS)
    own = backoff / 2 + backoff / 2 * rng()
    return own if retry_after_seconds is None else retry_after_seconds + own / 2


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _capped(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_SECONDS)
