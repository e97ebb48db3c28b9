"""The address of an image: one that the provider can fetch, or a place in a store that one has to be made for."""

import re
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints

from apixo.addresses import normalize_url

_STORED: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/([^\s?#\\][^?#\\]{0,1023})", re.IGNORECASE)


def stored_image(url: str) -> tuple[str, str] | None:
    """The bucket and the name of an image that is given as `s3://bucket/object`; None: it is an address of the web."""
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
        raise ValueError("holds blanks or control characters in its host; check how it is written")
    try:
        parts = urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError:
        # Neither its text nor itself: urllib repeats a part of the address, which may be a password.
        raise ValueError("is not a URL; give an http:// or https:// address of a JPG, PNG or WebP") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"has the scheme {parts.scheme[:20] or 'none'!r}, but the provider fetches images by http:// or https:// "
            "only; one of yours is given as s3://bucket/object"
        )
    if not host:
        raise ValueError("names no host; give a whole address such as https://example.com/start.jpg")
    if parts.username is not None or parts.password is not None:
        raise ValueError("carries a user name or password; use an address that needs none")
    return url


ImageUrl = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000), AfterValidator(_image_url)]
