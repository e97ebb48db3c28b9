"""Errors about images and videos from outside.

::

    MediaError                  the base of all of them
    ├── ForbiddenUrlError       the URL may not be fetched: scheme, user name, private host, downgrade   not retryable
    ├── ImageRefusedError       an image the provider cannot use: too big, wrong type, damaged, HTTP 4xx not retryable
    ├── DownloadError           the bytes did not arrive: network, HTTP 5xx, 429, 408, cut, disk full    retryable
    │   ├── CutDownloadError    the host ended the file before the length that it had declared
    │   └── ResultExpiredError  the host answers 404 or 410 to a result URL                              not retryable
    │       └── ForbiddenByHostError  it answers 403: the URL expired, or it rejects this program
    └── DamagedVideoError       the bytes arrived and are not a whole, playable video                    retryable

``retryable`` says whether the same call may succeed a little later without any action. A single error may override
the default of its class: a file that is too big is a ``DownloadError`` that no retry can fix.
"""

from urllib.parse import urlsplit

from apixo import SoraError
from apixo.urls import normalize_url

_MAX_SHOWN = 200  # characters of a URL in a message: enough to recognize it, short enough for one log line
_RETRYABLE_STATUSES = frozenset({408, 425, 429})


class MediaError(SoraError):
    """The base of every error about an image or a video from outside.

    Args:
        message: What happened and what to do next. It must not contain a URL's query or user name: see `display_url`.
        retryable: Whether the same call may succeed later; None uses the default of the class.

    It can be pickled: ``args`` is the message, the rest is plain attributes.
    """

    def __init__(self, message: str, *, retryable: bool | None = None) -> None:
        super().__init__(message)
        if retryable is not None:
            self.retryable = retryable


class ForbiddenUrlError(MediaError):
    """Raised before a URL is fetched: it, or the redirect to it, is not allowed."""


class ImageRefusedError(MediaError):
    """Raised when an image cannot be used: its host answers 4xx, or it is too big, of the wrong type or damaged."""


class DownloadError(MediaError):
    """Raised when bytes did not arrive: no connection, a time-out, HTTP 5xx, 429 or 408, a cut body, a full disk."""

    retryable = True


class CutDownloadError(DownloadError):
    """Raised when a host ends a file before the length that it declared. What arrived is kept."""


class ResultExpiredError(DownloadError):
    """Raised when the result's host answers 404 or 410: another URL may work."""

    retryable = False


class ForbiddenByHostError(ResultExpiredError):
    """Raised when the result's host answers 403: the URL has expired, or the host rejects this program or network."""


class DamagedVideoError(MediaError):
    """Raised when a file is empty, not a video, cut short or not decodable. Fetching it again may fix it."""

    retryable = True


def display_url(url: str) -> str:
    """The URL without query, fragment, user name and password: the part that may be shown and logged.

    Text that is not a URL becomes ``<malformed URL>``, because it may be anything, even a pasted secret.
    """
    try:
        parts = urlsplit(normalize_url(url))
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "<malformed URL>"
    if not parts.scheme or not host:
        return "<malformed URL>"
    shown = f"{parts.scheme}://{host}{parts.path}"
    if len(shown) > _MAX_SHOWN:
        shown = f"{shown[:_MAX_SHOWN]}…"
    return "".join(char if char.isprintable() else "?" for char in shown)


def is_retryable_status(status: int) -> bool:
    """Whether an HTTP status may change a little later: every 5xx, 408, 425 (too early) and 429."""
    return status >= 500 or status in _RETRYABLE_STATUSES
