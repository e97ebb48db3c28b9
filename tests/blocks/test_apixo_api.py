"""What the API block accepts, rejects and shows."""

import hashlib
import hmac
from typing import Any
from uuid import uuid4

import pytest
from prefect.blocks.system import Secret
from pydantic import SecretStr, ValidationError

from apixo import constants
from blocks import ApixoApi

KEY = "sk-5ec7e7"


def api(**fields: Any) -> ApixoApi:
    return ApixoApi(**({"api_key": Secret(value=KEY)} | fields))


def test_defaults_follow_provider_advice() -> None:
    block = api()
    assert (block.base_url, block.initial_wait_seconds, block.poll_interval_seconds) == (
        "https://api.apixo.ai",
        180,
        10,
    )
    assert (block.callback_url, block.callback_secret, block.price_per_second) == (None, None, None)
    assert block.requests_per_minute < constants.PROVIDER_REQUESTS_PER_MINUTE
    assert block.max_in_flight == constants.MAX_CONCURRENT_TASKS
    assert block.allow_private_hosts is False
    assert block.lease_seconds == 2 * block.submit_timeout_seconds


REJECTIONS: list[tuple[dict[str, Any], list[str]]] = [
    ({"result_valid_hours": 0.1}, ["result_valid_hours", "24"]),
    ({"base_url": ""}, ["base_url", "https://api.example.com"]),
    ({"base_url": "api.apixo.ai"}, ["base_url", "https://api.example.com"]),
    ({"base_url": "ftp://api.apixo.ai"}, ["base_url", "https://api.example.com"]),
    ({"base_url": "https://"}, ["base_url", "https://api.example.com"]),
    ({"base_url": "https://[::1"}, ["base_url", "not a URL"]),
    ({"base_url": "https://me:pw@api.apixo.ai"}, ["base_url", "without user name"]),
    ({"base_url": "https://api.apixo.ai?x=1"}, ["base_url", "query"]),
    ({"base_url": "https://api.apixo.ai/?"}, ["base_url", "query"]),
    ({"base_url": "https://api.apixo.ai/#"}, ["base_url", "fragment"]),
    ({"base_url": "https://api.apixo.ai#x"}, ["base_url", "fragment"]),
    ({"base_url": "http://api.apixo.ai"}, ["base_url", "https://", "plain text", "loopback"]),
    ({"base_url": "http://10.0.0.1"}, ["base_url", "loopback"]),
    ({"base_url": "http://127.0.0.1.example.com"}, ["base_url", "loopback"]),
    ({"base_url": "http://localhost.example.com"}, ["base_url", "loopback"]),
    ({"base_url": "http://0.0.0.0"}, ["base_url", "loopback"]),
    ({"callback_url": "callbacks.example.com", "callback_secret": Secret(value="s")}, ["callback_url", "https://"]),
    ({"callback_url": "https://c.example.com"}, ["callback_url", "callback_secret"]),
    ({"callback_url": "https://c.example.com", "callback_secret": Secret(value="")}, ["callback_secret", "empty"]),
    ({"callback_url": "https://c.example.com", "callback_secret": Secret(value=" ")}, ["callback_secret", "empty"]),
    ({"callback_secret": Secret(value="fifteen letters")}, ["callback_secret", "15", "16 or more", "openssl rand"]),
    ({"callback_secret": Secret(value=" fifteen letters ")}, ["callback_secret", "15", "16 or more"]),
    ({"initial_wait_seconds": -1}, ["initial_wait_seconds", "greater than or equal to 0"]),
    ({"poll_interval_seconds": 0}, ["poll_interval_seconds", "greater than 0"]),
    ({"deadline_seconds": 0}, ["deadline_seconds", "greater than 0"]),
    ({"submit_timeout_seconds": 0}, ["submit_timeout_seconds", "greater than 0"]),
    ({"retry_delay_seconds": 0}, ["retry_delay_seconds", "greater than 0"]),
    ({"requests_per_minute": 0}, ["requests_per_minute", "greater than 0"]),
    ({"requests_per_minute": 10_001}, ["requests_per_minute", "10000"]),
    ({"max_in_flight": 0}, ["max_in_flight", "greater than or equal to 1"]),
    ({"max_in_flight": 1_001}, ["max_in_flight", "1000"]),
    ({"deadline_seconds": "soon"}, ["deadline_seconds", "valid number"]),
    ({"submit_timeout_seconds": "inf"}, ["submit_timeout_seconds", "finite number"]),
    ({"initial_wait_seconds": "nan"}, ["initial_wait_seconds", "finite number"]),
    ({"allow_private_hosts": "perhaps"}, ["allow_private_hosts", "boolean"]),
    ({"currency": "galactic credits"}, ["currency", "at most 10"]),
    ({"price_per_second": -1}, ["price_per_second", "greater than or equal to 0"]),
]


@pytest.mark.parametrize(("fields", "words"), REJECTIONS, ids=[str(fields)[:60] for fields, _ in REJECTIONS])
def test_rejection_names_the_field_and_what_to_do(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValidationError) as raised:
        api(**fields)
    message = str(raised.value)
    assert [word for word in words if word not in message] == []
    assert KEY not in message


@pytest.mark.parametrize(
    ("given", "stored_url"),
    [
        (" https://api.apixo.ai/ ", "https://api.apixo.ai"),
        ("https://gateway.example.com/apixo/", "https://gateway.example.com/apixo"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.1.2.3", "http://127.1.2.3"),
        ("http://localhost:8080/", "http://localhost:8080"),
        ("http://LOCALHOST", "http://localhost"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_url_is_stored_without_trailing_slash(given: str, stored_url: str) -> None:
    assert api(base_url=given).base_url == stored_url


@pytest.mark.parametrize("blank", ["", " "])
def test_blank_callback_url_becomes_none(blank: str) -> None:
    assert api(callback_url=blank).callback_url is None


def test_callback_url_has_the_key_and_its_signature() -> None:
    block = api(callback_url="https://c.example.com/hooks/", callback_secret=Secret(value="long random text"))
    token = hmac.new(b"long random text", b"spring-sale-03", hashlib.sha256).hexdigest()
    assert block.callback_token("spring-sale-03") == token
    assert block.callback_url_for("spring-sale-03") == f"https://c.example.com/hooks/apixo/spring-sale-03/{token}"
    assert block.callback_token("spring-sale-04") != token


def test_each_attempt_has_its_own_callback_url() -> None:
    """A late callback for the first attempt must not be taken for the second attempt's."""
    block = api(callback_url="https://c.example.com", callback_secret=Secret(value="long random text"))
    token = hmac.new(b"long random text", b"spring-sale-03/2", hashlib.sha256).hexdigest()
    assert block.callback_token("spring-sale-03", 2) == token
    assert block.callback_url_for("spring-sale-03", 2) == f"https://c.example.com/apixo/spring-sale-03/2/{token}"
    assert block.callback_url_for("spring-sale-03", 1) == block.callback_url_for("spring-sale-03")
    tokens = {block.callback_token(key, number) for key in ("k", "k.2", "k-2", "k2") for number in range(1, 30)}
    assert len(tokens) == 4 * 29


def test_without_callback_url_the_pipeline_polls() -> None:
    assert api().callback_url_for("k") is None
    assert api(callback_secret=Secret(value="long random text")).callback_url_for("k") is None
    with pytest.raises(ValueError, match="no callback_secret"):
        api().callback_token("k")


@pytest.mark.parametrize("text", ["0123456", "1e5", "true", "null", '"quoted"', "2026-01-01"])
async def test_api_key_that_looks_like_another_type_stays_text(text: str) -> None:
    async with api(api_key=Secret(value=text)).client() as client:
        assert client._http.headers["authorization"] == f"Bearer {text}"


@pytest.mark.parametrize("text", ["0123456789012345", "1e0000000000000005", '"quoted and long"', "[1, 2, 3, 4, 5, 6]"])
def test_callback_secret_that_looks_like_another_type_stays_text(text: str) -> None:
    expected = hmac.new(text.encode(), b"k", hashlib.sha256).hexdigest()
    assert api(callback_secret=Secret(value=text)).callback_token("k") == expected


async def test_client_has_the_url_and_limits_of_the_block() -> None:
    block = api(base_url="http://127.0.0.1:8080", submit_timeout_seconds=7, requests_per_minute=120)
    async with block.client(max_tries=2) as client:
        assert repr(client) == "ApixoClient(base_url='http://127.0.0.1:8080')"
        assert (client._submit_timeout_seconds, client._max_tries) == (7, 2)
        assert client._limiter is not None
        assert client._limiter.max_rate / client._limiter.time_period == 2


def test_empty_api_key_is_rejected_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="API key"):
        api(api_key=Secret(value="")).client()


def test_secrets_are_not_in_repr_or_dump() -> None:
    block = api(callback_secret=Secret(value="callbacks-5ec7e7"))
    for text in (
        repr(block),
        str(block),
        str(block.model_dump()),
        str(block.model_dump(mode="json")),
        f"{vars(block)}",
    ):
        assert "5ec7e7" not in text
    assert "5ec7e7" not in block.model_dump_json()


def test_stored_secret_block_is_referenced_and_not_copied() -> None:
    stored: Secret[Any] = Secret(value=SecretStr(KEY))
    stored._block_document_id = uuid4()
    document = api(api_key=stored)._to_block_document("default", uuid4(), uuid4(), include_secrets=True)
    assert document.data["api_key"] == {"$ref": {"block_document_id": stored._block_document_id}}
    assert KEY not in str(document.data)
