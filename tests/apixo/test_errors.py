"""The error hierarchy. Each error says what to do, and survives pickling between processes."""

import pickle
from typing import Any

import pytest

import apixo
from apixo import errors
from apixo.errors import FAILURES, REFUSALS, ApixoError, GenerationFailedError, generation_failed, refusal_class

HIERARCHY: list[tuple[str, str, bool]] = [
    ("SoraError", "Exception", False),
    ("ApixoError", "SoraError", False),
    ("ProvablyUnpaidError", "ApixoError", False),
    ("NotSentError", "ProvablyUnpaidError", True),
    ("UntrustedCertificateError", "NotSentError", False),
    ("RefusedError", "ProvablyUnpaidError", False),
    ("BadRequestError", "RefusedError", False),
    ("AuthenticationError", "RefusedError", False),
    ("InsufficientBalanceError", "RefusedError", False),
    ("PermissionDeniedError", "RefusedError", False),
    ("ContentRefusedError", "RefusedError", False),
    ("ModelNotFoundError", "RefusedError", False),
    ("RateLimitError", "RefusedError", True),
    ("UnclearError", "ApixoError", True),
    ("NoReplyError", "UnclearError", True),
    ("ServerError", "UnclearError", True),
    ("UnexpectedReplyError", "UnclearError", True),
    ("DeadlineError", "ApixoError", True),
    ("GenerationFailedError", "ApixoError", False),
    ("ContentViolationError", "GenerationFailedError", False),
    ("InvalidInputError", "GenerationFailedError", False),
    ("InvalidImageUrlError", "InvalidInputError", False),
    ("InputDownloadError", "GenerationFailedError", False),
    ("ProviderFailureError", "GenerationFailedError", False),
    ("InsufficientCreditsError", "GenerationFailedError", False),
    ("GivenUpError", "GenerationFailedError", False),
]
NAMES = [name for name, _, _ in HIERARCHY]


@pytest.mark.parametrize(("name", "parent", "retryable"), HIERARCHY)
def test_class_hierarchy_matches_the_module_docstring(name: str, parent: str, retryable: bool) -> None:
    cls: type[ApixoError] = getattr(errors, name)
    assert [base.__name__ for base in cls.__bases__] == [parent]
    assert cls.retryable is retryable
    assert name in (errors.__doc__ or "")
    assert cls.__doc__


def test_hierarchy_has_no_other_class() -> None:
    found = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]
    assert sorted(found) == sorted(NAMES)


def test_public_names_of_apixo() -> None:
    assert sorted(apixo.__all__) == sorted(
        [
            *NAMES,
            "ApixoClient",
            "Failed",
            "InProgress",
            "Status",
            "StatusClient",
            "Succeeded",
            "TaskStatus",
            "UnknownState",
            "VideoRequest",
            "generation_failed",
            "may_resubmit",
            "parse_retry_after",
            "retry_delay",
            "wait_for_end",
        ]
    )
    assert all(hasattr(apixo, name) for name in apixo.__all__)


@pytest.mark.parametrize("name", NAMES[1:])  # the common base class has only a message
def test_errors_survive_pickling_with_all_attributes(name: str) -> None:
    cls: type[ApixoError] = getattr(errors, name)
    facts: dict[str, Any] = {"task_id": "task_1"}
    if issubclass(cls, GenerationFailedError):
        facts |= {"fail_code": "X"}
    else:
        facts |= {"code": 429, "retry_after_seconds": 7.5}
    error = cls("what happened", **facts)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is cls
    assert vars(copy) == vars(error)
    assert {name: getattr(copy, name) for name in facts} == facts
    assert (str(copy), copy.message) == ("what happened", "what happened")


def test_only_documented_codes_are_rejections() -> None:
    assert {code: cls.__name__ for code, cls in REFUSALS.items()} == {
        400: "BadRequestError",
        401: "AuthenticationError",
        402: "InsufficientBalanceError",
        403: "PermissionDeniedError",
        404: "ModelNotFoundError",
        429: "RateLimitError",
    }


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("Content violates our policy", "ContentRefusedError"),
        ("Sensitive prompt", "ContentRefusedError"),
        ("Your prompt was rejected by the model's safety policy", "ContentRefusedError"),
        ("API key lacks permission", "PermissionDeniedError"),
        ("Forbidden", "PermissionDeniedError"),
        ("This key may not use content models", "PermissionDeniedError"),
        ("", "PermissionDeniedError"),
    ],
)
def test_403_is_a_content_or_permission_error_by_its_message(words: str, name: str) -> None:
    assert refusal_class(403, words).__name__ == name
    assert refusal_class(400, words).__name__ == "BadRequestError"
    assert refusal_class(402, words).__name__ == "InsufficientBalanceError"


@pytest.mark.parametrize(
    ("fail_code", "name", "permanent", "advice"),
    [
        ("CONTENT_VIOLATION", "ContentViolationError", True, "new key"),
        ("INVALID_IMAGE_URL", "InvalidImageUrlError", True, "reachable"),
        ("SOMETHING_NEW", "GenerationFailedError", False, "may succeed"),
        ("content_violation", "ContentViolationError", True, "new key"),
        ("ContentViolation", "ContentViolationError", True, "new key"),
        ("nsfw", "ContentViolationError", True, "new key"),
        ("InputImageSensitiveContentDetected", "ContentViolationError", True, "concerns the image"),
        ("INPUT_OUTPUT_SENSITIVE_CONTENT_DETECTED", "ContentViolationError", True, "the input or the video"),
        ("PromptLengthExceeded", "InvalidInputError", True, "concerns the prompt"),
        ("prompt_too_long", "InvalidInputError", True, "concerns the prompt"),
        ("IMAGE_TOO_LARGE", "InvalidInputError", True, "concerns the image"),
        ("IMAGE_DOWNLOAD_FAILED", "InputDownloadError", False, "may succeed"),
        ("ProcessingTimeout", "ProviderFailureError", False, "may succeed"),
        ("MODEL_UNAVAILABLE", "ProviderFailureError", False, "may succeed"),
        ("INSUFFICIENT_CREDITS", "InsufficientCreditsError", False, "Top up"),
        ("", "GenerationFailedError", False, "no failCode"),
        ("no status", "GivenUpError", False, "was given up"),
    ],
)
def test_fail_code_determines_error_class_and_advice(fail_code: str, name: str, permanent: bool, advice: str) -> None:
    error = generation_failed(fail_code, "the provider's words", task_id="task_1")
    assert (type(error).__name__, error.permanent) == (name, permanent)
    assert (error.fail_code, error.task_id) == (fail_code, "task_1")
    for words in (advice, "task_1", "the provider's words", fail_code):
        assert words in str(error)


def test_400_about_credits_is_insufficient_balance() -> None:
    for words in (
        "Insufficient credits",
        "not enough balance",
        "No funds left",
        "Your balance is too low",
        "Insufficient account balance",
        "INSUFFICIENT_CREDITS",
        "InsufficientCredits",
        "You do not have enough credits",
        "You don't have enough credits to run this",
        "Your account is out of credits",
        "余额不足",
    ):
        assert refusal_class(400, words).__name__ == "InsufficientBalanceError"
        assert refusal_class(403, words).__name__ == "InsufficientBalanceError"


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        ("Model unavailable", True),
        ("The request failed (MODEL_UNAVAILABLE)", True),
        ("Failed with ModelUnavailable", True),
        ("Unsupported model: sora-2", True),
        ("Unknown model", True),
        ("Invalid request: model 'sora-2' not found", True),
        ("This model has been taken offline", True),
        ("The model sora-2 is no longer offered", True),
        ("The model 'sora-2' does not exist", True),
        ("Model is temporarily unavailable", True),
        ("duration 5 is not available for this model", False),
        ("The model is not available for image-to-video", False),
        ("resolution 720p is not supported by model kling-2-6", False),
        ("The image for model sora-2 was not found", False),
        ("image_urls of the model not found", False),
        ("This model does not support image_urls", False),
        ("Mode text-to-video not supported", False),
        ("Invalid model parameters", False),
        ("model: duration not supported", False),
    ],
)
def test_400_about_the_model_itself_is_model_not_found(words: str, gone: bool) -> None:
    assert refusal_class(400, words).__name__ == ("ModelNotFoundError" if gone else "BadRequestError")


def test_only_content_and_input_failures_are_permanent() -> None:
    final = {code for code, (cls, _) in FAILURES.items() if cls.permanent}
    assert set(FAILURES) - final == {
        "IMAGE_DOWNLOAD_FAILED",
        "PROCESSING_TIMEOUT",
        "MODEL_UNAVAILABLE",
        "GENERATION_FAILED",
        "INSUFFICIENT_CREDITS",
    }
    assert len(final) == 14


def test_failure_message_is_shortened_and_shows_no_signature() -> None:
    provider_message = "cannot access https://bucket.example.com/a.jpg?X-Amz-Signature=5ec7e7 " + "x" * 5_000
    error = generation_failed("INVALID_IMAGE_URL", provider_message, task_id="task_1")
    assert "https://bucket.example.com/a.jpg" in str(error)
    assert "5ec7e7" not in f"{error} {error!r}"
    assert len(str(error)) < 600


def test_provider_message_cannot_inject_control_characters_or_log_lines() -> None:
    for error in (
        generation_failed("NO\x1b[2J", "first\r\nERROR a forged line\x9b31m\u202e\0", task_id="task_1"),
        generation_failed("", "\u2028\x85\x0b\x1c\x7f\x08", task_id="task_1"),
    ):
        assert [letter for letter in str(error) if not letter.isprintable()] == []
    assert "first ERROR a forged line" in str(generation_failed("NO", "first\nERROR a forged line", task_id="t"))
