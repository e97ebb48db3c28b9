"""The gallery as an ASGI app: its routes, the headers of every response, and its server."""

import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apixo.network import is_loopback
from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import StoreError
from deployments.connection import SetupError, setup_command
from deployments.gallery.access import Access, TooManyError
from deployments.gallery.attention import generate_command, notices
from deployments.gallery.delivery import Delivery, redirects
from deployments.gallery.filters import Filters, menus
from deployments.gallery.index import PAGE_SIZE, ArchiveIndex
from deployments.gallery.pages import Pages, load_static
from deployments.gallery.prefect_links import PrefectLinks
from deployments.web_server import QuietServer, listen, read_body, served_paths
from flows.record.costs import costs
from flows.record.generation import ArchivedObject, Generation
from flows.record.keys import check_key
from flows.record.ledger import Ledger
from flows.record.pipeline_errors import InvalidKeyError, LedgerError
from flows.resources import command_options, load_block

MOST_REQUESTS: Final = 256
"""The maximum number of concurrent requests; further ones get 503 at once."""
STOP_SECONDS: Final = 3
"""How long responses in progress may take when the server stops."""
STORE_RETRY_TIMEOUT_SECONDS: Final = 2.0
"""How long to retry during an outage of the store: a visitor is waiting for the page."""
MOST_FORM_BYTES: Final = 4_096
FORM_SECONDS: Final = 10.0
NOTICES_SHOWN: Final = 50
DENIED: Final = "This requires a login, or the complete link to one video.\n"


async def serve(
    host: str,
    port: int,
    *,
    archive: str = "default",
    redirect: bool | None = None,
    on_ready: Callable[[str, VideoArchive], None],
) -> None:
    """Runs the gallery until SIGTERM or Ctrl-C. Port 0 picks a free one; `on_ready` gets the URL once it listens.

    Raises:
        SetupError: other machines would have access without a password, or the address is not available.
        PipelineError: the block is missing or cannot be used.
    """
    block = await load_block(VideoArchive, archive)
    check_password(host, block, archive)
    listener, url = listen(host, port, "The gallery")
    with listener:
        async with contextlib.aclosing(block.store()) as store:
            app = create_app(block, store, options=command_options("default", archive), redirect=redirect, url=url)
            server = QuietServer(
                app,
                on_started=lambda: on_ready(url, block),
                limit_concurrency=MOST_REQUESTS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
            await server.serve([listener])


def check_password(host: str, block: VideoArchive, name: str) -> None:
    """Checks that only this machine has access if there is no password.

    Raises:
        SetupError: other machines would have access.
    """
    public = block.gateway_url is not None and not is_loopback(urlsplit(block.gateway_url).hostname or "")
    if block.gateway_password is None and (public or not is_loopback(host)):
        raise SetupError(
            f"Others could see every video: the video-archive block {name!r} has no gateway_password, which is needed "
            f"beyond this machine. Set MINIO_GATEWAY_PASSWORD to 12 characters or more and run `{setup_command(name)}`."
        )


def create_app(
    archive: VideoArchive,
    store: ObjectStore,
    *,
    options: str = "",
    redirect: bool | None = None,
    url: str = "http://localhost",
    links: PrefectLinks | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Starlette:
    """The gallery of one archive.

    Args:
        options: the command-line options that name the blocks.
        redirect: whether browsers are redirected to the store for videos; None: only if its URL seems reachable.
        url: the URL where the gallery listens; used if the block has no gallery URL.
    """
    if redirect is None:
        redirect = redirects(store.url, archive.gateway_url or url)
    index = ArchiveIndex(store, Ledger(store, retry_timeout_seconds=STORE_RETRY_TIMEOUT_SECONDS))
    handlers = _Handlers(archive, index, Delivery(store, redirect=redirect), links or PrefectLinks(), options, now)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await index.current()  # for a large archive, reading continues in the background
        yield
        await index.aclose()

    routes = [
        Route(f"{path}{route}", handler, methods=methods)
        for path in served_paths(archive.gateway_url)
        for route, handler, methods in (
            ("/", handlers.overview, ["GET"]),
            ("/k/{key}", handlers.video_page, ["GET"]),
            ("/v/{key}/{name}", handlers.object, ["GET"]),
            ("/login", handlers.log_in, ["POST"]),
            ("/logout", handlers.log_out, ["POST"]),
            ("/static/{name}", handlers.static, ["GET"]),
            ("/health", handlers.health, ["GET"]),
        )
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={StoreError: _store_unavailable})
    app.router.redirect_slashes = False
    media = ""
    if redirect:  # not the store's own URL: for AWS, or with `virtual_host`, the bucket is a part of the host name
        signed = urlsplit(store.signed_url("-", seconds=1))
        media = f"{signed.scheme}://{signed.netloc}"
    app.add_middleware(
        _Guard,
        media=media,
        # Without a password, only loopback host names are accepted: a website could point its own name here.
        only_loopback=not handlers.access.needs_login,
    )
    return app


class _Handlers:
    """One method for each route."""

    def __init__(
        self,
        archive: VideoArchive,
        index: ArchiveIndex,
        delivery: Delivery,
        links: PrefectLinks,
        options: str,
        now: Callable[[], datetime],
    ) -> None:
        self._archive, self._index, self._delivery, self._links = archive, index, delivery, links
        self._options, self._now = options, now
        self.access = Access(archive)
        self.base = urlsplit(archive.gateway_url or "").path.rstrip("/")
        self._static = load_static()
        self._pages = Pages(self._static, base=self.base)

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def static(self, request: Request) -> Response:
        found = self._static.get(request.path_params["name"])
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(found.data, media_type=found.media_type, headers=headers)

    async def overview(self, request: Request) -> Response:
        if not self.access.may_see_all(request):
            return self._login_page()
        index = self._index
        await index.current()
        filters = Filters.parse(request.query_params)
        items = list(index.items.values())
        found = filters.of(items)
        last = max(1, -(-len(found) // PAGE_SIZE))
        first = (filters.page - 1) * PAGE_SIZE
        everything = [item.generation for item in items]
        now = self._now().astimezone(UTC)
        found_notices = notices(everything, self._options, now)
        return self._pages.page(
            "overview.html",
            filters=filters,
            menus=menus(items),
            shown=found[first : first + PAGE_SIZE],
            count=len(found),
            total=len(items),
            last_page=last,
            notices=found_notices[:NOTICES_SHOWN],
            notice_counts=Counter(notice.why for notice in found_notices),
            spend={row.currency: row.total for row in costs(everything, f"{now:%Y-%m}", None) if row.total},
            month=now,
            index=index,
            needs_login=self.access.needs_login,
        )

    async def video_page(self, request: Request) -> Response:
        if not self.access.may_see_all(request):
            return self._login_page()
        found = await self._find(request, fresh=True)
        found_notices = notices([found], self._options, self._now())
        poster = _object(found, "poster.jpg")
        video = found.video
        return self._pages.page(
            "video.html",
            found=found,
            video=video,
            others=[item.file_name for item in found.objects if item.kind == "video" and item is not video],
            poster=poster,
            notice=found_notices[0] if found_notices else None,
            command=generate_command(found, self._options),
            run_link=self._links.run(found),
            form_link=await self._links.form(found),
            share_link=self._archive.gateway_link(found.key, video.name) if video else None,
            needs_login=self.access.needs_login,
        )

    async def object(self, request: Request) -> Response:
        """A video, poster or small picture, for visitors with a login or its token. Others get only a 401."""
        if not self.access.may_see(request, request.path_params["key"]):
            headers = {"WWW-Authenticate": "Bearer", "Cache-Control": "no-store"}
            return PlainTextResponse(DENIED, HTTPStatus.UNAUTHORIZED, headers)
        name = request.path_params["name"]
        stored_name = "poster.jpg" if name == "card.jpg" else name
        found = await self._find(request, fresh=False)
        item = _object(found, stored_name)
        if item is None:  # a video that was archived alongside is newer than the known record
            found = await self._find(request, fresh=True)
            item = _object(found, stored_name)
        if item is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        if item.kind == "video":
            return await self._delivery.video(request, found, item)
        return await self._delivery.picture(item, small=name == "card.jpg")

    async def log_in(self, request: Request) -> Response:
        body = await read_body(request, most_bytes=MOST_FORM_BYTES, seconds=FORM_SECONDS)
        fields = parse_qs(body.decode("utf-8", "replace"))
        try:
            right = self.access.is_password(fields.get("password", [""])[0])
        except TooManyError:
            return self._login_page("Too many attempts. Wait a minute.", HTTPStatus.TOO_MANY_REQUESTS)
        if not right:
            return self._login_page("Wrong password.")
        response = RedirectResponse(f"{self.base}/", HTTPStatus.SEE_OTHER, {"Cache-Control": "no-store"})
        self.access.log_in(response)
        return response

    async def log_out(self, _: Request) -> Response:
        response = RedirectResponse(f"{self.base}/", HTTPStatus.SEE_OTHER, {"Cache-Control": "no-store"})
        self.access.log_out(response)
        return response

    def _login_page(self, message: str = "", status: HTTPStatus = HTTPStatus.UNAUTHORIZED) -> Response:
        return self._pages.page("login.html", status, message=message, needs_login=False)

    async def _find(self, request: Request, *, fresh: bool) -> Generation:
        try:
            found = await self._index.find(check_key(request.path_params["key"]), fresh=fresh)
        except (InvalidKeyError, LedgerError):
            found = None
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return found


class _Guard:
    """Sets the headers of every response, and, without a password, rejects host names that are not loopback."""

    def __init__(self, app: ASGIApp, *, media: str, only_loopback: bool) -> None:
        self._app, self._only_loopback = app, only_loopback
        media_sources = f"'self' {media}".strip()
        self._headers = {
            "Content-Security-Policy": (
                "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                f"img-src {media_sources}; media-src {media_sources}; "
                "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",  # a URL may contain a token
            "X-Content-Type-Options": "nosniff",
            "X-Robots-Tag": "noindex",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        # The raw header: if Starlette cannot parse it, its URL has the server's own address instead.
        host = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")) if scope["type"] == "http" else ""
        if scope["type"] == "http" and self._only_loopback and not is_loopback(host):
            refusal = PlainTextResponse(
                "Open this page via http://127.0.0.1 or localhost.\n", HTTPStatus.MISDIRECTED_REQUEST
            )
            await refusal(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)


def _object(found: Generation, name: str) -> ArchivedObject | None:
    """The video or poster with this name; nothing else in the bucket is accessible."""
    return next((item for item in found.objects if item.kind != "sidecar" and item.file_name == name), None)


async def _store_unavailable(_: Request, error: Exception) -> Response:
    del error  # its message names the store
    text = "The archive does not answer. Try again in a moment.\n"
    return PlainTextResponse(text, HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "10", "Cache-Control": "no-store"})
