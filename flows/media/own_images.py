"""The user's own images: uploaded from a file to the archive's bucket, from which the provider fetches them.

Requests, records and events refer to such an image as `s3://bucket/object`. The URL that the provider fetches is made
for each paid call: it is signed, secret, and different each time, so nothing else may contain it.
"""

import hashlib
import io
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
from PIL import Image, ImageOps

from apixo.catalog import ImageFormat, ImageLimits
from apixo.urls import stored_image
from blocks import VideoArchive
from blocks.object_store import ObjectStore
from blocks.store_errors import PreconditionFailedError
from flows.media.images import ImageFacts, check_image, decode_image
from flows.media.media_errors import ForbiddenUrlError, ImageRefusedError

FOLDER: Final = "images/"
LONGEST_SIGNATURE_SECONDS: Final = 7 * 24 * 3600
"""S3's maximum validity of a signed URL."""
_MAX_FILE_BYTES: Final = 100_000_000
"""Larger files are rejected even with `fit`. More than any camera's JPG."""
_SMALLER: Final = 0.85
"""How much of its width and height an image keeps each time it is still too large."""
_QUALITY: Final = 92
EXIF_ORIENTATION: Final = 0x0112
_SUFFIXES: Final[dict[ImageFormat, str]] = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
_KEPT: Final = ("icc_profile", "transparency")
"""Metadata that affects how pixels look, by Pillow's names. It is kept."""
_GRAY: Final = frozenset({"1", "L", "LA", "I", "I;16"})


@dataclass(frozen=True, slots=True)
class OwnImage:
    """A file that is ready to be uploaded.

    Attributes:
        object_name: derived from the file alone, so the same image is uploaded once and makes the same request.
        sideways: whether it is stored rotated, and only its EXIF orientation says which way is up.
    """

    object_name: str
    data: bytes
    facts: ImageFacts
    sideways: bool


def read_own_image(path: Path, *, shown: str, max_bytes: int, fit: bool) -> OwnImage:
    """Reads an image from a file and checks it. Slow for a large one: run it in a thread.

    Args:
        shown: its name in messages.
        max_bytes: the most that the model accepts.
        fit: whether it is rotated upright and made small enough if needed. Then a camera's other metadata, such as
            the location, is left out.

    Raises:
        ImageRefusedError: it does not exist, or the model does not support it.
    """
    try:
        if not path.is_file():
            raise ImageRefusedError(f"{shown} is not a file on this machine. A URL begins with https:// or s3://")
        size_bytes = path.stat().st_size
        if size_bytes > (_MAX_FILE_BYTES if fit else max_bytes):
            advice = "" if fit else ": make it smaller, or use --fit-images (fit_images)"
            most = _MAX_FILE_BYTES if fit else max_bytes
            raise ImageRefusedError(f"{shown} has {size_bytes:,} bytes, more than {most:,}{advice}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise ImageRefusedError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    facts = decode_image(data, shown)
    with Image.open(io.BytesIO(data), formats=[facts.format]) as image:
        sideways = _orientation(image) != 1
    name = hashlib.sha256(data).hexdigest()
    if fit and (sideways or len(data) > max_bytes):
        # Named after the original file: another encoder version would produce other bytes, and so another video.
        name = hashlib.sha256(f"{name} fit to {max_bytes}".encode()).hexdigest()
        data = _fitted(data, facts.format, max_bytes)
        facts, sideways = decode_image(data, shown), False
    return OwnImage(f"{FOLDER}{name}.{_SUFFIXES[facts.format]}", data, facts, sideways)


async def upload(image: OwnImage, store: ObjectStore) -> None:
    """Uploads an image to the bucket, unless it is there.

    Raises:
        StoreError: the store did not accept it.
    """
    content_type = f"image/{image.facts.format.lower()}"
    with suppress(PreconditionFailedError):
        await store.put_if(image.object_name, image.data, etag=None, content_type=content_type)


def image_address(url: str, archive: VideoArchive, store: ObjectStore, *, valid_seconds: float) -> str:
    """The URL from which the provider fetches an image. A signed one is a secret: it may only be sent to the provider.

    Args:
        archive, store: where `s3://` images are.
        valid_seconds: how long a signed URL must be valid.
    """
    stored = stored_image(url)
    if stored is None:
        return url
    bucket, name = stored
    if link := archive.public_link(name, bucket=bucket):
        return link
    return store.signed_url(name, seconds=int(min(valid_seconds, LONGEST_SIGNATURE_SECONDS)), bucket=bucket)


async def check_as_provider(
    web: httpx.AsyncClient, url: str, address: Callable[[str], str], *, limits: ImageLimits
) -> ImageFacts:
    """Fetches an image from the URL that the provider will use, and checks it as the model does; see `check_image`.

    Args:
        web: from `flows.media.guarded_client.guarded_client`.
        url: the URL in the request.
        address: returns the URL from which the provider fetches it.
        limits: what the model accepts.

    Raises:
        MediaError: the image is rejected, with the reason, or cannot be fetched.
    """
    if stored_image(url) is None:
        return await _checked(web, url, limits)
    try:
        return await _checked(web, address(url), limits)
    except ForbiddenUrlError as error:
        raise ForbiddenUrlError(
            f"APIXO cannot fetch {url}, because the store's address is not public: {error}. Set "
            "public_url in the video-archive block to the store's public URL, or give a public URL"
        ) from error
    except ImageRefusedError as error:
        raise ImageRefusedError(f"APIXO cannot use {url}: {error}") from error


async def _checked(web: httpx.AsyncClient, url: str, limits: ImageLimits) -> ImageFacts:
    found = await check_image(web, url, max_bytes=limits.max_image_bytes)
    problem = limits.image_problem(found.format, found.width, found.height)
    if problem is not None:
        raise ImageRefusedError(f"{found.url} {problem}")
    return found


def _fitted(data: bytes, kind: ImageFormat, max_bytes: int) -> bytes:
    """The image, upright and in at most this many bytes. One that is too large in its format becomes a JPG."""
    with Image.open(io.BytesIO(data), formats=[kind]) as opened:
        # Pillow caches the EXIF data here. It is then dropped, since exif_transpose would rewrite it and often fails.
        _orientation(opened)
        opened.info = {name: opened.info[name] for name in _KEPT if name in opened.info}
        upright = ImageOps.exif_transpose(opened)
    made = _encoded(upright, kind)
    if len(made) <= max_bytes:
        return made
    flat = Image.new("RGB", upright.size, "white")
    # has_transparency_data also covers a palette with a transparent color.
    shown = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    flat.paste(shown, mask=shown if shown.mode == "RGBA" else None)
    flat.info = upright.info
    width, height = flat.size
    made = _encoded(flat, "JPEG")
    while len(made) > max_bytes and min(width, height) > 1:
        width, height = max(int(width * _SMALLER), 1), max(int(height * _SMALLER), 1)
        made = _encoded(flat.resize((width, height), Image.Resampling.LANCZOS), "JPEG")
    return made


def _encoded(image: Image.Image, kind: ImageFormat) -> bytes:
    plain = image.convert("RGB") if kind == "JPEG" and image.mode not in ("RGB", "L") else image
    profile = plain.info.get("icc_profile") or b""
    fits = profile[16:20] == (b"GRAY" if plain.mode in _GRAY else b"RGB ")  # not a CMYK profile after the conversion
    file = io.BytesIO()
    plain.save(file, kind, quality=_QUALITY, icc_profile=profile if fits else None)
    return file.getvalue()


def _orientation(image: Image.Image) -> object:
    """The file's EXIF orientation; 1: upright as stored."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - whatever Pillow's parser raises; unreadable metadata is ignored
        return 1
