"""Normalizes URLs from people, spreadsheets and other programs, so that every parser reads them alike. Pure.

Only the spelling changes here. The caller decides whether the normalized URL may be requested. An image is given either
as a URL that the provider can fetch, or as `s3://bucket/object`, for which a URL has to be created.
"""

import re
import unicodedata
from typing import Annotated, Final
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import AfterValidator, BeforeValidator, StringConstraints

_PLAIN: Final = re.compile(r"https?://[A-Za-z0-9._-]+(:\d+)?([/?][!$-;=?-\[\]-~]*)?")
"""Already normalized: a host, then ASCII without spaces, double quotes, backslashes, angle brackets or a fragment."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!\d{1,5}(?:/|$))")
"""A scheme, but not the host of `example.com:8080/a`."""
_BARE_HOST: Final = re.compile(r"([^/:@\s]+\.[^/:@\s]+|[^/:@\s]+(?=:\d))(:\d{1,5})?/")
"""`example.com/a.jpg` or `localhost:9000/a.jpg`; a lone file name such as `a.jpg` names no host."""
_CONTROLS: Final = re.compile("[\x00-\x20\x7f]")
_SPECIAL: Final = frozenset("/\\?#@:[]% ")
_STORED: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\s?#\\][^?#\\]{0,1023})", re.IGNORECASE)


def normalize_url(text: str, *, base: str | None = None) -> str:
    """The URL in normal form; a URL that is already normalized stays the same, byte for byte.

    Removes surrounding characters (spaces, quotes, angle brackets, invisible characters), line breaks, and the
    fragment, which is never sent. Backslashes count as slashes, as in every browser. The default scheme is https.
    Characters that a URL may not contain are percent-encoded, once. With an absolute URL as base, the text may be
    relative to it, as in a redirect. Text that is not a URL is returned in a form that `httpx.URL`, or a check of its
    scheme, rejects.
    """
    if _PLAIN.fullmatch(text):
        return text
    text = _trimmed(text).partition("#")[0]
    head, mark, query = text.partition("?")
    head = head.replace("\\/", "/").replace("\\", "/")  # JSON may spell a slash as "\/"
    scheme, rest = _split(head, base)
    if scheme is None:
        return text if base is None else _parsed(urljoin(base, _encoded(rest + mark + query)))
    host, slash, path = rest.partition("/")
    url = f"{scheme}://{_narrow(host)}{_encoded(slash + path + mark + query)}"
    # httpx would drop an empty user name, and percent-encode a space in the host.
    return url if "@" in host or " " in host else _parsed(url)


def stored_image(url: str) -> tuple[str, str] | None:
    """The bucket and object name of an image given as `s3://bucket/object`; None for a web URL."""
    found = _STORED.fullmatch(url)
    return (found[1].lower(), found[2]) if found else None


def _image_url(url: str) -> str:
    if url[:5].lower() == "s3://":
        stored = stored_image(url)
        if stored is None or not url.isprintable():
            raise ValueError("must be s3://bucket/object, such as s3://plans/start.jpg, without ? and #")
        return "s3://{}/{}".format(*stored)
    url = normalize_url(url)  # checks, and the test download before paying, use the same URL as the provider
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("contains spaces or control characters in its host; check the spelling")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        # Neither the error's text nor the error itself: urllib quotes part of the URL, which may be a password.
        raise ValueError("is not a URL; give an http:// or https:// URL of a JPG, PNG or WebP") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"has the scheme {parts.scheme[:20] or 'none'!r}, but the provider fetches images by http:// or https:// "
            "only; pass your own image as s3://bucket/object"
        )
    if not host:
        raise ValueError("has no host; give a complete URL such as https://example.com/start.jpg")
    if parts.username is not None or parts.password is not None:
        raise ValueError("contains a user name or password; use a URL that needs neither")
    return url


ImageUrl = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000), AfterValidator(_image_url)]


def _base_url(value: str) -> str:
    try:
        url = httpx.URL(value.strip())
    except httpx.InvalidURL as error:
        raise ValueError(f"is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("must be a complete URL such as https://api.example.com")
    if url.userinfo or "?" in value or "#" in value:
        raise ValueError("must be a plain URL, without user name, query or fragment")
    return str(url).rstrip("/")


def _none_if_blank(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


BaseUrl = Annotated[str, AfterValidator(_base_url)]
"""A server's URL, to which a path is appended. It has no trailing slash."""
OptionalBaseUrl = Annotated[BaseUrl | None, BeforeValidator(_none_if_blank)]
"""The same, or None. Empty text, as a form sends it, becomes None."""


def _split(head: str, base: str | None) -> tuple[str | None, str]:
    """The scheme, and what follows its slashes. None as the scheme: it is relative, or not a URL at all."""
    found = _SCHEME.match(head)
    scheme = found[1].lower() if found else ""
    if found and scheme in ("http", "https"):
        rest = head[found.end() :]
        if base is not None and not rest.startswith("//") and base.startswith(f"{scheme}:"):
            return None, rest
        return scheme, rest.removeprefix("/").removeprefix("/")  # browsers read `https:/host` as `https://host`
    if found:
        return None, head
    if head.startswith("//"):
        return (base or "https:").partition(":")[0], head[2:]
    if base is None and _BARE_HOST.match(head):
        return "https", head
    return None, head


def _trimmed(text: str) -> str:
    """Removes surrounding quotes, brackets and invisible characters, and line breaks, as browsers do."""
    text = re.sub("[\t\r\n]", "", text)
    wrapping = {one for one in text if unicodedata.category(one)[0] in "CZ" or one in "\"'<>`\u201c\u201d"}
    return text.strip("".join(wrapping)) if wrapping else text


def _narrow(host: str) -> str:
    """Replaces full-width letters and digits by plain ones, like IDNA, unless that adds or removes a delimiter."""
    narrow = unicodedata.normalize("NFKC", host)
    return narrow if _SPECIAL & set(narrow) == _SPECIAL & set(host) else host


def _encoded(rest: str) -> str:
    return _CONTROLS.sub(lambda found: f"%{ord(found[0]):02X}", rest)


def _parsed(url: str) -> str:
    try:
        return str(httpx.URL(url))
    except httpx.InvalidURL:
        return url
