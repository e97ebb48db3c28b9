"""Delivers videos and posters to browsers: redirects to a signed URL of the store, or streams the bytes."""

import asyncio
import re
import unicodedata
from collections import OrderedDict
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from apixo.network import is_loopback
from blocks.object_store import ObjectStore
from flows.record.generation import ArchivedObject, Generation
from flows.signals.thumbnail import thumbnail

SIGNED_SECONDS: Final = 3600
"""How long a signed URL is valid. Longer than one viewing: to seek, browsers request the same URL again."""
CARD_PIXELS: Final = 480
"""Longest side of the pictures on the overview: twice the size of a card, for high-resolution screens."""
MOST_CARDS: Final = 2_000
"""The maximum number of pictures in memory, about 20 KB each."""
MOST_POSTER_BYTES: Final = 20_000_000
LONGEST_STEM: Final = 100
POSTER_CACHE: Final = "private, max-age=86400"
"""If a user names another task, the key's poster may change. So it is cached for a day, not forever."""


def redirects(store_url: str, gateway_url: str) -> bool:
    """Whether browsers that reach the gateway also reach the store, judging by the URLs. Pure."""
    store, gateway = urlsplit(store_url), urlsplit(gateway_url)
    if store.scheme == "http" and gateway.scheme == "https":  # browsers block http videos on https pages
        return False
    return is_loopback(gateway.hostname or "") or not is_loopback(store.hostname or "")


class Delivery:
    """Answers requests for objects of one store, to which browsers are redirected if `redirect` is true."""

    def __init__(self, store: ObjectStore, *, redirect: bool) -> None:
        self._store, self._redirect = store, redirect
        self._cards: OrderedDict[str, bytes] = OrderedDict()

    async def video(self, request: Request, found: Generation, item: ArchivedObject) -> Response:
        """A video, whole or in part."""
        saved_as = download_name(found, item) if request.query_params.get("download") else None
        # A signed URL is for one method, and some players send another one than GET first.
        if self._redirect and request.method == "GET":
            url = self._store.signed_url(item.name, seconds=SIGNED_SECONDS, download_as=saved_as)
            # No-store: the next visit gets a new signed URL.
            return RedirectResponse(url, HTTPStatus.FOUND, {"Cache-Control": "no-store"})
        etag = f'"{item.sha256}"'
        headers = {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "private, no-cache"}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        if saved_as:
            headers["Content-Disposition"] = f'attachment; filename="{saved_as}"'
        status, start, length = HTTPStatus.OK, 0, item.size_bytes
        # If the client has a part of another version, it gets the whole file.
        is_current = request.headers.get("if-range", etag) == etag
        try:
            part = _range(request.headers.get("range"), item.size_bytes) if is_current else None
        except ValueError:
            headers = {"Content-Range": f"bytes */{item.size_bytes}"}
            return Response(status_code=HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers=headers)
        if part is not None:
            status, (start, length) = HTTPStatus.PARTIAL_CONTENT, part
            headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{item.size_bytes}"
        headers["Content-Length"] = str(length)
        is_head = request.method == "HEAD"
        pieces = self._store.stream(item.name, start=start, length=1 if is_head else length)
        first = await anext(pieces, None)  # before the status is sent: the object may be gone, or the store unavailable
        if first is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        if is_head:
            return Response(None, status, headers, item.content_type)
        return StreamingResponse(_joined(first, pieces), status, headers, item.content_type)

    async def picture(self, item: ArchivedObject, *, small: bool) -> Response:
        """A poster, unchanged or small.

        Raises:
            HTTPException: it no longer exists, or is not an image.
        """
        data = await (self._card(item) if small else self._store.read(item.name, max_bytes=MOST_POSTER_BYTES))
        if data is None:
            raise HTTPException(HTTPStatus.NOT_FOUND)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": POSTER_CACHE})

    async def _card(self, item: ArchivedObject) -> bytes | None:
        data = self._cards.get(item.sha256)
        if data is None:
            poster = await self._store.read(item.name, max_bytes=MOST_POSTER_BYTES)
            data = await asyncio.to_thread(thumbnail, poster, CARD_PIXELS) if poster else None
            if data is None:
                return None
            self._cards[item.sha256] = data
            while len(self._cards) > MOST_CARDS:
                self._cards.popitem(last=False)
        self._cards.move_to_end(item.sha256)
        return data


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def download_name(found: Generation, item: ArchivedObject) -> str:
    """The key, and the first words of the prompt: `kite-01-a-red-kite-over-dunes.mp4`."""
    stem, _, extension = item.file_name.rpartition(".")
    plain = unicodedata.normalize("NFKD", found.request.prompt[:200]).encode("ascii", "ignore").decode().lower()
    words = re.findall("[a-z0-9]+", plain)[:6]
    name = "-".join([found.key, *words])[:LONGEST_STEM].rstrip("-._")
    return f"{name}{stem.removeprefix('video')}.{extension}"


def _range(header: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the number of bytes requested; None: the whole object, also if the header is not understood.

    Raises:
        ValueError: nothing of the object is in the range.
    """
    requested = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip())
    if requested is None or not any(requested.groups()):
        return None
    first, last = requested.groups()
    if first and last and int(last) < int(first):
        return None
    if not first:
        start, end = max(size - int(last), 0), size - 1
    else:
        start, end = int(first), min(int(last or size - 1), size - 1)
    if start > end:
        raise ValueError(f"the object has {size} bytes")
    return start, end - start + 1
