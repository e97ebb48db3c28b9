"""Fetches start images over the network, like the provider."""

import asyncio
import ipaddress
from io import BytesIO

import httpx
from PIL import Image

from deployments.sandbox.settings import IMAGE_FORMATS, IMAGE_LIMIT_BYTES, NETWORK_TIMEOUT_SECONDS

#: The user agent of the sandbox's own requests, to distinguish them in the record from the pipeline's.
USER_AGENT = "apixo-sandbox"


class InvalidImageError(Exception):
    """An image cannot be used. The message says why, and becomes the task's `failMsg`."""


def network_client() -> httpx.AsyncClient:
    """The client for images and callbacks. It ignores proxy settings: the servers are on this machine or network."""
    return httpx.AsyncClient(
        timeout=NETWORK_TIMEOUT_SECONDS,
        trust_env=False,
        headers={"User-Agent": USER_AGENT},
        event_hooks={"request": [_reject_link_local]},
        limits=httpx.Limits(max_connections=200, max_keepalive_connections=20),
    )


async def fetch_image(client: httpx.AsyncClient, url: str) -> bytes:
    """The image at `url`, checked: reachable within 10 s, at most 10 MB, a JPG, PNG or WebP that decodes.

    Raises `InvalidImageError`.
    """
    try:
        async with asyncio.timeout(NETWORK_TIMEOUT_SECONDS):
            content = await _download(client, url)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError, ValueError) as error:
        raise InvalidImageError(f"cannot access the image URL: {type(error).__name__}") from error
    await asyncio.to_thread(_check, content)
    return content


async def _download(client: httpx.AsyncClient, url: str) -> bytes:
    content = bytearray()
    async with client.stream("GET", url, follow_redirects=True) as response:
        if response.status_code != 200:
            raise InvalidImageError(f"the image URL answers HTTP {response.status_code}")
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > IMAGE_LIMIT_BYTES:
                raise InvalidImageError("the image is larger than 10 MB")
    return bytes(content)


def _check(content: bytes) -> None:
    try:
        with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidImageError("the image URL does not lead to a readable JPG, PNG or WebP") from error


async def _reject_link_local(request: httpx.Request) -> None:
    # Even a sandbox must not read a cloud machine's credentials because an image URL redirects there.
    try:
        address = ipaddress.ip_address(request.url.host)
    except ValueError:
        return
    if address.is_link_local:
        raise httpx.ConnectError("link-local addresses are not fetched", request=request)
