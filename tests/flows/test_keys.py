"""Which texts can be keys."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from flows.errors import InvalidKeyError
from flows.keys import Key, check_key

GOOD = ["a", "0", "spring-sale-03", "a.b", "a..b", "a_b", "a-", "a.", "9.json", "a" * 128]
BAD = [
    "", " ", "A", "a b", " a", "a ", "a\n", "\na", "a\x00", "-a", ".a", "_a", "..", ".", "a/b", "../a", "a\\b", "ä",
    "a:b", "a?b", "a%2fb", "%2e%2e", "..%2fa", "a/../b", "a/", "/a", "//a", "~a", "$a", "a*", "con:", "a\tb", "a\x7f",
    "caf\u00e9", "cafe\u0301", "a\u202eb", "a\u200fb", "a\ufeff", "\ufeffa", "a\u2028", "a\x85", "a\xa0", "\ud800",
    "a" * 10_000, "-" * 128, "ａ", "a\u200b", "١", "a" * 129, "K", "a\r\n",  # noqa: RUF001 - look-alikes are the point
]  # fmt: skip
AS_PARAMETER: TypeAdapter[str] = TypeAdapter(Key)


@pytest.mark.parametrize("key", GOOD)
def test_a_good_key_is_taken_as_it_is(key: str) -> None:
    assert check_key(key) == key
    assert AS_PARAMETER.validate_python(key) == key


@pytest.mark.parametrize("key", BAD)
def test_a_bad_key_is_refused_with_an_example(key: str) -> None:
    with pytest.raises(InvalidKeyError, match="such as spring-sale-03") as caught:
        check_key(key)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValidationError):
        AS_PARAMETER.validate_python(key)


def test_an_endless_key_is_not_repeated_whole() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        check_key("x" * 100_000)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=140) | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True))
def test_the_form_and_the_check_agree_and_a_key_is_one_safe_name(text: str) -> None:
    try:
        AS_PARAMETER.validate_python(text)
    except ValidationError:
        with pytest.raises(InvalidKeyError):
            check_key(text)
        return
    key = check_key(text)
    assert re.fullmatch(r"[a-z0-9._-]{1,128}", key)
    assert key not in (".", "..")
