"""Access control: a login for the whole gallery, a token for one video."""

import hashlib
import hmac
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from blocks import VideoArchive
from deployments.web_server import is_same

COOKIE: Final = "sora_gallery"
SESSION_SECONDS: Final = 14 * 24 * 3600
"""How long a login lasts. A new password or secret ends all logins."""
MOST_WRONG: Final = 20
WRONG_SECONDS: Final = 60.0
"""After `MOST_WRONG` wrong passwords within this time, from any client, logins are blocked until it has passed."""
_TOKEN: Final = re.compile("[0-9a-f]{64}")


class TooManyError(Exception):
    """Too many recent wrong passwords. This one was not checked."""


class Access:
    """Decides what each request may see. All comparisons take constant time.

    Args:
        archive: its gateway secret signs tokens and sessions, its gateway password gives access to the gallery.
    """

    def __init__(
        self,
        archive: VideoArchive,
        *,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._archive = archive
        self._now, self._monotonic = now, monotonic
        self._password = archive.gateway_password.get_secret_value() if archive.gateway_password else None
        # Without a configured secret, sessions end with this process, and there are no tokens.
        secret = archive.gateway_secret.get_secret_value() if archive.gateway_secret else secrets.token_hex()
        self._session_secret = hashlib.sha256(f"session/{secret}/{self._password}".encode()).digest()
        self._wrong: deque[float] = deque(maxlen=MOST_WRONG)

    @property
    def needs_login(self) -> bool:
        """Whether there is a password."""
        return self._password is not None

    def may_see_all(self, request: Request) -> bool:
        """Whether the visitor is logged in, or sends the password as a bearer token."""
        if self._password is None:
            return True
        if self._is_session(request.cookies.get(COOKIE, "")):
            return True
        bearer = _bearer(request)
        # A token for one video does not count as a wrong password, but a password may have the form of a token.
        if not bearer or (_TOKEN.fullmatch(bearer) and not is_same(bearer, self._password)):
            return False
        try:
            return self.is_password(bearer)
        except TooManyError:
            return False

    def may_see(self, request: Request, key: str) -> bool:
        """Whether this request may get the video of this key."""
        if self._archive.gateway_secret is not None:
            token = self._archive.gateway_token(key)
            if is_same(request.query_params.get("t", ""), token) or is_same(_bearer(request), token):
                return True
        return self.may_see_all(request)

    def is_password(self, text: str) -> bool:
        """Whether this is the gallery's password.

        Raises:
            TooManyError: too many recent wrong passwords.
        """
        now = self._monotonic()
        if len(self._wrong) == MOST_WRONG and now - self._wrong[0] < WRONG_SECONDS:
            raise TooManyError
        if self._password is None or is_same(text, self._password):
            return True
        self._wrong.append(now)
        return False

    def log_in(self, response: Response) -> None:
        """Sets the session cookie."""
        expires = str(int(self._now()) + SESSION_SECONDS)
        response.set_cookie(
            COOKIE,
            f"{expires}.{self._signature(expires)}",
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="lax",
            secure=(self._archive.gateway_url or "").startswith("https://"),
        )

    def log_out(self, response: Response) -> None:
        """Deletes the session cookie."""
        response.delete_cookie(COOKIE, httponly=True, samesite="lax")

    def _is_session(self, value: str) -> bool:
        expires, _, signature = value.partition(".")
        # With a valid signature, `expires` is a number.
        return is_same(signature, self._signature(expires)) and int(expires) > self._now()

    def _signature(self, expires: str) -> str:
        return hmac.new(self._session_secret, expires.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _bearer(request: Request) -> str:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""
