"""Keeps signed addresses and secrets out of logs and messages."""

import logging
import re

_QUERY = re.compile(r"(https?://[^\s\"'<>\\?#]+)[?#][^\s\"'<>\\]*")
_USERINFO = re.compile(r"(https?://)[^\s/@\"'<>\\?#]+@")


def hide_queries(text: str) -> str:
    """The text with the query, fragment and user name of every address in it left out: signatures live there."""
    return _USERINFO.sub(r"\1", _QUERY.sub(r"\1?…", text))


def hide_secret(text: str, secret: str) -> str:
    """The text with a secret replaced, wherever a server may have echoed it."""
    return text.replace(secret, "***") if secret else text


class QueryFilter(logging.Filter):
    """httpx logs each request at INFO with its whole address. This takes the query out before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.args:
            record.msg, record.args = hide_queries(record.getMessage()), ()
        elif isinstance(record.msg, str):
            record.msg = hide_queries(record.msg)
        return True


_FILTER = QueryFilter()


def install_log_filter() -> None:
    """Filters httpx's own logger. Repeating it changes nothing."""
    logging.getLogger("httpx").addFilter(_FILTER)
