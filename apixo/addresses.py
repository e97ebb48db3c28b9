"""Addresses as people, spreadsheets and other programs write them, in the one form that every parser reads alike. Pure.

Only the spelling is changed here. Whether an address may be asked is decided by whoever asks it, on this form.
"""

import re
import unicodedata
from typing import Final
from urllib.parse import urljoin

import httpx

_PLAIN: Final = re.compile(r"https?://[A-Za-z0-9._-]+(:\d+)?([/?][!$-;=?-\[\]-~]*)?")
"""Nothing to do: a host, then ASCII without blanks, double quotes, backslashes, angle brackets and a fragment."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!\d{1,5}(?:/|$))")
"""Not a host before its port, as in `example.com:8080/a`."""
_BARE_HOST: Final = re.compile(r"([^/:@\s]+\.[^/:@\s]+|[^/:@\s]+(?=:\d))(:\d{1,5})?/")
"""`example.com/a.jpg` or `localhost:9000/a.jpg`; a lone file name such as `a.jpg` names no host."""
_CONTROLS: Final = re.compile("[\x00-\x20\x7f]")
_SPECIAL: Final = frozenset("/\\?#@:[]% ")


def normalize_url(text: str, *, base: str | None = None) -> str:
    """The address in its usual form; one that is in it already stays byte for byte.

    Removed are what stands around an address (blanks, quotes, angle brackets, marks that nobody sees), line breaks in
    it, and its fragment, which is never sent. Backslashes count as slashes, as in every browser; without a scheme it
    is https. What may not stand in a URL is percent-encoded, once.

    Args:
        text: the address; with a base, also a relative one.
        base: the absolute URL to which a relative one belongs, as in a redirect.

    Returns:
        The URL. What cannot be read as one comes back so that `httpx.URL`, or a check of its scheme, refuses it.
    """
    if _PLAIN.fullmatch(text):
        return text
    text = _trimmed(text).partition("#")[0]
    head, mark, query = text.partition("?")
    head = head.replace("\\/", "/").replace("\\", "/")  # the first is how JSON may spell a slash
    scheme, rest = _split(head, base)
    if scheme is None:
        return text if base is None else _parsed(urljoin(base, _encoded(rest + mark + query)))
    host, slash, path = rest.partition("/")
    url = f"{scheme}://{_narrow(host)}{_encoded(slash + path + mark + query)}"
    # httpx would leave out an empty user name, and percent-encode a blank in the host.
    return url if "@" in host or " " in host else _parsed(url)


def _split(head: str, base: str | None) -> tuple[str | None, str]:
    """The scheme, and what follows its slashes. No scheme: it is relative, or no address at all."""
    found = _SCHEME.match(head)
    scheme = found[1].lower() if found else ""
    if found and scheme in ("http", "https"):
        rest = head[found.end() :]
        if base is not None and not rest.startswith("//") and base.startswith(f"{scheme}:"):
            return None, rest
        return scheme, rest.removeprefix("/").removeprefix("/")  # `https:/host` is meant as it is read by browsers
    if found:
        return None, head
    if head.startswith("//"):
        return (base or "https:").partition(":")[0], head[2:]
    if base is None and _BARE_HOST.match(head):
        return "https", head
    return None, head


def _trimmed(text: str) -> str:
    """Without what stands around it unseen, and without line breaks, which browsers leave out as well."""
    text = re.sub("[\t\r\n]", "", text)
    begin, end = 0, len(text)
    while begin < end and _is_wrapping(text[begin]):
        begin += 1
    while begin < end and _is_wrapping(text[end - 1]):
        end -= 1
    return text[begin:end]


def _is_wrapping(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "CZ" or letter in "\"'<>`\u201c\u201d"


def _narrow(host: str) -> str:
    """Wide letters and digits as the plain ones, as IDNA maps them, unless that would make it another host."""
    narrow = unicodedata.normalize("NFKC", host)
    return narrow if _SPECIAL & set(narrow) == _SPECIAL & set(host) else host


def _encoded(rest: str) -> str:
    return _CONTROLS.sub(lambda found: f"%{ord(found[0]):02X}", rest)


def _parsed(url: str) -> str:
    try:
        return str(httpx.URL(url))
    except httpx.InvalidURL:
        return url
