"""The success that the receiver hands to a waiting run: the run opens it only if it was sealed with both secrets."""

from typing import Final

import pytest
from prefect.blocks.system import Secret

from apixo import Failed, Succeeded
from blocks import ApixoApi
from flows.signals.handed_over import MOST_CHARACTERS, opened, sealed

SIGNED: Final = "https://results.example.com/a.mp4?signature=0123456789abcdef"
SUCCESS: Final = Succeeded.model_validate(
    {"task_id": "t1", "state": "success", "result_urls": (SIGNED,), "completeTime": 5, "odd": {"fail_code": "x"}}
)


def block(api_key: str = "a-key", secret: str | None = "s" * 32) -> ApixoApi:
    return ApixoApi(api_key=Secret(value=api_key), callback_secret=None if secret is None else Secret(value=secret))


def test_sealed_success_opens_unchanged_and_is_unreadable_in_transit() -> None:
    text = sealed(SUCCESS, block())
    assert text is not None
    assert "example" not in text
    assert opened(text, "t1", block()) == SUCCESS


@pytest.mark.parametrize(
    ("task_id", "api"),
    [("t2", block()), ("t1", block("another-key")), ("t1", block(secret="x" * 32)), ("t1", block(secret=None))],
    ids=["another task", "another API key", "another secret", "no secret"],
)
def test_success_of_another_task_or_with_other_secrets_is_not_opened(task_id: str, api: ApixoApi) -> None:
    assert opened(sealed(SUCCESS, block()), task_id, api) is None


@pytest.mark.parametrize("text", [None, 7, "", "gAAAA", "\x00é", SUCCESS.model_dump_json(), "A" * 99_999])
def test_text_that_is_not_a_sealed_success_is_not_opened(text: object) -> None:
    assert opened(text, "t1", block()) is None


def test_failure_is_not_handed_over() -> None:
    """Its event may be replayed after the task was resumed, so the waiting run polls for itself."""
    assert sealed(Failed(task_id="t1", state="failed", fail_code="NO", fail_message="No."), block()) is None


def test_altered_success_is_not_opened() -> None:
    text = sealed(SUCCESS, block()) or ""
    middle = len(text) // 2
    assert opened(text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :], "t1", block()) is None


def test_success_too_long_for_an_event_is_not_handed_over() -> None:
    success = SUCCESS.model_copy(update={"result_urls": ("https://results.example.com/" + "a" * MOST_CHARACTERS,)})
    assert sealed(success, block()) is None
