"""The callback receiver, which the provider calls when a task has ended.

`flows.callbacks` decides what a call means, `deployments.receiver.queue` limits how many are handled at once. The
request handlers here face the internet. So they give every request without a valid token the same answer, before they
read its body or the ledger, and they limit each connection, body and answer. If the receiver is down, nothing is lost:
polling continues.
"""

import asyncio
import contextlib
import functools
import logging
import re
import time
import traceback
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from apixo import ApixoError
from apixo.redaction import hide_secret
from blocks import ApixoApi, VideoArchive
from blocks.apixo_api import BLOCKS_HEADER, CHECK_KEY, secret_text
from blocks.store_errors import StoreError
from deployments.connection import SetupError, setup_command
from deployments.receiver.notifier import Notifier
from deployments.receiver.queue import CallbackFailure, CallbackQueue, QueueFullError, Result
from deployments.web_server import QuietConnection, QuietServer, is_same, listen, read_body, served_paths
from flows.callbacks import CallbackOutcome, answer_call, parse_claimed_task_id, shown_body
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import InvalidKeyError, PipelineError
from flows.resources import Resources, command_options, load_block
from flows.signals.events import emit_task_finished
from flows.wording import counted

MOST_BODY_BYTES: Final = 1_048_576
"""A callback has a few hundred bytes. One larger than 1 MiB is not the provider's."""
BODY_SECONDS: Final = 10.0
"""How long a body may take."""
ANSWER_SECONDS: Final = 15.0
"""The maximum time to an answer. The provider waits for 30 s; 200 calls at once on two busy cores took more than 5. A
call that takes longer continues, but gets a 503, so that the provider calls again: a 200 means that the outcome is
recorded, or needs no record."""
ONLY_POST: Final = "This URL accepts APIXO callbacks by POST. The receiver is running.\n"
RETRY_AFTER_SECONDS: Final = 10
STORE_RETRY_TIMEOUT_SECONDS: Final = 2.0
"""How long to retry during an outage of the store: shorter than `ANSWER_SECONDS`, so that the provider gets a 503."""
REFUSALS_EVERY_SECONDS: Final = 60.0
"""The minimum interval at which the log reports calls without a valid token."""

CONNECTION_SECONDS: Final = 30.0
"""How long a connection may last, including a slow reader. Each is used for one request."""
MOST_ANSWERED: Final = 256
"""The maximum number of connections that get a real answer; further ones get 503 at once."""
MOST_CONNECTIONS: Final = 512
"""Further connections are cut without an answer. Half of the file descriptors that Linux allows by default."""
SERVER_STOP_SECONDS: Final = 6
"""How long answers in progress may take when the receiver stops. The provider repeats calls that are cut."""

_LATER_ATTEMPT: Final = re.compile(r"[2-9]|[1-9][0-9]{1,5}")
"""From 2: the first attempt's URL has no number, so that each attempt has only one URL."""
# All others get a 200, even calls about something unknown: the provider would only repeat them three times.
_STATUSES: Final[dict[Result, HTTPStatus]] = {
    CallbackFailure.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    CallbackFailure.BROKEN: HTTPStatus.INTERNAL_SERVER_ERROR,
}

_log = logging.getLogger("sora")


async def serve(
    host: str, port: int, *, api: str = "default", archive: str = "default", on_ready: Callable[[str, ApixoApi], None]
) -> None:
    """Runs the receiver until SIGTERM or Ctrl-C, then finishes what is in progress and returns.

    Port 0 picks a free one; `on_ready` gets the URL once it listens.

    Raises:
        SetupError: there is no callback secret, or the address is not available.
        PipelineError: a block is missing or cannot be used.
        StoreError: the archive does not answer, or cannot keep a ledger.
    """
    blocks = await load_block(ApixoApi, api), await load_block(VideoArchive, archive)
    listener, url = listen(host, port, "The receiver")
    with listener:
        async with open_app(*blocks, api=api, archive=archive) as app:
            await CallbackServer(app, on_started=lambda: on_ready(url, blocks[0])).serve([listener])


@contextlib.asynccontextmanager
async def open_app(
    api_block: ApixoApi,
    archive_block: VideoArchive,
    *,
    api: str = "default",
    archive: str = "default",
) -> AsyncIterator[Starlette]:
    """The receiver as an ASGI app, with its own connections to the API and the ledger.

    Opened before the server starts, so that an unreachable archive stops the start with its own error.

    Raises:
        SetupError: the API block has no callback secret.
    """
    if api_block.callback_secret is None:
        raise SetupError(
            f"The apixo-api block {api!r} has no callback_secret, so forged calls could not be detected. Set "
            "APIXO_CALLBACK_SECRET to a long random text (`openssl rand -hex 32`) and APIXO_CALLBACK_URL to the public "
            f"URL of this receiver, and run `{setup_command(api)}`."
        )
    async with Resources(api_block, archive_block, options=command_options(api, archive)) as resources:
        resources.ledger = Ledger(resources.store, retry_timeout_seconds=STORE_RETRY_TIMEOUT_SECONDS)
        notifier = Notifier(functools.partial(emit_task_finished, api=api, archive=archive))
        handlers = _Handlers(resources, notifier)

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            yield
            await handlers.queue.aclose()
            notifier.flush()

        app = Starlette(
            routes=[
                Route("/health", handlers.health),
                *(
                    Route(f"{path}/apixo/{{key}}/{rest}", handlers.call, methods=["POST", "GET", "HEAD"])
                    for path in served_paths(api_block.callback_url)
                    # Some gateways add a trailing slash.
                    for rest in ("{token}", "{attempt}/{token}", "{token}/", "{attempt}/{token}/")
                ),
            ],
            lifespan=lifespan,
        )
        app.router.redirect_slashes = False  # a redirect would repeat the token in its Location
        yield app


class CallbackServer(QuietServer):
    """The web server, configured to face the internet: connections are short, and too many are rejected."""

    def __init__(self, app: ASGIApp, *, on_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            app,
            on_started=on_started,
            http=_Connection,
            headers=[("Connection", "close")],
            limit_concurrency=MOST_ANSWERED,
            timeout_keep_alive=1,
            timeout_graceful_shutdown=SERVER_STOP_SECONDS,
        )


class _Connection(QuietConnection):
    """One connection with a time limit. uvicorn itself waits forever for the head of a request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
        else:
            self._end = self.loop.call_later(CONNECTION_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)


class _Handlers:
    """One method for each route."""

    def __init__(self, resources: Resources, notifier: Notifier) -> None:
        self._resources, self._notifier = resources, notifier
        self._rejected = 0
        self._rejections_reported_at = -REFUSALS_EVERY_SECONDS
        self.queue = CallbackQueue(self._work)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def call(self, request: Request) -> Response:
        if request.method != "POST":  # a user, a monitor or a setup check
            headers = {"Allow": "POST"} | self._proof(request)
            return PlainTextResponse(ONLY_POST, HTTPStatus.METHOD_NOT_ALLOWED, headers)
        key, number = self._key_and_attempt(request)
        body = await read_body(request, most_bytes=MOST_BODY_BYTES, seconds=BODY_SECONDS)
        claimed_task_id = parse_claimed_task_id(body)
        try:
            call = self.queue.take(key, number, claimed_task_id)
        except QueueFullError:
            return _reply("busy", HTTPStatus.SERVICE_UNAVAILABLE)
        await asyncio.wait({call}, timeout=ANSWER_SECONDS)
        if not call.done():  # it continues, but nothing is recorded yet, so another call does no harm
            return _reply("unfinished", HTTPStatus.SERVICE_UNAVAILABLE)
        if call.cancelled():
            return _reply(CallbackFailure.UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE)
        if call.result() in (CallbackOutcome.UNIDENTIFIED, CallbackOutcome.UNKNOWN):
            api = self._resources.api
            shown = shown_body(body, api.callback_token(key, number), secret_text(api.api_key))
            _log.warning("APIXO's call about %s, attempt %d, had the body: %s", key, number, shown)
        return _reply(call.result(), _STATUSES.get(call.result(), HTTPStatus.OK))

    def _proof(self, request: Request) -> dict[str, str]:
        """For a setup check with a valid token: a digest that shows whether this receiver uses the same blocks."""
        parts, resources = request.path_params, self._resources
        if (parts["key"], parts.get("attempt")) != (CHECK_KEY, "0") or not is_same(
            parts["token"], resources.api.callback_token(CHECK_KEY, 0)
        ):
            return {}
        return {BLOCKS_HEADER: resources.api.blocks_digest(resources.archive.bucket)}

    def _key_and_attempt(self, request: Request) -> tuple[str, int]:
        """The key and attempt in the URL, if its token is valid. Otherwise 404, as for any other URL."""
        parts = request.path_params
        number = parts.get("attempt")
        if number is not None and not _LATER_ATTEMPT.fullmatch(number):
            raise HTTPException(HTTPStatus.NOT_FOUND)
        try:
            key = check_key(parts["key"])
        except InvalidKeyError:
            raise HTTPException(HTTPStatus.NOT_FOUND) from None
        attempt_number = int(number or "1")
        token = self._resources.api.callback_token(key, attempt_number)
        if not is_same(parts["token"], token):
            self._report_rejections()
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return key, attempt_number

    def _report_rejections(self) -> None:
        """Logs rejected calls, but not too often. A changed secret would otherwise go unnoticed."""
        self._rejected += 1
        now = time.monotonic()
        if now - self._rejections_reported_at >= REFUSALS_EVERY_SECONDS:
            _log.warning(
                "Rejected %s with an invalid token. If they came from the provider, the callback secret "
                "was changed after those videos were submitted; polling still finds their end.",
                counted(self._rejected, "call"),
            )  # fmt: skip
            self._rejected, self._rejections_reported_at = 0, now

    async def _work(self, key: str, attempt_number: int, claimed_task_id: str | None) -> Result:
        """Handles a call and logs the result. Whatever error occurs, the receiver keeps running."""
        result: Result
        try:
            result = await answer_call(
                key, attempt_number, claimed_task_id, self._resources, notify=self._notifier.finished
            )
        except (ApixoError, StoreError) as error:
            result, why = CallbackFailure.UNAVAILABLE, str(error)
        except PipelineError as error:
            result, why = CallbackFailure.BROKEN, str(error)
        except Exception:  # noqa: BLE001 - the outermost edge
            result, why = CallbackFailure.BROKEN, traceback.format_exc()
        if isinstance(result, CallbackFailure):
            # The message may quote the provider, which knows the callback URL and its token.
            token = self._resources.api.callback_token(key, attempt_number)
            _log.error("A call for %s could not be handled: %s", key, hide_secret(why, token))
        else:
            _log.info("APIXO called back for %s, attempt %d: %s.", key, attempt_number, result)
        return result


def _reply(status: str, code: HTTPStatus) -> Response:
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if code is HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse({"status": str(status)}, code, headers)
