"""A typed async client of the APIXO Sora-2 video API that never sends a paid request twice.

It knows neither Prefect nor MinIO and is usable on its own.
"""

from apixo.client import ApixoClient, StatusClient
from apixo.errors import (
    ApixoError,
    AuthenticationError,
    BadRequestError,
    ContentViolationError,
    DeadlineError,
    GenerationFailedError,
    InvalidImageUrlError,
    NoReplyError,
    NotSentError,
    ProvablyUnpaidError,
    RateLimitError,
    RefusedError,
    ServerError,
    SoraError,
    UnclearError,
    UnexpectedReplyError,
    generation_failed,
)
from apixo.replies import Failed, Pending, Processing, Status, Succeeded, TaskStatus, UnknownState
from apixo.requests import VideoRequest
from apixo.retries import is_provably_unpaid, may_ask_again, may_resubmit, parse_retry_after, retry_delay
from apixo.waiting import wait_for_end

__all__ = [
    "ApixoClient",
    "ApixoError",
    "AuthenticationError",
    "BadRequestError",
    "ContentViolationError",
    "DeadlineError",
    "Failed",
    "GenerationFailedError",
    "InvalidImageUrlError",
    "NoReplyError",
    "NotSentError",
    "Pending",
    "Processing",
    "ProvablyUnpaidError",
    "RateLimitError",
    "RefusedError",
    "ServerError",
    "SoraError",
    "Status",
    "StatusClient",
    "Succeeded",
    "TaskStatus",
    "UnclearError",
    "UnexpectedReplyError",
    "UnknownState",
    "VideoRequest",
    "generation_failed",
    "is_provably_unpaid",
    "may_ask_again",
    "may_resubmit",
    "parse_retry_after",
    "retry_delay",
    "wait_for_end",
]
