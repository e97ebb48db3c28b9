"""The typed async client of the APIXO video API.

```python
async with ApixoClient(api_key) as apixo:
    task_id = await apixo.submit_once(VideoRequest(prompt="A red kite over dunes, slow dolly in, golden hour"))
    status = await wait_for_end(lambda: apixo.status_once(task_id), task_id=task_id)
```
"""

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from json import detect_encoding
from typing import Final, Self

import httpx
from aiolimiter import AsyncLimiter

from apixo import constants
from apixo.errors import (
    ApixoError,
    NoReplyError,
    NotSentError,
    ServerError,
    UnexpectedReplyError,
    UntrustedCertificateError,
    causes,
)
from apixo.network import NO_WAY, UNTRUSTED, is_untrusted_certificate, proxy_for, trust
from apixo.redaction import hide_queries, hide_secret, install_log_filter, quiet
from apixo.replies import (
    Envelope,
    Status,
    parse_balance,
    parse_envelope,
    parse_status,
    parse_submitted,
)
from apixo.retries import parse_retry_after, retry_delay
from apixo.urls import stored_image
from apixo.video_request import VideoRequest

STATUS_CONNECTIONS: Final = 32
"""Concurrent status calls. A call takes milliseconds; more of them would only wait in another queue."""

SHORTEST_KEY: Final = 8
"""The shortest API key that is hidden in replies, in characters. A shorter one is not a secret and may be part of any
word: hiding it could damage the reply, and the id of a paid task in it."""

SHORTEST_TOKEN: Final = 32
"""The shortest last part of a callback URL that is hidden by itself, in characters."""

NEVER_CONNECTED = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
"""httpx raises these before it sends any byte of the request. Every other transport error may come later."""


class StatusClient:
    """Polls the state of tasks, which is free. It cannot submit.

    Args:
        api_key: sent as a bearer token to `base_url` and nowhere else.
        base_url: the API's URL.
        requests_per_minute: the limit for all calls of this client together; None: the caller enforces it.
        submit_timeout_seconds: the longest a paid call may take, from connecting to the last byte of the reply.
        retry_delay_seconds: the pause before the first retry.
        max_tries: how many requests `status` makes in all.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = constants.BASE_URL,
        requests_per_minute: float | None = constants.REQUESTS_PER_MINUTE,
        submit_timeout_seconds: float = constants.SUBMIT_TIMEOUT_SECONDS,
        read_timeout_seconds: float = constants.READ_TIMEOUT_SECONDS,
        retry_delay_seconds: float = constants.RETRY_DELAY_SECONDS,
        max_tries: int = constants.MAX_TRIES,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if not api_key or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise ValueError("the API key is empty or contains spaces or invalid characters; copy it again")
        install_log_filter()
        self._api_key = api_key
        self._submit_timeout_seconds = submit_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._retry_delay_seconds = retry_delay_seconds
        self._max_tries = max_tries
        self._sleep, self._rng = sleep, rng
        self._limiter = None if requests_per_minute is None else _limiter(requests_per_minute)
        self._base_url, self._trust = base_url, trust()
        self._http = self._client(
            httpx.Limits(max_connections=STATUS_CONNECTIONS, max_keepalive_connections=None),
            httpx.Timeout(read_timeout_seconds, connect=constants.CONNECT_TIMEOUT_SECONDS),
        )
        # httpx compares every waiting request with every connection. Our own queue costs nothing, and waiting in it
        # does not count toward a time-out.
        self._gate = asyncio.Semaphore(STATUS_CONNECTIONS)

    def _client(self, limits: httpx.Limits, timeout: httpx.Timeout) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=self._base_url,
            headers={"Authorization": f"Bearer {self._api_key}", "Accept": "application/json"},
            timeout=timeout,
            limits=limits,
            verify=self._trust,
            proxy=proxy_for(self._base_url),
            trust_env=False,  # httpx would send the key in plain text through HTTP_PROXY, even to this machine
            follow_redirects=False,  # a redirect would carry the API key to another host
            # No cookie is kept: one with an invalid character would make every later call fail before it is sent.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(base_url={str(self._http.base_url)!r})"

    async def wait_for_turn(self) -> None:
        """Waits until one more request stays within `requests_per_minute`."""
        if self._limiter is not None:
            await self._limiter.acquire()

    async def status_once(self, task_id: str, *, model: str = constants.DEFAULT_MODEL) -> Status:
        """Requests the state of a task of this model once. Free of charge.

        Raises:
            ApixoError: no usable answer.
        """
        path = constants.STATUS_PATH.format(model=model)
        what = f"a complete status for task {task_id}"
        envelope = await self._get(path, what, params={"taskId": task_id}, task_id=task_id)
        return parse_status(envelope, task_id=task_id)

    async def status(self, task_id: str, *, model: str = constants.DEFAULT_MODEL) -> Status:
        """Requests the state of a task of this model, with retries after transient errors.

        Raises:
            ApixoError: no try got a usable answer.
        """
        tries = 1
        while True:
            try:
                return await self.status_once(task_id, model=model)
            except ApixoError as error:
                if tries >= self._max_tries or not error.retryable:
                    raise
                pause = retry_delay(
                    tries,
                    retry_after_seconds=error.retry_after_seconds,
                    first_seconds=self._retry_delay_seconds,
                    rng=self._rng,
                )
            await self._sleep(pause)
            tries += 1

    async def balance_once(self) -> Decimal:
        """Requests the balance of this API key's account once, in USD according to APIXO. Free of charge.

        Raises:
            ApixoError: no usable answer.
        """
        return parse_balance(await self._get(constants.BALANCE_PATH, "the balance"))

    async def _get(
        self, path: str, what: str, *, params: dict[str, str] | None = None, task_id: str | None = None
    ) -> Envelope:
        """Makes one free call, within the limits."""
        await self.wait_for_turn()
        try:
            async with self._gate, asyncio.timeout(2 * self._read_timeout_seconds):
                request = self._http.build_request("GET", path, params=params)
                return await self._call(self._http, request, submission=False, task_id=task_id)
        except TimeoutError as error:
            raise NoReplyError(f"APIXO did not return {what} in time.", task_id=task_id) from error

    async def _call(
        self,
        http: httpx.AsyncClient,
        request: httpx.Request,
        *,
        submission: bool,
        task_id: str | None = None,
        secret: str | None = None,
    ) -> Envelope:
        try:
            response = await http.send(request, stream=True)
            try:
                body = await _read(response, task_id=task_id)
            finally:
                await response.aclose()
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, ssl.SSLError) as error:
            # Logs also print causes, so a cause whose text contains a secret is dropped.
            harmless = all(self._hidden(str(seen), secret) == str(seen) for seen in causes(error))
            raise self._failure(error, request.url.host, task_id, secret) from (error if harmless else None)
        retry_after_seconds = parse_retry_after(
            response.headers.get("retry-after"),
            milliseconds=response.headers.get("retry-after-ms"),
            now=datetime.now(UTC),
        )
        # A server may echo the request in an error page: remove the API key and the callback's token.
        text = body.decode(detect_encoding(body), "replace")  # decoded like JSON, which may be UTF-16
        key = self._api_key if len(self._api_key) >= SHORTEST_KEY else ""
        body = hide_secret(hide_secret(text, key), secret or "").encode()
        return parse_envelope(
            response.status_code,
            body,
            submission=submission,
            retry_after_seconds=retry_after_seconds,
            task_id=task_id,
        )

    def _failure(self, error: Exception, host: str, task_id: str | None, secret: str | None) -> ApixoError:
        # A parser's error quotes the invalid line, which may echo what we sent.
        why = self._hidden(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, secret)
        if isinstance(error, NEVER_CONNECTED):
            if is_untrusted_certificate(error):
                text = f"No connection to {host}: {UNTRUSTED} ({why}). Nothing was sent."
                return UntrustedCertificateError(text, task_id=task_id)
            return NotSentError(
                f"No connection to {host} ({why}). Nothing was sent. "
                f"Check the network and base_url, then run it again.{NO_WAY}",
                task_id=task_id,
            )
        if isinstance(error, httpx.InvalidURL):  # httpx parses a redirect's URL even if it does not follow it
            return ServerError(f"{host} answered with a redirect to an invalid URL ({why}).", task_id=task_id)
        return NoReplyError(f"{host} did not send a complete reply to the request ({why}).", task_id=task_id)

    def _hidden(self, text: str, secret: str | None) -> str:
        return hide_secret(hide_secret(hide_queries(text), self._api_key), secret or "")


class ApixoClient(StatusClient):
    """Submits generations and polls their state. The arguments are those of `StatusClient`.

    Each paid call is exactly one POST. If it fails, the error says whether it may be repeated.
    """

    @cached_property
    def _paid_http(self) -> httpx.AsyncClient:
        """The HTTP client of the paid call, with a new connection for each call.

        The server's idle time-out could close a reused connection just as we send, and it would be unknown whether the
        request was read. The number of connections is unlimited: a time-out in a queue would count as unclear.
        """
        # Connecting times out before the whole call, so it is known that nothing was sent. (TLS counts separately.)
        connect_seconds = min(constants.CONNECT_TIMEOUT_SECONDS, self._submit_timeout_seconds / 3)
        return self._client(
            httpx.Limits(max_connections=None, max_keepalive_connections=0),
            httpx.Timeout(self._submit_timeout_seconds, connect=connect_seconds),
        )

    async def aclose(self) -> None:
        """Closes the connections."""
        await super().aclose()
        await self._paid_http.aclose()

    async def submit_once(
        self,
        request: VideoRequest,
        *,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        before_sending: Callable[[], Awaitable[None]] | None = None,
    ) -> str:
        """Sends the paid call exactly once. Returns the task id.

        Args:
            idempotency_key: identifies this call, in case the provider starts to recognize repeated calls by it. APIXO
                documents no such key for the single call, so nothing relies on it. Printable ASCII.
            before_sending: called after the wait for the rate limit, right before connecting. If it raises, nothing
                is sent.

        Raises:
            ProvablyUnpaidError: it was not accepted. It may be sent again.
            UnclearError: it may have been accepted. It must not be sent again.
        """
        if any(map(stored_image, request.image_urls)):
            raise NotSentError("APIXO cannot fetch an s3:// image: it needs a URL. Nothing was sent.")
        await self.wait_for_turn()
        if before_sending is not None:
            await before_sending()
        # A server may echo the token alone. A shorter last part, of another receiver's URL, may be an ordinary word.
        token = (callback_url or "").rpartition("/")[2]
        try:
            with quiet():
                async with asyncio.timeout(self._submit_timeout_seconds):
                    post = self._paid_http.build_request(
                        "POST",
                        constants.SUBMIT_PATH.format(model=request.model),
                        json=request.body(callback_url),
                        headers=None if idempotency_key is None else {"Idempotency-Key": idempotency_key},
                    )
                    secret = token if len(token) >= SHORTEST_TOKEN else callback_url
                    envelope = await self._call(self._paid_http, post, submission=True, secret=secret)
        except TimeoutError as error:
            raise NoReplyError(
                f"APIXO did not answer the submission completely within {self._submit_timeout_seconds:g} s. "
                "It may have been accepted and paid."
            ) from error
        return parse_submitted(envelope)


async def _read(response: httpx.Response, *, task_id: str | None) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > constants.MAX_REPLY_BYTES:
            raise UnexpectedReplyError(
                f"APIXO's reply is larger than {constants.MAX_REPLY_BYTES:,} bytes and was not read completely.",
                code=response.status_code,
                task_id=task_id,
            )
    return bytes(body)


def _limiter(requests_per_minute: float) -> AsyncLimiter:
    """A leaky bucket with the capacity of one second.

    With the capacity of a minute, the first minute would allow twice the limit: the bucket starts empty and leaks.
    """
    per_second = requests_per_minute / 60
    return AsyncLimiter(per_second, 1) if per_second >= 1 else AsyncLimiter(1, 1 / per_second)
