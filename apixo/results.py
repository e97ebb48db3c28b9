"""Finds the result URLs in a status: in `resultJson.resultUrls`, or else anywhere in it. Pure."""

import json
import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from apixo.urls import normalize_url

DOCUMENTED: Final = "resultJson.resultUrls"

_URL: Final = re.compile(r"""[\s"'<]*(https?:|[\\/]{2})[^\s]+\.""", re.IGNORECASE)
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_RESULT_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """content data download file files generated info item items json link links list media output outputs play
        response result results src uri url urls video videos work works""",
    )
)
"""A field may hold a result if its name has only these words. `statusUrl`, `callback_url` and `input` may not."""
_OTHER_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """callback cover frame image images input poster preview snapshot status thumb thumbnail thumbnails webhook""",
    )
)
"""A field with one of these words is never the video that was paid for."""
_PICTURE: Final = re.compile(r"\.(avif|gif|jpe?g|png|webp)$", re.IGNORECASE)
_ESCAPED: Final = re.compile(r"&(?:(?:amp;)+|#38;|#x26;)", re.IGNORECASE)
"""An ampersand escaped as in HTML. Unless unescaped, every query field but the first gets another name, and signatures
become invalid."""
_MAX_UNWRAPPED: Final = 3
"""How many levels of JSON encoded as a string are decoded."""


def find_result_urls(data: dict[str, Any]) -> tuple[tuple[str, ...], str] | None:
    """The result URLs in a status, in order, and where they were found. None: there are none."""
    result = _unwrapped(data.get("resultJson"))
    urls = result.get("resultUrls") if isinstance(result, dict) else None
    # An invalid entry next to a good one must not cost the good one.
    usable = [_plain(url) for url in urls if isinstance(url, str) and url.strip()] if isinstance(urls, list) else []
    if usable:
        return tuple(usable), DOCUMENTED
    inside = [
        (f"resultJson{'.' if path else ''}{path}", url) for path, url in _urls(result) if not _is_other(path, url)
    ]
    rest = {name: value for name, value in data.items() if name != "resultJson"}
    found = inside or [(path, url) for path, url in _urls(rest) if _is_result(path) and not _is_other(path, url)]
    if not found:
        return None
    return tuple(dict.fromkeys(_plain(url) for _, url in found)), found[0][0]


def _plain(url: str) -> str:
    return _ESCAPED.sub("&", url.strip())


def _unwrapped(value: object) -> object:
    """Decodes a string that contains JSON; returns any other value as it is."""
    for _ in range(_MAX_UNWRAPPED):
        if not isinstance(value, str):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
    return value


def _urls(value: object) -> Iterator[tuple[str, str]]:
    """Every URL in a JSON value with its path of names, in order, at any depth."""
    waiting: list[tuple[str, object]] = [("", value)]
    while waiting:
        path, inner = waiting.pop()
        if isinstance(inner, str) and _URL.match(inner):
            yield path, inner
        elif isinstance(inner, dict):
            waiting.extend((f"{path}.{name}".lstrip("."), item) for name, item in reversed(inner.items()))
        elif isinstance(inner, list):
            waiting.extend((path, item) for item in reversed(inner))


def _is_result(path: str) -> bool:
    return _RESULT_WORDS.issuperset(_words(path))


def _is_other(path: str, url: str) -> bool:
    try:
        is_picture = _PICTURE.search(urlsplit(normalize_url(url)).path) is not None
    except ValueError:
        is_picture = False
    return is_picture or not _OTHER_WORDS.isdisjoint(_words(path))


def _words(path: str) -> list[str]:
    """Splits `data.videoUrl` or `data.video_url` into data, video, url."""
    return [word.lower() for word in _WORDS.findall(path)]
