"""All errors of the API.

```
SoraError                      base of all errors that are raised on purpose, here and in the other packages
└── ApixoError                 base of all errors of the API
    ├── ProvablyUnpaidError        the provider did not accept the request: it may be sent again
    │   ├── NotSentError           never connected, so nothing was sent
    │   │   └── UntrustedCertificateError   the server's certificate is not trusted here
    │   └── RefusedError           the provider rejected it
    │       ├── BadRequestError           400  invalid parameters
    │       ├── AuthenticationError       401  invalid or missing API key
    │       ├── InsufficientBalanceError  402  the balance is too low; also a 400 "Insufficient credits"
    │       ├── PermissionDeniedError     403  the key may not do that
    │       ├── ContentRefusedError       403  the content violates the policy, as the rejection says
    │       ├── ModelNotFoundError        404  there is no such model (any more)
    │       └── RateLimitError            429  too many requests or too many tasks at once; may carry Retry-After
    ├── UnclearError               no clear answer: a paid call may have been accepted. Never send that call again
    │   ├── NoReplyError           time-out or cut connection after the request was sent
    │   ├── ServerError            neither an acceptance nor a documented rejection (5xx, a redirect, …)
    │   └── UnexpectedReplyError   an acceptance whose body makes no sense
    ├── DeadlineError              the task did not end in time; it may still succeed
    └── GenerationFailedError      the provider accepted the task and reports that it failed
        ├── ContentViolationError      the content violates the guidelines: the same request cannot succeed
        ├── InvalidInputError          the prompt or an image cannot be used: the same request cannot succeed
        │   └── InvalidImageUrlError   the provider cannot read the image's URL
        ├── InputDownloadError         the image could not be downloaded this time
        ├── ProviderFailureError       an error on the provider's side: a later submission may succeed
        ├── InsufficientCreditsError   the account is empty: nothing succeeds until it is topped up
        └── GivenUpError               no status, end or usable result for so long that polling has stopped
```

The difference between `ProvablyUnpaidError` and `UnclearError` is essential: the paid call may be repeated after the
first, and never after the second. A status call is free and may be repeated after both.
"""

import re
from collections.abc import Iterator
from typing import ClassVar

from pydantic_core import ErrorDetails

from apixo.redaction import excerpt


class SoraError(Exception):
    """Base of every error that is raised on purpose and may end a step, a row of a batch or a run.

    Any other exception that ends one of them is a bug.

    Attributes:
        message: what happened and what to do next, for the user.
        retryable: whether the same call may succeed later without a fix.
    """

    retryable: bool = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ApixoError(SoraError):
    """Base of all errors of the API.

    Attributes:
        code: the `code` of the reply (or its HTTP status if there was no envelope); None without a reply.
        task_id: the provider's task, if the error is about one.
        retry_after_seconds: how long the provider asked to wait; None if it did not.
        retryable: whether repeating the same call later can help. It does *not* mean that repeating is free of charge:
            for the paid call, only `ProvablyUnpaidError` means that.
        enveloped: whether it came in the API's own envelope, so the API answered and not a gateway in front of it.
    """

    def __init__(
        self,
        message: str,
        *,
        code: int | None = None,
        task_id: str | None = None,
        retry_after_seconds: float | None = None,
        enveloped: bool = False,
    ) -> None:
        super().__init__(message)
        self.enveloped = enveloped
        self.code = code
        self.task_id = task_id
        self.retry_after_seconds = retry_after_seconds


class ProvablyUnpaidError(ApixoError):
    """The provider did not accept the request. Sending it again cannot pay twice."""


class NotSentError(ProvablyUnpaidError):
    """No connection was established (DNS, TCP, TLS, proxy), so nothing was sent."""

    retryable = True


class UntrustedCertificateError(NotSentError):
    """The server's certificate is not trusted here, so nothing was sent. A retry does not help."""

    retryable = False


class RefusedError(ProvablyUnpaidError):
    """The provider answered with a documented rejection.

    Attributes:
        advice: what to do next, for the user.
    """

    advice: ClassVar[str] = ""


class BadRequestError(RefusedError):
    """400: invalid parameters or request error."""

    advice = "Fix the request, then run it again."


class AuthenticationError(RefusedError):
    """401: invalid or missing API key."""

    advice = (
        "Check the API key in the Secret block of the apixo-api block, and whether it may use that model, then run it "
        "again."
    )


class InsufficientBalanceError(RefusedError):
    """402, or a 400 with a matching text: the balance of the account is too low."""

    advice = "The balance of the APIXO account is too low. Top it up, then run it again."


class PermissionDeniedError(RefusedError):
    """403: the API key lacks a permission. Also used if the text does not say which of the two meanings applies."""

    advice = (
        "This API key may not use that model, or lacks another permission. Check the key's permissions in the APIXO "
        "account."
    )


class ContentRefusedError(RefusedError):
    """403 with its other meaning: the content violates the policy."""

    advice = "Change the prompt or the image, and use a new key."


class ModelNotFoundError(RefusedError):
    """404, or a rejection with MODEL_UNAVAILABLE: the model does not exist, or is unavailable at the moment."""

    advice = "APIXO has no such model for this key. Check the model's name, and whether APIXO still offers it."


class RateLimitError(RefusedError):
    """429: too many requests per minute, or too many tasks at once. The provider does not say which."""

    retryable = True
    advice = "Too many requests or too many tasks at once. Wait, then run it again."


class UnclearError(ApixoError):
    """No clear answer. If the call was the paid one, it may have been accepted: it must not be sent again."""

    retryable = True


class NoReplyError(UnclearError):
    """The request was sent, at least in part, and no complete reply came back."""


class ServerError(UnclearError):
    """A reply that is neither an acceptance nor a documented rejection: 5xx, a redirect, an undocumented code."""


class UnexpectedReplyError(UnclearError):
    """An acceptance, or a status, in a shape that makes no sense."""


class DeadlineError(ApixoError):
    """The task did not end in time. Poll again later: nothing is lost."""

    retryable = True


class GenerationFailedError(ApixoError):
    """The provider accepted the task and reports it as failed.

    Attributes:
        fail_code: the provider's raw `failCode`, which may be undocumented.
        permanent: the same request cannot succeed, however often it is sent.
        advice: what to do next, for the user.
    """

    permanent: ClassVar[bool] = False
    advice: ClassVar[str] = "APIXO does not document this reason; a new submission may succeed."

    def __init__(self, message: str, *, fail_code: str = "", task_id: str | None = None) -> None:
        super().__init__(message, task_id=task_id)
        self.fail_code = fail_code


class ContentViolationError(GenerationFailedError):
    """The content violates the provider's safety guidelines."""

    permanent = True
    advice = "Change the prompt or the image and use a new key."


class InvalidInputError(GenerationFailedError):
    """The provider cannot use the prompt or an image as it is."""

    permanent = True
    advice = "Change the prompt or the image and use a new key."


class InvalidImageUrlError(InvalidInputError):
    """The provider cannot access the image URL."""

    advice = "Make the image reachable from the internet and use a new key."


class InputDownloadError(GenerationFailedError):
    """The provider could not download an image this time."""

    advice = "Make sure that the image is reachable from the internet; a new submission may succeed."


class ProviderFailureError(GenerationFailedError):
    """An error on the provider's side."""

    advice = "The error is on the provider's side; a new submission may succeed."


class InsufficientCreditsError(GenerationFailedError):
    """The account is empty."""

    advice = "Top up the APIXO account; then a new submission may succeed."


class GivenUpError(GenerationFailedError):
    """The provider gave no status, no end or no usable result for so long that it is no longer polled."""

    advice = "Check the task in the APIXO account: if it has a result, the task can still be resumed."


REFUSALS: dict[int, type[RefusedError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientBalanceError,
    403: PermissionDeniedError,
    404: ModelNotFoundError,
    429: RateLimitError,
}
"""APIXO: the documented error codes. Any other code is not a definite rejection."""

ENVELOPE_ONLY = frozenset({402, 403, 404})
"""Accepted only in the API's own envelope, as the answer to a submission. Gateways and firewalls use these statuses
too, and a poll right after a submission may get one before the task is known."""

_CONTENT = re.compile(r"content|polic|safety|guideline|prohibit|sensitive|nsfw|violat|prompt|image", re.IGNORECASE)
_MONEY = r"\b(?:credits?|balance|funds?)\b"
_TOO_LITTLE = (
    r"(?:\b(?:insufficient|not enough|out of|too low|exhausted|used up|empty|depleted)|(?:\bnot|n.t) have "
    r"(?:enough|sufficient))\b"
)
_EMPTY = re.compile(
    rf"{_TOO_LITTLE}[\w ]{{0,20}}{_MONEY}|{_MONEY}[\w ]{{0,20}}{_TOO_LITTLE}|\bno {_MONEY}|余额不足", re.IGNORECASE
)
_NAME = r"[\"'`]?[\w.]*[-\d][\w.-]*[\"'`]?"
"""A model's name contains a digit or a hyphen. Any other word after `model` names a part of it that is not accepted."""
_GONE = re.compile(
    # "The model sora-2 does not exist"; but not "5 s are not available for this model", nor "… available for video".
    rf"(?:^|[^\w ] ?|(?<!of )(?<!for )(?<!by )(?<!with )(?<!in )\b(?:the|this|your|requested) )model:? ?(?:{_NAME} )?"
    r"(?:(?:is|was|has|been|does|currently|temporarily|taken) )*"
    r"(?:unavailable|not (?:available|found|supported|exist)|unsupported|unknown|offline|deprecated|retired|no longer)"
    r"\b(?! (?:for|with|in|by) )"
    rf"|\b(?:unsupported|unknown|invalid|no such) model(?:$|[:.,] ?(?:$|{_NAME})| {_NAME})|\bmodel unavailable$",
    re.IGNORECASE,
)
_JOINED = re.compile(r"_|(?<=[a-z])(?=[A-Z])")
_KEY = re.compile(r"\bkey\b|permission|not allowed to|access|account", re.IGNORECASE)


def refusal_class(code: int, words: str) -> type[RefusedError]:
    """The class of a documented rejection. A 400 or 403 has several documented meanings; its text decides.

    The text may contain the name of a failCode, old or new.
    """
    words = _JOINED.sub(" ", words)
    if code in (400, 403) and _GONE.search(words):
        return ModelNotFoundError
    if code in (400, 403) and _EMPTY.search(words):
        return InsufficientBalanceError
    if code == 403 and _CONTENT.search(words) and not _KEY.search(words):
        return ContentRefusedError
    return REFUSALS[code]


ACCOUNT_ERRORS: frozenset[str] = frozenset(
    cls.__name__ for cls in (AuthenticationError, InsufficientBalanceError, PermissionDeniedError, ModelNotFoundError)
)
"""Rejections because of the account, its key or the model: the next request would be rejected as well."""

FAILURES: dict[str, tuple[type[GenerationFailedError], str]] = {
    "CONTENT_VIOLATION": (ContentViolationError, ""),
    "NSFW_DETECTED": (ContentViolationError, ""),
    "NSFW": (ContentViolationError, ""),
    "SensitiveContent": (ContentViolationError, ""),
    "SensitiveContentDetected": (ContentViolationError, ""),
    "InputImageSensitiveContentDetected": (ContentViolationError, "the image"),
    "InputOutputSensitiveContentDetected": (ContentViolationError, "the input or the video"),
    "ProhibitedContentDetected": (ContentViolationError, ""),
    "INVALID_IMAGE_URL": (InvalidImageUrlError, "the image"),
    "PROMPT_TOO_LONG": (InvalidInputError, "the prompt"),
    "PromptLengthExceeded": (InvalidInputError, "the prompt"),
    "INVALID_PROMPT": (InvalidInputError, "the prompt"),
    "IMAGE_TOO_LARGE": (InvalidInputError, "the image"),
    "UNSUPPORTED_FORMAT": (InvalidInputError, "the image"),
    "IMAGE_DOWNLOAD_FAILED": (InputDownloadError, "the image"),
    "PROCESSING_TIMEOUT": (ProviderFailureError, ""),
    "MODEL_UNAVAILABLE": (ProviderFailureError, ""),
    "GENERATION_FAILED": (ProviderFailureError, ""),
    "INSUFFICIENT_CREDITS": (InsufficientCreditsError, ""),
}
"""APIXO: the documented failCodes, old and new, each with what was flagged, if the code says so. Any other code is a
plain `GenerationFailedError`."""

NO_STATUS = "no status"
NO_END = "no end"
NO_RESULT = "no result"
"""Our own reasons for giving up a task, used instead of a failCode."""


def _plain(fail_code: str) -> str:
    """A failCode in lower case and without underscores, so that old and new spellings match."""
    return fail_code.replace("_", "").casefold()


_FAILURES = {_plain(code): failure for code, failure in FAILURES.items()} | dict.fromkeys(
    (NO_STATUS, NO_END, NO_RESULT), (GivenUpError, "")
)
_DETECTORS = {_plain(code) for code in ("NSFW", "NSFW_DETECTED", "SensitiveContent", "SensitiveContentDetected")}


def may_be_mistaken(fail_code: str) -> bool:
    """Whether the same request may pass next time: the finished video was flagged, or a detector flagged it.

    Users of several providers report that a request passed a detector on a second try: the detector checks the output,
    which is generated again. If the prompt, an image or a violation in general was flagged, the outcome would be the
    same.
    """
    code = _plain(fail_code)
    return code in _DETECTORS or ("output" in code and "sensitivecontent" in code)


def describe_problem(problem: ErrorDetails) -> str:
    """One pydantic error: the field and what is wrong, without the value, which may be a secret."""
    where = ".".join(map(str, problem["loc"]))
    text = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {text}" if where else text


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def generation_failed(fail_code: str, fail_message: str, *, task_id: str | None) -> GenerationFailedError:
    """The error for a failed task; its `failCode` decides the class. Case and underscores do not matter."""
    cls, part = _FAILURES.get(_plain(fail_code), (GenerationFailedError, ""))
    text = excerpt(f"{fail_code or 'no failCode'}: {fail_message or 'no failMsg'}".encode("utf-8", "replace"))
    about = f" This concerns {part}." if part else ""
    verdict = f"Task {task_id} was given up" if cls is GivenUpError else f"APIXO reports task {task_id} as failed"
    message = f"{verdict} ({text}).{about} {cls.advice}"
    return cls(message, fail_code=fail_code, task_id=task_id)
