"""Is this URL an image the provider can use? Asked before money is spent.

APIXO: JPG, PNG or WebP, at most 10 MB an image; it becomes the start or key frame.

Animated PNG and WebP are refused: which of their frames the provider would take is not documented, and finding out
costs money. Bytes after the image's end are left alone: phones put depth maps and short videos there, and nothing here
reads them.
"""

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import httpx
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from flows.media.errors import DownloadError, ImageRefusedError, display_url, is_retryable_status
from flows.media.hosts import check_url, open_stream

ImageFormat = Literal["JPEG", "PNG", "WEBP"]

MAX_IMAGE_BYTES = 10_000_000
"""APIXO: at most 10 MB. Whether that means 10,000,000 or 10 times 1,048,576 is not said: the stricter one fits both."""

MAX_IMAGE_PIXELS = 64_000_000
"""More than the 50 megapixels of common cameras; one such picture takes 256 MB to decode, as a WebP nearly 1 GB."""

DEFAULT_TOTAL_SECONDS = 60.0
"""For the whole image: 10 MB at 170 kB/s."""

# A progressive JPEG has about ten scans. One of thousands costs hours for a few kilobytes; libjpeg itself has no limit.
_MAX_JPEG_SCANS = 100

# Of their own, and two: 1,000 checks at once must neither hold 1,000 decoded pictures nor starve the default threads,
# in which host names are resolved.
_DECODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="image-decoder")

# Each class by hand rather than `Image.open`: what is not one of the three can reach no other decoder of Pillow's, and
# its warning about large pictures, which could be made an error only for all threads at once, does not come up.
_PLUGINS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}

# First bytes of what people give by mistake, to name it.
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"PK\x03\x04", "a ZIP file"),
    (b"<svg", "an SVG"),
)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that the provider should be able to use.

    Attributes:
        url: Where it is, without query.
        format: By its bytes, whatever its name or content type says.
        width: In pixels, as stored.
        height: In pixels, as stored.
        size_bytes: Of the file.
    """

    url: str
    format: ImageFormat
    width: int
    height: int
    size_bytes: int


async def check_image(
    client: httpx.AsyncClient,
    url: str,
    *,
    max_bytes: int = MAX_IMAGE_BYTES,
    max_pixels: int = MAX_IMAGE_PIXELS,
    total_seconds: float = DEFAULT_TOTAL_SECONDS,
) -> ImageFacts:
    """Fetches an image, decodes all of it, and says what it is.

    Args:
        client: From `flows.media.hosts.guarded_client`.
        url: Where the image is.
        max_bytes: Larger files are refused, counted while they arrive.
        max_pixels: Larger pictures are refused before they are decoded.
        total_seconds: The most the fetching may take.

    Raises:
        ForbiddenUrlError: the URL or a redirect may not be asked.
        ImageRefusedError: the host answers 4xx, or the image is too big, not JPG, PNG or WebP, animated or damaged.
        DownloadError: the network failed, the host answers 5xx, 408 or 429, or takes too long.
    """
    check_url(url)
    try:
        async with asyncio.timeout(total_seconds) as limit:
            data = await _fetch(client, url, max_bytes)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DownloadError(
            f"{display_url(url)} took longer than {total_seconds:g} s: try again later, or host the image elsewhere",
            url=url,
        ) from error
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, decode_image, data, url, max_pixels)


def decode_image(data: bytes, url: str, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageFacts:
    """What an image is, from all of its bytes. Pure, and slow for a large one: to be run in a thread.

    Raises:
        ImageRefusedError: not JPG, PNG or WebP, more than max_pixels, animated or damaged.
    """
    shown = display_url(url)
    if not data:
        raise ImageRefusedError(f"{shown} is empty: upload the image again", url=url)
    kind = sniff_format(data)
    if kind is None:
        raise ImageRefusedError(f"{shown} is {_name(data)} by its first bytes, not a JPG, PNG or WebP", url=url)
    if kind == "JPEG" and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ImageRefusedError(f"{shown} has more than {_MAX_JPEG_SCANS} scans: save it as a plain JPG", url=url)
    try:
        with _PLUGINS[kind](io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageRefusedError(
                    f"{shown} has {width:,} x {height:,} pixels, more than {max_pixels:,}: make it smaller", url=url
                )
            if getattr(image, "n_frames", 1) > 1:
                raise ImageRefusedError(f"{shown} is animated: save the one frame that is meant as a still", url=url)
            image.load()
    except ImageRefusedError:
        raise
    except Exception as error:
        # Pillow raises whatever its decoders trip over: OSError, SyntaxError, ValueError, struct.error, MemoryError, …
        raise ImageRefusedError(
            f"{shown} is a {kind} that does not decode, so it is damaged or cut: upload it again", url=url
        ) from error
    if not _is_whole(data, kind):
        raise ImageRefusedError(f"{shown} is a {kind} that was cut: upload it again", url=url)
    return ImageFacts(shown, kind, width, height, len(data))


def sniff_format(data: bytes) -> ImageFormat | None:
    """Which of the three an image is by its first bytes; None for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return None


async def _fetch(client: httpx.AsyncClient, url: str, max_bytes: int) -> bytes:
    shown = display_url(url)
    data = bytearray()
    async with open_stream(client, url) as response:
        if is_retryable_status(response.status_code):
            raise DownloadError(f"{shown} answers HTTP {response.status_code}: try again later", url=url)
        if response.status_code != 200:
            raise ImageRefusedError(
                f"{shown} answers HTTP {response.status_code}: give a URL that anybody can open", url=url
            )
        length = response.headers.get("content-length", "")
        announced = int(length) if length.isascii() and length.isdecimal() else 0
        if announced <= max_bytes:
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > max_bytes:
                    break
        if max(announced, len(data)) > max_bytes:
            raise ImageRefusedError(
                f"{shown} is larger than {max_bytes:,} bytes, the most APIXO takes: make it smaller", url=url
            )
    return bytes(data)


def _is_whole(data: bytes, kind: ImageFormat) -> bool:
    """Whether the end is there, which Pillow does not need once it has every pixel, and the provider's decoder may."""
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return True  # Pillow misses the end of a JPEG by itself


def _name(data: bytes) -> str:
    """What a file that is none of the three is called in a message."""
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        return {b"avif": "an AVIF", b"avis": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC"}.get(data[8:12], "a video")
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "a web page"
    if b"<svg" in data[:1024].lower():
        return "an SVG"
    return "something else"
