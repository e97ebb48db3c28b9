"""Keeps signed URLs and secrets out of logs and messages."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Final

from apixo.constants import MAX_EXCERPT_CHARACTERS

# Backslashes belong to an address: JSON may spell "/" as "\/" and "&" as "\u0026", and the signature comes after it.
# So do single quotes: rather the text behind an address is lost than its signature kept.
# The scheme may be missing: such an address is read as well.
# The query is optional, so that a match takes the whole address: else a long text of addresses without one would be
# read to its end from each of them.
_QUERY = re.compile(
    r"""((?:https?:|(?<!\\))\\*+/\\*+/(?:[^\s"<>?#\\]|\\++(?!u00(?:3f|23)))+)"""
    r"""((?:[?#]|\\+u00(?:3f|23))[^\s"<>]*)?""",
    re.IGNORECASE,
)
# An address as a part of another one's query. Only where its scheme is spelled so: "%3F" alone may belong to a name.
_ENCODED_QUERY = re.compile(r"""(https?%3a%2f%2f(?:[^\s"<>&%]|%(?!3f|23))+)(%(?:3f|23)[^\s"<>&]*)?""", re.IGNORECASE)
_USERINFO = re.compile(r"(https?:\\*/\\*/)[^\s/@\"'<>?#]+@", re.IGNORECASE)
_BEARER = re.compile(r"(bearer\s+)[^\s\"'<>,]+", re.IGNORECASE)

_BEARER_TOKEN = re.compile(r"(bearer\s+)(?=[^\s\"'<>,]*\d)[^\s\"'<>,\\]{8,}", re.IGNORECASE)
"""Somebody's token, and no word of a sentence such as "invalid bearer token"."""

_LOGGERS: Final = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")
"""httpx logs whole addresses at INFO; httpcore logs at DEBUG the headers of a reply, which may echo ours."""


def hide_queries(text: str) -> str:
    """The text without the query, fragment and user name of every URL in it: signatures are in there."""
    for address in (_QUERY, _ENCODED_QUERY):
        text = address.sub(lambda found: f"{found[1]}?…" if found[2] else found[0], text)
    return _USERINFO.sub(r"\1", text)


def hide_secret(text: str, secret: str) -> str:
    """The text with a secret replaced wherever a server may have echoed it, also in the spelling of JSON or a URL."""
    return _spellings(secret).sub("***", text) if secret else text


def excerpt(body: bytes) -> str:
    """The beginning of a reply on one line, safe to show: nothing in it can control a terminal or a log."""
    text = hide_queries(" ".join(body[: 4 * MAX_EXCERPT_CHARACTERS].decode("utf-8", "replace").split()))
    text = _BEARER_TOKEN.sub(r"\1***", text)
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= MAX_EXCERPT_CHARACTERS else text[:MAX_EXCERPT_CHARACTERS] + "…"


@lru_cache(maxsize=8)
def _spellings(secret: str) -> re.Pattern[str]:
    """Each character as it is, with backslashes before it, as \\u0041 or as %41."""
    one = (
        rf"(?:\\{{0,4}}{re.escape(letter)}|\\{{1,4}}u(?i:{ord(letter):04x})|%(?i:{ord(letter):02x}))"
        for letter in secret
    )
    return re.compile("".join(one))


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps httpx from logging anything.

    A log handler may block, or end its thread: rich raises SystemExit on a closed pipe. Between the provider's answer
    to the paid call and the record of it, neither may happen.
    """
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class QueryFilter(logging.Filter):
    """Removes queries and bearer tokens from a log record before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _quiet.get():
            return False
        record.msg, record.args = _BEARER.sub(r"\1***", hide_queries(record.getMessage())), ()
        return True


_FILTER = QueryFilter()


def install_log_filter() -> None:
    """Filters the loggers of httpx and of the libraries below it. Repeating it changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)
