"""The media errors: which are retryable, that they can be pickled, and what no message may contain."""

import pickle

import pytest

from flows.media.media_errors import (
    DamagedVideoError,
    DownloadError,
    ForbiddenUrlError,
    ImageRefusedError,
    MediaError,
    ResultExpiredError,
    display_url,
    is_retryable_status,
)


@pytest.mark.parametrize(
    ("kind", "retryable"),
    [
        (ForbiddenUrlError, False),
        (ImageRefusedError, False),
        (DownloadError, True),
        (ResultExpiredError, False),
        (DamagedVideoError, True),
    ],
)
def test_each_error_has_retryable_flag_and_survives_pickling(kind: type[MediaError], retryable: bool) -> None:
    for error in (kind("what and what next"), kind("short", retryable=True)):
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
        assert type(copy) is kind
        assert (str(copy), vars(copy)) == (str(error), vars(error))
    assert kind("x").retryable is retryable
    assert kind("x", retryable=not retryable).retryable is not retryable
    assert issubclass(ResultExpiredError, DownloadError)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://a.example/x.jpg?sig=1#f", "https://a.example/x.jpg"),
        ("https://u:p@a.example:8080/x", "https://a.example:8080/x"),
        ("https://u:p@x@a.example", "https://a.example"),
        ("https://a.example/\x1b[2J\r\nx", "https://a.example/%1B[2Jx"),
        (" //a.example/a b.jpg?sig=1", "https://a.example/a%20b.jpg"),
        ("sk-a-pasted-key", "<malformed URL>"),
        ("https:u:p@a.example", "https://a.example"),
        ("https://[u:p@a.example", "<malformed URL>"),
        ("", "<malformed URL>"),
    ],
)
def test_displayed_url_contains_no_secret(url: str, shown: str) -> None:
    assert display_url(url) == shown


def test_long_url_is_shortened_for_display() -> None:
    assert len(display_url("https://a.example/" + "x" * 5000)) < 250


def test_which_http_statuses_are_retryable() -> None:
    assert [s for s in range(100, 600) if is_retryable_status(s)] == [408, 425, 429, *range(500, 600)]
