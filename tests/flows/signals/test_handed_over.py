"""What the receiver hands to a waiting run: the run believes it only where both secrets have sealed it."""

from typing import Final

import pytest
from prefect.blocks.system import Secret

from apixo import Failed, Succeeded
from blocks import ApixoApi
from flows.signals.handed_over import MOST_CHARACTERS, opened, sealed

SIGNED: Final = "https://results.example.com/a.mp4?signature=0123456789abcdef"
END: Final = Succeeded.model_validate(
    {"task_id": "t1", "state": "success", "result_urls": (SIGNED,), "completeTime": 5, "odd": {"fail_code": "x"}}
)


def block(api_key: str = "a-key", secret: str | None = "s" * 32) -> ApixoApi:
    return ApixoApi(api_key=Secret(value=api_key), callback_secret=None if secret is None else Secret(value=secret))


def test_an_end_arrives_as_it_was_and_nobody_reads_it_on_the_way() -> None:
    text = sealed(END, block())
    assert text is not None
    assert "example" not in text
    assert opened(text, "t1", block()) == END


@pytest.mark.parametrize(
    ("task_id", "api"),
    [("t2", block()), ("t1", block("another-key")), ("t1", block(secret="x" * 32)), ("t1", block(secret=None))],
    ids=["another task", "another API key", "another secret", "no secret"],
)
def test_an_end_of_another_task_or_under_other_secrets_is_not_believed(task_id: str, api: ApixoApi) -> None:
    assert opened(sealed(END, block()), task_id, api) is None


@pytest.mark.parametrize("text", [None, 7, "", "gAAAA", "\x00é", END.model_dump_json(), "A" * 99_999])
def test_what_is_no_sealed_end_is_not_believed(text: object) -> None:
    assert opened(text, "t1", block()) is None


def test_a_failure_is_asked_about_by_who_waits() -> None:
    """Its event may be replayed after the task was taken up again."""
    assert sealed(Failed(task_id="t1", state="failed", fail_code="NO", fail_message="No."), block()) is None


def test_a_changed_end_is_not_believed() -> None:
    text = sealed(END, block()) or ""
    middle = len(text) // 2
    assert opened(text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :], "t1", block()) is None


def test_an_end_too_long_for_an_event_is_left_out() -> None:
    end = END.model_copy(update={"result_urls": ("https://results.example.com/" + "a" * MOST_CHARACTERS,)})
    assert sealed(end, block()) is None
