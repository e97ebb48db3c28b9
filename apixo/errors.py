"""Everything that can go wrong with the API.

```
SoraError                      base of all errors that are raised on purpose, here and in the other rooms
└── ApixoError                 base of those of the API
    ├── ProvablyUnpaidError        the provider did not take the request: it may be sent again
    │   ├── NotSentError           never connected, so nothing was sent
    │   └── RefusedError           the provider said no
    │       ├── BadRequestError        400  invalid parameters, no credits, …
    │       ├── AuthenticationError    401  invalid or missing API key
    │       └── RateLimitError         429  too many requests or too many tasks at once; may carry Retry-After
    ├── UnclearError               no clear answer: a paid call may have been taken. Never send that call again
    │   ├── NoReplyError           time-out or cut connection after the request was sent
    │   ├── ServerError            an answer that is neither yes nor a documented no (5xx, 404, a redirect, …)
    │   └── UnexpectedReplyError   a yes whose body makes no sense
    ├── DeadlineError              the task had not ended when the wait was over; it may still end well
    └── GenerationFailedError      the provider took the task and reports that it failed
        ├── ContentViolationError      CONTENT_VIOLATION: the same request cannot succeed
        └── InvalidImageUrlError       INVALID_IMAGE_URL: the provider cannot read the image; neither can this
```

The line that matters runs between `ProvablyUnpaidError` and `UnclearError`: the paid call is repeated on one side of it
and never on the other. For a status call, which costs nothing, both sides may be repeated.
"""

from typing import ClassVar

from apixo.redaction import excerpt


class SoraError(Exception):
    """Base of every error that is raised on purpose: what a step, a row of a batch or a run may end with.

    Any other exception that ends one of them is a bug.

    Attributes:
        message: what happened and what to do next, for a person.
        retryable: whether the same call may go well later with nobody doing anything.
    """

    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ApixoError(SoraError):
    """Base of all errors of the API.

    Attributes:
        code: the `code` of the reply (or its HTTP status when there was no envelope); None without a reply.
        task_id: the provider's task, where the error is about one.
        retry_after_seconds: how long the provider asked to wait; None when it did not say.
        retryable: whether repeating the same call later can help. It does *not* say that repeating is free of charge:
            for the paid call only `ProvablyUnpaidError` says that.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        task_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.task_id = task_id
        self.retry_after_seconds = retry_after_seconds


class ProvablyUnpaidError(ApixoError):
    """The provider did not take the request. Sending it again cannot pay twice."""


class NotSentError(ProvablyUnpaidError):
    """No connection came about (DNS, TCP, TLS, proxy), so nothing was sent."""

    retryable = True


class RefusedError(ProvablyUnpaidError):
    """The provider answered with a documented no."""


class BadRequestError(RefusedError):
    """400: invalid parameters or request error, such as "Insufficient credits"."""


class AuthenticationError(RefusedError):
    """401: invalid or missing API key."""


class RateLimitError(RefusedError):
    """429: more requests a minute, or more tasks at once, than the provider allows. It does not say which."""

    retryable = True


class UnclearError(ApixoError):
    """No clear answer. If the call was the paid one, it may have been taken: it must not be sent again."""

    retryable = True


class NoReplyError(UnclearError):
    """The request was sent, at least in part, and no whole reply came back."""


class ServerError(UnclearError):
    """A reply that is neither a yes nor a documented no: 5xx, 404, a redirect, a code nobody documented."""


class UnexpectedReplyError(UnclearError):
    """A reply that says yes, or a status, in a shape that makes no sense."""


class DeadlineError(ApixoError):
    """The task had not ended when the wait was over. Ask again later: nothing is lost."""

    retryable = True


class GenerationFailedError(ApixoError):
    """The provider took the task and reports it as failed.

    Attributes:
        fail_code: the provider's `failCode`, raw: undocumented ones exist.
        fail_message: the provider's `failMsg`.
        permanent: the same request cannot succeed, however often it is sent.
    """

    permanent: ClassVar[bool] = False

    def __init__(
        self, message: str, *, fail_code: str = "", fail_message: str = "", task_id: str | None = None
    ) -> None:
        super().__init__(message, task_id=task_id)
        self.fail_code = fail_code
        self.fail_message = fail_message


class ContentViolationError(GenerationFailedError):
    """The content violates the provider's safety guidelines."""

    permanent = True


class InvalidImageUrlError(GenerationFailedError):
    """The provider cannot access the image URL."""

    permanent = True


REFUSALS: dict[int, type[RefusedError]] = {400: BadRequestError, 401: AuthenticationError, 429: RateLimitError}
"""APIXO: the documented error codes. Any other one is not a definite no."""

FAILURES: dict[str, type[GenerationFailedError]] = {
    "CONTENT_VIOLATION": ContentViolationError,
    "INVALID_IMAGE_URL": InvalidImageUrlError,
}
"""APIXO: the documented failCodes. Any other one is a plain `GenerationFailedError`."""


def generation_failed(fail_code: str, fail_message: str, *, task_id: str | None) -> GenerationFailedError:
    """The error for a failed task, of the class its `failCode` asks for."""
    cls = FAILURES.get(fail_code, GenerationFailedError)
    said = excerpt(f"{fail_code or 'no failCode'}: {fail_message or 'no failMsg'}".encode("utf-8", "replace"))
    advice = {
        ContentViolationError: "Change the prompt or the image and use a new key.",
        InvalidImageUrlError: "Make the image reachable from the internet and use a new key.",
        GenerationFailedError: "The reason is not one that APIXO documents; a new submission may succeed.",
    }[cls]
    message = f"APIXO reports task {task_id} as failed ({said}). {advice}"
    return cls(message, fail_code=fail_code, fail_message=fail_message, task_id=task_id)
