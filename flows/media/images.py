"""Checks that a URL is an image the provider can use, before money is spent.

APIXO: JPG, PNG or WebP, at most 10 MB per image; it becomes the start frame or a key frame.

Animated PNG and WebP are rejected: it is not documented which of their frames the provider would use, and finding out
costs money. Bytes after the image's end are ignored: phones put depth maps and short videos there.
"""

import asyncio
import io
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from apixo.catalog import ImageFormat
from apixo.constants import MAX_IMAGE_BYTES
from flows.media.guarded_client import check_url, open_stream
from flows.media.media_errors import DownloadError, ImageRefusedError, display_url, is_retryable_status
from flows.media.share_links import share_link

MAX_IMAGE_PIXELS = 64_000_000
"""More than the 50 megapixels of common cameras. Decoding one image takes 256 MB, or nearly 1 GB for a WebP."""

DEFAULT_TOTAL_SECONDS = 60.0
"""For the whole image: 10 MB at 170 kB/s."""

# A progressive JPEG has about ten scans. A few kilobytes can have thousands, which take hours; libjpeg has no limit.
_MAX_JPEG_SCANS = 100

# Two separate threads: 1,000 checks at once must neither hold 1,000 decoded images in memory nor block the default
# threads, which resolve host names.
_DECODERS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="image-decoder")

# These classes directly instead of `Image.open`: so no other format can reach another of Pillow's decoders. It also
# avoids the warning about large images, which could be turned into an error only for all threads at once.
_PLUGINS: dict[ImageFormat, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
}

# The first bytes of files that users give by mistake, so that a message can name the type.
_OTHERS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"PK\x03\x04", "a ZIP file"),
    (b"<svg", "an SVG"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\1\0", "an icon"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
)

# The brands of ISO 23008-12, its amendments and AVIF. A file lists its main brand and compatible ones.
_AVIF_BRANDS = frozenset({b"avif", b"avis", b"avio"})
_HEIC_BRANDS = frozenset({
    b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1", b"heif", b"j2ki",
    b"avci", b"avcs", b"miaf", b"unif", b"vvic", b"vvis", b"evbi", b"evbs",
})  # fmt: skip

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_SCAN, _END = 0xDA, 0xD9
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image that the provider should be able to use.

    Attributes:
        url: Its URL without query, or its name.
        format: Detected from its bytes, whatever its name or content type.
        width: In pixels, as stored.
        height: In pixels, as stored.
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
    total_seconds: float = DEFAULT_TOTAL_SECONDS,
) -> ImageFacts:
    """Fetches an image, decodes all of it, and returns its properties.

    Args:
        client: From `flows.media.guarded_client.guarded_client`.
        max_bytes: Larger files are rejected; bytes are counted as they arrive.

    Raises:
        ForbiddenUrlError: the URL or a redirect may not be fetched.
        ImageRefusedError: the URL leads to a page about the image, the host answers 4xx, or the image is too big, not
            JPG, PNG or WebP, animated or damaged.
        DownloadError: the network failed, the host answers 5xx, 408 or 429, or takes too long.
    """
    check_url(url)
    if advice := share_link(url):
        raise ImageRefusedError(f"{display_url(url)} {advice}")
    try:
        async with asyncio.timeout(total_seconds) as limit:
            data = await _fetch(client, url, max_bytes)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise DownloadError(
            f"{display_url(url)} took longer than {total_seconds:g} s: try again later, or host the image elsewhere"
        ) from error
    return await asyncio.get_running_loop().run_in_executor(_DECODERS, decode_image, data, display_url(url))


def decode_image(data: bytes, shown: str, *, max_pixels: int = MAX_IMAGE_PIXELS) -> ImageFacts:
    """The properties of an image, from all of its bytes. Pure, but slow for a large one: run it in a thread.

    Args:
        shown: its name in messages: its URL without query, or its path.
        max_pixels: larger images are not decoded.

    Raises:
        ImageRefusedError: not JPG, PNG or WebP, more than max_pixels, animated or damaged.
    """
    if not data:
        raise ImageRefusedError(f"{shown} is empty: upload the image again")
    kind = sniff_format(data)
    if kind is None:
        name = _name(data)
        how = "save or convert it as a JPG" if name.startswith("a HEIC") else "give a JPG, PNG or WebP"
        raise ImageRefusedError(f"{shown} is {name} by its first bytes, not a JPG, PNG or WebP: {how}")
    if kind == "JPEG" and _count_scans(data) > _MAX_JPEG_SCANS:
        raise ImageRefusedError(f"{shown} has more than {_MAX_JPEG_SCANS} scans: save it as a plain JPG")
    try:
        with _PLUGINS[kind](io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise ImageRefusedError(
                    f"{shown} has {width:,} x {height:,} pixels, more than {max_pixels:,}: make it smaller"
                )
            if getattr(image, "n_frames", 1) > 1:
                raise ImageRefusedError(f"{shown} is animated: save the frame you want as a still image")
            image.load()
    except ImageRefusedError:
        raise
    except Exception as error:
        # Pillow raises whatever its decoders raise: OSError, SyntaxError, ValueError, struct.error, MemoryError, …
        raise ImageRefusedError(
            f"{shown} is a {kind} that cannot be decoded, so it is damaged or truncated: upload it again"
        ) from error
    if not _is_whole(data, kind):
        raise ImageRefusedError(f"{shown} is a truncated {kind}: upload it again")
    return ImageFacts(shown, kind, width, height, len(data))


def sniff_format(data: bytes) -> ImageFormat | None:
    """Which of the three formats an image has by its first bytes; None for anything else."""
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
            raise DownloadError(f"{shown} answers HTTP {response.status_code}: try again later")
        if not response.is_success:
            raise ImageRefusedError(f"{shown} answers HTTP {response.status_code}: {_rejection_advice(response)}")
        announced = int(response.headers.get("content-length", 0))
        if announced <= max_bytes:
            async for chunk in response.aiter_raw():
                data += chunk
                if len(data) > max_bytes:
                    break
        unpacked = _unpacked(bytes(data), response, max_bytes)
        if max(announced, len(data), len(unpacked)) > max_bytes:
            raise ImageRefusedError(
                f"{shown} is larger than {max_bytes:,} bytes, the most that APIXO accepts: make it smaller"
            )
        return unpacked


def _rejection_advice(response: httpx.Response) -> str:
    """Advice for the user when the answer is not an image."""
    if response.status_code not in (401, 403, 406):
        return "give a URL that anyone can open"
    agent = response.request.headers["user-agent"]
    return (
        f"its host rejects this program (User-Agent {agent!r}), this network or anyone who is not signed in, and may "
        "reject APIXO as well. Open the URL in a private window; if that shows the image, set SORA_CONTACT to a URL or "
        "mail address of yours, which some hosts require, or host the image elsewhere"
    )


def _unpacked(data: bytes, response: httpx.Response, max_bytes: int) -> bytes:
    """The data, decompressed if the host compressed it without being asked. Other clients decompress it too."""
    if "gzip" not in response.headers.get("content-encoding", "").lower() or not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return zlib.decompressobj(wbits=31).decompress(data, max_bytes + 1)
    except zlib.error:
        return data


def _count_scans(data: bytes) -> int:
    """How many scans a JPEG has, up to its end: phones put a second picture or a video after it."""
    scans = at = 0
    while found := _JPEG_MARKER.search(data, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            break
        if marker not in _WITHOUT_LENGTH:
            scans += marker == _SCAN
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _is_whole(data: bytes, kind: ImageFormat) -> bool:
    """Whether the end is there. Pillow does not need it once it has every pixel, but the provider's decoder may."""
    if kind == "PNG":
        return b"IEND\xaeB`\x82" in data
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data)
    return True  # Pillow itself notices when the end of a JPEG is missing


def _name(data: bytes) -> str:
    """What to call a file in messages if it is none of the three formats."""
    for magic, name in _OTHERS:
        if data.startswith(magic):
            return name
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
        if brands & _AVIF_BRANDS:
            return "an AVIF"
        return "a HEIC (the format of iPhone photos)" if brands & _HEIC_BRANDS else "a video"
    start = data[:256].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<body")):
        return "a web page"
    if b"<svg" in data[:1024].lower():
        return "an SVG"
    return "something else"
