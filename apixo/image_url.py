"""The address of an image, as the provider can fetch it."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, StringConstraints

from apixo.addresses import normalize_url


def _image_url(url: str) -> str:
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
            "only"
        )
    if not host:
        raise ValueError("names no host; give a whole address such as https://example.com/start.jpg")
    if parts.username is not None or parts.password is not None:
        raise ValueError("carries a user name or password; use an address that needs none")
    return url


ImageUrl = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000), AfterValidator(_image_url)]
