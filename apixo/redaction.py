"""Keeps signed URLs and secrets out of logs and messages."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Final

from apixo.constants import MAX_EXCERPT_CHARACTERS

# A URL may contain backslashes: JSON may spell "/" as "\/" and "&" as "\u0026", and the signature follows.
# It may also contain single quotes: losing the text after a URL is better than keeping its signature.
# The scheme may be missing.
# The query is optional, so that a match consumes the whole URL. Otherwise a long text of URLs without queries would be
# scanned to its end from each of them.
_QUERY = re.compile(
    r"""((?:https?:|(?<!\\))\\*+/\\*+/(?:[^\s"<>?#\\]|\\++(?!u00(?:3f|23)))+)"""
    r"""((?:[?#]|\\+u00(?:3f|23))[^\s"<>]*)?""",
    re.IGNORECASE,
)
# A URL inside the query of another one. Only if its scheme is encoded too: "%3F" alone may be part of a name.
_ENCODED_QUERY = re.compile(r"""(https?%3a%2f%2f(?:[^\s"<>&%]|%(?!3f|23))+)(%(?:3f|23)[^\s"<>&]*)?""", re.IGNORECASE)
_USERINFO = re.compile(r"(https?:\\*/\\*/)[^\s/@\"'<>?#]+@", re.IGNORECASE)
_BEARER = re.compile(r"(bearer\s+)[^\s\"'<>,]+", re.IGNORECASE)

_BEARER_TOKEN = re.compile(r"(bearer\s+)(?=[^\s\"'<>,]*\d)[^\s\"'<>,\\]{8,}", re.IGNORECASE)
"""A token, but not a word in a sentence such as "invalid bearer token"."""

_LOGGERS: Final = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy")
"""httpx logs whole URLs at INFO. httpcore logs a reply's headers at DEBUG, and they may echo ours."""


def hide_queries(text: str) -> str:
    """The text without the query, fragment and user name of every URL in it: these may contain signatures."""
    for pattern in (_QUERY, _ENCODED_QUERY):
        text = pattern.sub(lambda found: f"{found[1]}?…" if found[2] else found[0], text)
    return _USERINFO.sub(r"\1", text)


def hide_secret(text: str, secret: str) -> str:
    """The text with every occurrence of a secret replaced, also if it is escaped as in JSON or a URL."""
    return _spellings(secret).sub("***", text) if secret else text


def excerpt(body: bytes) -> str:
    """The beginning of a reply on one line, safe to show: it contains no control characters."""
    text = hide_queries(" ".join(body[: 4 * MAX_EXCERPT_CHARACTERS].decode("utf-8", "replace").split()))
    text = _BEARER_TOKEN.sub(r"\1***", text)
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return text if len(text) <= MAX_EXCERPT_CHARACTERS else text[:MAX_EXCERPT_CHARACTERS] + "…"


@lru_cache(maxsize=8)
def _spellings(secret: str) -> re.Pattern[str]:
    """Matches a secret with each character plain, after backslashes, as \\u0041 or as %41."""
    one = (
        rf"(?:\\{{0,4}}{re.escape(letter)}|\\{{1,4}}u(?i:{ord(letter):04x})|%(?i:{ord(letter):02x}))"
        for letter in secret
    )
    return re.compile("".join(one))


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps httpx from logging anything.

    A log handler may block, or end its thread: rich raises SystemExit on a closed pipe. Neither may happen between the
    provider's answer to the paid call and its record.
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
