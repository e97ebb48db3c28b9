"""Normalizes URLs as people, spreadsheets and other programs write them, so that every parser reads them alike. Pure.

Only the spelling changes here. Whether a URL may be requested is decided by the caller, on the normalized form. An
image has either a URL that the provider can fetch, or a place in a store, for which a URL has to be made.
"""

import re
import unicodedata
from typing import Annotated, Final
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import AfterValidator, BeforeValidator, StringConstraints

_PLAIN: Final = re.compile(r"https?://[A-Za-z0-9._-]+(:\d+)?([/?][!$-;=?-\[\]-~]*)?")
"""Already normal: a host, then ASCII without spaces, double quotes, backslashes, angle brackets or a fragment."""
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?!\d{1,5}(?:/|$))")
"""Not a host before its port, as in `example.com:8080/a`."""
_BARE_HOST: Final = re.compile(r"([^/:@\s]+\.[^/:@\s]+|[^/:@\s]+(?=:\d))(:\d{1,5})?/")
"""`example.com/a.jpg` or `localhost:9000/a.jpg`; a lone file name such as `a.jpg` names no host."""
_CONTROLS: Final = re.compile("[\x00-\x20\x7f]")
_SPECIAL: Final = frozenset("/\\?#@:[]% ")
_STORED: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\s?#\\][^?#\\]{0,1023})", re.IGNORECASE)


def normalize_url(text: str, *, base: str | None = None) -> str:
    """The URL in normal form; one that already is in normal form stays as it is, byte for byte.

    Removes what surrounds a URL (spaces, quotes, angle brackets, invisible characters), line breaks in it, and its
    fragment, which is never sent. Backslashes count as slashes, as in every browser; without a scheme it is https.
    Characters that a URL may not contain are percent-encoded, once.

    Args:
        text: the URL; with a base, also a relative one.
        base: the absolute URL to which a relative one belongs, as in a redirect.

    Returns:
        The URL. Text that cannot be read as one is returned so that `httpx.URL`, or a check of its scheme, rejects it.
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


def stored_image(url: str) -> tuple[str, str] | None:
    """The bucket and the name of an image given as `s3://bucket/object`; None for a web URL."""
    found = _STORED.fullmatch(url)
    return (found[1].lower(), found[2]) if found else None


def _image_url(url: str) -> str:
    if url[:5].lower() == "s3://":
        stored = stored_image(url)
        if stored is None or not url.isprintable():
            raise ValueError("must be s3://bucket/object, such as s3://plans/start.jpg, without ? and #")
        return "s3://{}/{}".format(*stored)
    url = normalize_url(url)  # what is checked here, and tried out before paying, is what the provider gets
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("contains spaces or control characters in its host; check the spelling")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        # Neither its text nor itself: urllib repeats a part of the URL, which may be a password.
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
"""A server's URL, to which a path is appended: without a slash at its end."""
OptionalBaseUrl = Annotated[BaseUrl | None, BeforeValidator(_none_if_blank)]
"""The same, or None, also for the empty text that a form leaves behind."""


def _split(head: str, base: str | None) -> tuple[str | None, str]:
    """The scheme, and what follows its slashes. No scheme: it is relative, or not a URL at all."""
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
    """Without invisible characters around it, and without line breaks, which browsers remove as well."""
    text = re.sub("[\t\r\n]", "", text)
    wrapping = {one for one in text if unicodedata.category(one)[0] in "CZ" or one in "\"'<>`\u201c\u201d"}
    return text.strip("".join(wrapping)) if wrapping else text


def _narrow(host: str) -> str:
    """Wide letters and digits as plain ones, as IDNA maps them, unless that would change the host."""
    narrow = unicodedata.normalize("NFKC", host)
    return narrow if _SPECIAL & set(narrow) == _SPECIAL & set(host) else host


def _encoded(rest: str) -> str:
    return _CONTROLS.sub(lambda found: f"%{ord(found[0]):02X}", rest)


def _parsed(url: str) -> str:
    try:
        return str(httpx.URL(url))
    except httpx.InvalidURL:
        return url
