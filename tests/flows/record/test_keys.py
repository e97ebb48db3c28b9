"""Which strings are valid keys, and which key a calendar without one gets."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect import flow
from prefect.runtime import flow_run
from pydantic import TypeAdapter, ValidationError

from deployments.local.prefect_server import PrefectServer
from flows.record.keys import Key, calendar_key, check_key
from flows.record.pipeline_errors import InvalidKeyError
from flows.signals.runs import root_run_id

VALID = ["a", "0", "spring-sale-03", "a.b", "a..b", "a_b", "a-", "a.", "9.json", "a" * 128]
INVALID = [
    "", " ", "A", "a b", " a", "a ", "a\n", "\na", "a\x00", "-a", ".a", "_a", "..", ".", "a/b", "../a", "a\\b", "ä",
    "a:b", "a?b", "a%2fb", "%2e%2e", "..%2fa", "a/../b", "a/", "/a", "//a", "~a", "$a", "a*", "con:", "a\tb", "a\x7f",
    "caf\u00e9", "cafe\u0301", "a\u202eb", "a\u200fb", "a\ufeff", "\ufeffa", "a\u2028", "a\x85", "a\xa0", "\ud800",
    "a" * 10_000, "-" * 128, "ａ", "a\u200b", "١", "a" * 129, "K", "a\r\n",  # noqa: RUF001 - look-alikes are the point
]  # fmt: skip
AS_PARAMETER: TypeAdapter[str] = TypeAdapter(Key)


@pytest.mark.parametrize("key", VALID)
def test_valid_key_is_accepted_unchanged(key: str) -> None:
    assert check_key(key) == key
    assert AS_PARAMETER.validate_python(key) == key


@pytest.mark.parametrize("key", INVALID)
def test_invalid_key_is_rejected_with_an_example(key: str) -> None:
    with pytest.raises(InvalidKeyError, match="such as spring-sale-03") as caught:
        check_key(key)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValidationError):
        AS_PARAMETER.validate_python(key)


def test_error_truncates_a_very_long_key() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        check_key("x" * 100_000)
    assert len(str(caught.value)) < 400


@given(st.text(max_size=140) | st.from_regex(r"[a-z0-9][a-z0-9._-]{0,127}", fullmatch=True))
def test_form_and_check_agree_and_valid_keys_are_safe_names(text: str) -> None:
    try:
        AS_PARAMETER.validate_python(text)
    except ValidationError:
        with pytest.raises(InvalidKeyError):
            check_key(text)
        return
    key = check_key(text)
    assert re.fullmatch(r"[a-z0-9._-]{1,128}", key)
    assert key not in (".", "..")


CALENDARS = {
    "spring.csv": "spring",
    "calendars/Spring Sale 2026.csv": "spring-sale-2026",
    "./spring.csv": "spring",
    "/data/plans.2026/spring.csv": "spring",
    "s3://sora-videos/calendars/May.JSONL": "may",
    "S3://sora-videos/may.ndjson": "may",
    "C:\\plans\\May.csv": "may",
    "\\\\server\\share\\May Plan.csv": "may-plan",
    "  may.csv\n": "may",
    "spring.v2.csv": "spring.v2",
    "spring..csv": "spring",
    ".hidden.csv": "hidden",
    "__init__.csv": "init",
    "a   &  b.csv": "a-b",
    "{{ flow_run.id }}.csv": "flow_run.id",
    "\N{LATIN CAPITAL LETTER U WITH DIAERESIS}ber-Plan.csv": "ber-plan",
    "U\N{COMBINING DIAERESIS}ber-Plan.csv": "ber-plan",  # the same name, as macOS may write it
    "2026-\u6625.csv": "2026",
    f"{'x' * 300}.csv": "x" * 80,
}


@pytest.mark.parametrize(("calendar", "key"), CALENDARS.items())
def test_calendar_key_is_its_file_name(calendar: str, key: str) -> None:
    assert calendar_key(calendar) == key
    assert check_key(key) == key


@pytest.mark.parametrize("calendar", ["\u65e5\u7a0b.csv", "---.csv", "", "  ", "/", "..", "\u65e5" * 10_000])
def test_unusable_calendar_name_is_rejected_with_hint_to_pass_a_key(calendar: str) -> None:
    with pytest.raises(InvalidKeyError, match=r"Nothing was submitted.*`key`.*--key") as caught:
        calendar_key(calendar)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("calendar", ["https://ann:secret@host/may.csv", "http://host/may.csv?sig=secret"])
def test_http_calendar_url_is_rejected_and_not_repeated(calendar: str) -> None:
    with pytest.raises(InvalidKeyError, match="s3://") as caught:
        calendar_key(calendar)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_calendar_name_gives_a_short_valid_key_or_an_error(calendar: str) -> None:
    try:
        key = calendar_key(calendar)
    except InvalidKeyError:
        return
    assert check_key(key) == key
    assert len(key) <= 80
    assert calendar_key(f"another-folder/{key}.csv") == key


async def test_root_run_id_is_the_same_in_every_retry(prefect_server: PrefectServer) -> None:
    seen: list[tuple[str, str | None]] = []
    outer: list[tuple[str, str | None]] = []

    @flow
    async def inner() -> None:
        seen.append((str(flow_run.id), root_run_id()))

    @flow
    async def middle() -> None:
        await asyncio.gather(inner(), inner())

    @flow(retries=1)
    async def parent() -> None:
        outer.append((str(flow_run.id), root_run_id()))
        await middle()
        if len(seen) == 2:
            raise RuntimeError("lost")

    assert root_run_id() is None
    await parent()
    (own, root), again = outer
    assert own == root
    assert again == (own, root)
    assert [found for _, found in seen] == [root] * 4
    assert len({inner_id for inner_id, _ in seen}) == 4  # a retried parent starts new subflow runs
