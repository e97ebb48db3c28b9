"""The image check: real images from a real server, and everything that only resembles one."""

import asyncio
import gzip
import io
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from apixo.constants import MAX_IMAGE_BYTES
from flows.media.images import ImageFacts, check_image, decode_image
from flows.media.media_errors import DownloadError, ForbiddenUrlError, ImageRefusedError

PIXELS = np.random.default_rng(1).integers(0, 255, (24, 32, 3)).astype(np.uint8)
URL = "https://a.example/x.jpg"
ROOT = Path(__file__).parents[3]


def encoded(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


def animated(kind: str) -> bytes:
    return encoded(kind, save_all=True, append_images=[Image.fromarray(255 - PIXELS)], duration=100)


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def ftyp(brand: bytes, *compatible: bytes) -> bytes:
    """The start of a file whose first box declares these brands."""
    body = brand + bytes(4) + b"".join(compatible)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(100)


JPEG, PNG, WEBP = encoded("JPEG"), encoded("PNG"), encoded("WEBP")


def jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header declares this size."""
    start = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:start] + struct.pack(">HH", height, width) + JPEG[start + 4 :]


def webp(width: int, height: int) -> bytes:
    """A WebP with one small picture on a canvas of this size."""
    size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    chunks = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + size + WEBP[12:]
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/a.jpg", JPEG, "JPEG"),
        ("/b.png", PNG, "PNG"),
        ("/c.webp", WEBP, "WEBP"),
        ("/progressive.jpg", encoded("JPEG", progressive=True), "JPEG"),
        ("/lossless.webp", encoded("WEBP", lossless=True), "WEBP"),
        ("/really-a-png.jpg", PNG, "PNG"),
        ("/no-ending", JPEG, "JPEG"),
        ("/with-a-video-behind.jpg", JPEG + b"\0\0\0\x18ftypmp42" + bytes(1000), "JPEG"),
        # Data after an image or in its comments is ignored here, and not kept in the archive.
        (
            "/motion-photo.jpg",
            encoded("JPEG", progressive=True) + b"MotionPhoto_Data" + b"\xff\xda\0\x02" * 5_000,
            "JPEG",
        ),
        ("/two-pictures.jpg", JPEG + b"\xff\xd8\xff\xe1\0\x04XX" + b"\xff\xda\0\x02" * 200 + JPEG, "JPEG"),
        # As cameras and phones write it: Pillow calls it MPO.
        ("/larger-preview.jpg", encoded("MPO", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]), "JPEG"),
        ("/scans-in-a-thumbnail.jpg", JPEG[:2] + b"\xff\xe1\x02\x02" + b"\xff\xda\0\x02" * 128 + JPEG[2:], "JPEG"),
        ("/with-a-page-behind.jpg", JPEG + b"<html><script>alert(1)</script></html>", "JPEG"),
        ("/with-a-zip-behind.png", PNG + b"PK\x03\x04" + bytes(100), "PNG"),
        ("/with-a-page-inside.jpg", encoded("JPEG", comment=b"<script>alert(1)</script>"), "JPEG"),
    ],
)
async def test_image_is_accepted_by_its_content_not_its_name(
    web: Any, client: httpx.AsyncClient, path: str, body: bytes, kind: str
) -> None:
    facts = await check_image(client, web.serve(path, body) + "?sig=secret")
    assert facts == ImageFacts(web.url(path), kind, 32, 24, len(body))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (encoded("GIF"), "is a GIF by its first bytes, not a JPG, PNG or WebP"),
        (encoded("BMP"), "a BMP"),
        (encoded("TIFF"), "a TIFF"),
        (encoded("AVIF"), "an AVIF"),
        (b"<!DOCTYPE html><title>Sign in</title>", "a web page"),
        (b"\n <html>" + JPEG, "a web page"),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "an SVG"),
        (b"%PDF-1.7", "a PDF"),
        (b"\x1f\x8b\x08" + JPEG, "gzip"),
        (b"GIF89a" + PNG, "a GIF"),  # a polyglot counts as what its first bytes say
        (b"GIF89a/*" + JPEG + b"*/=1;alert(1)", "a GIF"),
        (b"PK\x03\x04" + PNG, "a ZIP file"),
        (b"%PDF-1.7\n" + JPEG, "a PDF"),
        (b"#!/bin/sh\n" + JPEG, "something else"),
        (b"\x89PNG\r\n\x1a\n" + b"<svg onload=alert(1)>" + b"IEND\xaeB`\x82", "cannot be decoded"),
        (b"\xff\xd8\xff/*" + b"*/alert(1)", "cannot be decoded"),
        (b"RIFF\x24\0\0\0WEBP<script>alert(1)</script>", "cannot be decoded"),
        (b" " + JPEG, "something else"),
        (JPEG[1:], "something else"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "an SVG"),
        (encoded("TIFF", save_all=True, append_images=[Image.fromarray(PIXELS)] * 50), "a TIFF"),
        (encoded("GIF", save_all=True, append_images=[Image.fromarray(255 - PIXELS)]), "a GIF"),
        (encoded("ICO"), "an icon"),
        (encoded("PPM"), "something else"),
        (encoded("JPEG2000"), "a JPEG 2000"),
        (
            ftyp(b"heic", b"mif1", b"heic"),
            r"is a HEIC \(the format of iPhone photos\) by .*: save or convert it as a JPG",
        ),
        (ftyp(b"mif1", b"mif1"), "a HEIC"),  # the only brand that some programs write
        (ftyp(b"mif1", b"heic"), "a HEIC"),
        (ftyp(b"msf1", b"hevc"), "a HEIC"),
        (ftyp(b"hevx"), "a HEIC"),
        (ftyp(b"mif1", b"miaf", b"avif"), "an AVIF"),
        (ftyp(b"avis", b"msf1"), "an AVIF"),
        (ftyp(b"isom", b"mp41"), "a video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "something else"),
        (b"x", "something else"),
        (b"", "is empty"),
        (JPEG[:3] + b"<html>", "cannot be decoded"),
        (PNG[:8] + JPEG, "cannot be decoded"),
        (b"RIFF\xff\xff\xff\x7fWEBPVP8 ", "cannot be decoded"),
        (JPEG[: len(JPEG) // 2], "cannot be decoded"),
        (PNG.replace(b"IDAT", b"IDAT" + b"\0", 1), "cannot be decoded"),
        (animated("PNG"), "is animated"),
        (animated("WEBP"), "is animated"),
        (JPEG[:-2] + b"\xff\xda\0\0" * 101, "scans"),
        (png(8001, 8000, zlib.compress(b"\0" * 1000)), "64,008,000|8,001 x 8,000"),
        (png(65_535, 65_535, zlib.compress(b"\0" * 1000)), "65,535 x 65,535"),
        (png(2**31 - 1, 2**31 - 1, b""), "pixels"),
        (png(64_000_001, 1, b""), "64,000,001 x 1"),
        (webp(16_384, 16_384), "16,384 x 16,384|cannot be decoded"),
        (webp(2**24, 255), "pixels|cannot be decoded"),
        (jpeg(65_500, 65_500), "65,500 x 65,500"),
    ],
)
async def test_unusable_image_is_rejected_with_reason(
    web: Any, client: httpx.AsyncClient, body: bytes, reason: str
) -> None:
    with pytest.raises(ImageRefusedError, match=reason) as caught:
        await check_image(client, web.serve("/x.jpg", body) + "?sig=secret")
    assert not caught.value.retryable
    assert "/x.jpg" in str(caught.value)
    assert "secret" not in f"{caught.value} {vars(caught.value)}"


@pytest.mark.parametrize("brand", b"heic heix hevc hevx heim heis hevm hevs mif1 msf1 avci avcs miaf vvic unif".split())
def test_every_heic_brand_is_recognized(brand: bytes) -> None:
    with pytest.raises(ImageRefusedError, match="is a HEIC"):
        decode_image(ftyp(brand), URL)


@pytest.mark.parametrize("whole", [JPEG, PNG, WEBP, encoded("JPEG", progressive=True), encoded("WEBP", lossless=True)])
def test_image_truncated_anywhere_is_rejected(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(ImageRefusedError):
            decode_image(whole[:length], URL)


@given(st.sampled_from([JPEG, PNG, WEBP]), st.integers(0, 5000), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_damaged_image_is_decoded_or_rejected(whole: bytes, at: int, junk: bytes) -> None:
    at %= len(whole)
    try:
        decode_image(whole[:at] + junk + whole[at + len(junk) :], URL)
    except ImageRefusedError:
        return


def test_images_up_to_pixel_limit_are_decoded() -> None:
    rows = zlib.compress(bytes((1 + 3 * 100) * 100))
    assert decode_image(png(100, 100, rows), URL, max_pixels=10_000).width == 100
    with pytest.raises(ImageRefusedError, match="9,999"):
        decode_image(png(100, 100, rows), URL, max_pixels=9_999)


def test_decompression_bombs_are_rejected_using_little_memory() -> None:
    """Small files that declare gigabytes of pixels. Measured in a new process, whose memory nothing else has used."""
    bombs = [png(65_535, 65_535, zlib.compress(bytes(100_000))), webp(16_384, 16_384), webp(2**24, 255),
             jpeg(65_500, 65_500), png(8_001, 8_000, zlib.compress(bytes(64_000_000)))]  # fmt: skip
    code = """
import pickle, sys
from flows.media.images import decode_image
from flows.media.media_errors import ImageRefusedError
from tests.support.memory import forget_peak, peak_kib
bombs, before = pickle.load(sys.stdin.buffer), forget_peak()
for bomb in bombs:
    try:
        decode_image(bomb, "a bomb")
    except ImageRefusedError:
        print("refused")
print(peak_kib() - before)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(bombs), cwd=ROOT, capture_output=True, check=True
    )
    *refused, grown_kib = process.stdout.decode().split()
    assert refused == ["refused"] * len(bombs)
    assert int(grown_kib) < 50_000


def test_images_can_be_decoded_concurrently() -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {facts.format for facts in pool.map(lambda body: decode_image(body, URL), [JPEG, PNG, WEBP] * 20)} == {
            "JPEG",
            "PNG",
            "WEBP",
        }


@pytest.mark.parametrize("declares_length", [True, False])
async def test_ten_megabytes_are_allowed_and_a_byte_more_is_not(
    web: Any, client: httpx.AsyncClient, declares_length: bool
) -> None:
    def script(size: int) -> Callable[[asyncio.StreamWriter], Any]:
        async def write(writer: asyncio.StreamWriter) -> None:
            length = f"Content-Length: {size}\r\n" if declares_length else "Connection: close\r\n"
            writer.write(f"HTTP/1.1 200 OK\r\n{length}\r\n".encode() + JPEG + bytes(size - len(JPEG)))
            await writer.drain()

        return write

    assert MAX_IMAGE_BYTES == 10_000_000
    web.scripts = {"/fits": script(MAX_IMAGE_BYTES), "/over": script(MAX_IMAGE_BYTES + 1)}
    assert (await check_image(client, web.url("/fits"))).size_bytes == MAX_IMAGE_BYTES
    with pytest.raises(ImageRefusedError, match="larger than 10,000,000 bytes"):
        await check_image(client, web.url("/over"))


async def test_endless_body_is_abandoned_at_the_limit(web: Any, client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(bytes(65_536))
            await writer.drain()
            sent += 65_536

    web.scripts["/x"] = endless
    with pytest.raises(ImageRefusedError, match="larger"):
        await check_image(client, web.url("/x"), max_bytes=200_000)
    assert sent < 20_000_000  # what the kernel buffers, not all that the host would send


async def test_slow_body_times_out(web: Any, client: httpx.AsyncClient) -> None:
    gone = asyncio.Event()

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                writer.write(b"\xff")
                await writer.drain()
                await asyncio.sleep(0.005)
        finally:
            gone.set()

    web.scripts["/x"] = trickle
    with pytest.raises(DownloadError, match=r"longer than 0\.1 s") as caught:
        await check_image(client, web.url("/x"), total_seconds=0.1)
    assert caught.value.retryable
    await gone.wait()


@pytest.mark.parametrize(
    ("status", "error", "retryable"),
    [
        (400, ImageRefusedError, False),
        (401, ImageRefusedError, False),
        (403, ImageRefusedError, False),
        (404, ImageRefusedError, False),
        (304, ImageRefusedError, False),
        (408, DownloadError, True),
        (429, DownloadError, True),
        (500, DownloadError, True),
        (503, DownloadError, True),
    ],
)
async def test_error_status_is_reported(
    web: Any, client: httpx.AsyncClient, status: int, error: type[Exception], retryable: bool
) -> None:
    with pytest.raises(error, match=str(status)) as caught:
        await check_image(client, web.serve("/x.jpg", b"" if status == 304 else JPEG, status))
    assert getattr(caught.value, "retryable") is retryable  # noqa: B009 - an attribute of both classes


@pytest.mark.parametrize("status", [201, 203, 206, 218, 226])
async def test_image_is_accepted_with_any_success_status(web: Any, client: httpx.AsyncClient, status: int) -> None:
    assert (await check_image(client, web.serve("/x.jpg", JPEG, status))).format == "JPEG"
    with pytest.raises(ImageRefusedError, match=r"cut|damaged"):
        await check_image(client, web.serve("/half.jpg", JPEG[: len(JPEG) // 2], status))


@pytest.mark.parametrize("status", [401, 403, 406])
async def test_error_for_denied_access_says_what_host_may_require(
    web: Any, client: httpx.AsyncClient, status: int
) -> None:
    with pytest.raises(ImageRefusedError, match="SORA_CONTACT") as caught:
        await check_image(client, web.serve("/x.jpg", b"Forbidden", status))
    assert client.headers["user-agent"] in str(caught.value)
    assert "private window" in str(caught.value)


async def test_sharing_link_is_rejected_before_any_request(client: httpx.AsyncClient) -> None:
    with pytest.raises(
        ImageRefusedError, match=r"give https://drive\.google\.com/uc\?export=download&id=1Ab"
    ) as caught:
        await check_image(client, "https://drive.google.com/file/d/1Ab/view?usp=sharing&resourcekey=secret")
    assert "secret" not in f"{caught.value} {vars(caught.value)}"


@pytest.mark.parametrize(
    ("encoding", "body", "is_valid"),
    [
        ("gzip", gzip.compress(JPEG, mtime=0), True),
        ("aws-chunked,gzip", gzip.compress(JPEG, mtime=0), True),
        ("gzip", JPEG, True),  # labeled as gzip, but not compressed
        ("aws-chunked", JPEG, True),
        ("base64", JPEG, True),
        ("utf-8", JPEG, True),
        ("", JPEG, True),
        ("br", JPEG, True),
        ("gzip", b"\x1f\x8b\x08" + JPEG, False),
        ("gzip", gzip.compress(bytes(20_000_000), 1, mtime=0), False),
    ],
)
async def test_content_encoding_header_of_image_is_ignored(
    web: Any, client: httpx.AsyncClient, encoding: str, body: bytes, is_valid: bool
) -> None:
    async def respond(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    web.scripts["/x.jpg"] = respond
    if is_valid:
        assert (await check_image(client, web.url("/x.jpg"))).width == 32
    else:
        with pytest.raises(ImageRefusedError):
            await check_image(client, web.url("/x.jpg"))


@pytest.mark.parametrize("image", [JPEG, PNG, WEBP])
async def test_size_limit_applies_to_decompressed_image(web: Any, client: httpx.AsyncClient, image: bytes) -> None:
    body = gzip.compress(image + bytes(5_000), mtime=0)  # such as a depth map appended to the image
    limit = len(image) + 4_999
    assert len(body) < limit

    async def respond(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    web.scripts["/x.jpg"] = respond
    with pytest.raises(ImageRefusedError, match="is larger than"):
        await check_image(client, web.url("/x.jpg"), max_bytes=limit)
    assert (await check_image(client, web.url("/x.jpg"), max_bytes=limit + 1)).size_bytes == limit + 1


async def test_incomplete_download_of_image_raises_download_error(web: Any, client: httpx.AsyncClient) -> None:
    async def cut(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + JPEG[:100])

    web.scripts["/x"] = cut
    with pytest.raises(DownloadError):
        await check_image(client, web.url("/x"))


async def test_forbidden_image_url_raises_error(client: httpx.AsyncClient, tmp_path: Path) -> None:
    for url in (tmp_path.as_uri(), "http://169.254.169.254/x.jpg", "https://a.example/" + "x" * 2000):
        with pytest.raises(ForbiddenUrlError):
            await check_image(client, url)
