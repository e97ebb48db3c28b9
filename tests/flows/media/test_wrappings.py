"""Files as stores, proxies and gateways leave them: compressed, framed, as text, in a ZIP, or only labeled so."""

import base64
import gzip
import io
import json
import random
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.media.wrappings import is_error_page, unwrap

VIDEO = b"\0\0\0\x18ftypmp42" + random.Random(1).randbytes(300_000)
SIGNATURE = b";chunk-signature=" + b"0a" * 32


def framed(
    data: bytes, *, size: int = 65_536, extension: bytes = b"", trailer: bytes = b"", end: bytes = b"\r\n"
) -> bytes:
    """The body of an S3 upload in chunks."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    body = b"".join(b"%x" % len(piece) + extension + end + piece + end for piece in pieces)
    return body + b"0" + extension + end + trailer + end


def zipped(*contents: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for number, content in enumerate(contents):
            archive.writestr(f"folder/{number}.mp4", content)
    return out.getvalue()


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


def multipart(video: bytes, *, field: bytes = b"", end: bytes = b"\r\n") -> bytes:
    """The body of a form with a video, after a field with this value if one is given."""
    fields = [b'Content-Disposition: form-data; name="status"' + end + end + field] if field else []
    fields.append(b'Content-Disposition: form-data; name="file"' + end + b"Content-Type: video/mp4" + end + end + video)
    return b"".join(b"--f0rm=_b" + end + part + end for part in fields) + b"--f0rm=_b--" + end


BASE64 = base64.b64encode(VIDEO)

WRAPPED = [
    (VIDEO, ()),
    (gzip.compress(VIDEO[:2_000], mtime=0) + gzip.compress(VIDEO[2_000:], mtime=0), ("gzip",)),
    (gzip.compress(VIDEO, mtime=0) + bytes(512), ("gzip",)),
    (zlib.compress(VIDEO), ("zlib",)),
    (raw_deflate(VIDEO), ("deflate",)),
    (zipped(VIDEO), ("a ZIP",)),
    (zipped(b"Read me.", VIDEO, bytes(100), method=zipfile.ZIP_STORED), ("a ZIP",)),
    (b"\xef\xbb\xbf" + VIDEO, ("a byte order mark or blank lines",)),
    (b"\r\n\r\n" + VIDEO, ("a byte order mark or blank lines",)),
    (BASE64, ("base64",)),
    (BASE64.rstrip(b"="), ("base64",)),
    (b"\xef\xbb\xbf\n" + base64.encodebytes(VIDEO).replace(b"\n", b"\r\n"), ("base64",)),
    (base64.urlsafe_b64encode(VIDEO), ("base64",)),
    (b"data:video/mp4;base64," + BASE64, ("base64",)),
    (b'"' + BASE64 + b'"', ("base64",)),
    (json.dumps({"statusCode": 200, "isBase64Encoded": True, "body": BASE64.decode()}).encode(), ("base64",)),
    (
        b'{"body":"data:video\\/mp4;base64,' + BASE64.replace(b"/", b"\\/").replace(b"+", b"\\u002b") + b'"}',
        ("base64",),
    ),
    (b'{"body":"' + base64.encodebytes(VIDEO).replace(b"\n", b"\\r\\n") + b'"}', ("base64",)),
    (base64.b64encode(gzip.compress(VIDEO, mtime=0)), ("base64", "gzip")),
    (gzip.compress(VIDEO, mtime=0), ("gzip",)),
    (multipart(VIDEO), ("a multipart body",)),
    (multipart(VIDEO, field=b"OK"), ("a multipart body",)),
    (multipart(VIDEO, end=b"\n"), ("a multipart body",)),
    (gzip.compress(multipart(VIDEO), mtime=0), ("gzip", "a multipart body")),
    (framed(VIDEO), ("aws-chunked",)),
    (framed(VIDEO, extension=SIGNATURE), ("aws-chunked",)),
    (framed(VIDEO, size=10**9, trailer=b"x-amz-checksum-crc64nvme:bh/Fr0C6NuQ=\r\n"), ("aws-chunked",)),
    (framed(VIDEO, end=b"\n"), ("aws-chunked",)),
    (framed(gzip.compress(VIDEO, mtime=0)), ("aws-chunked", "gzip")),
    (gzip.compress(framed(VIDEO), mtime=0), ("gzip", "aws-chunked")),
]


@pytest.mark.parametrize(("content", "removed"), WRAPPED, ids=range(len(WRAPPED)))
def test_wrappings_around_file_are_removed(tmp_path: Path, content: bytes, removed: tuple[str, ...]) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    inner = unwrap(path, max_bytes=len(content) + len(VIDEO))
    assert inner.removed == removed
    assert inner.path.read_bytes() == VIDEO
    assert path.read_bytes() == content  # unchanged until it is known that the inner file plays
    inner.replace(path)
    assert path.read_bytes() == VIDEO
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("more", range(-12, 3))
def test_multipart_boundary_may_span_two_reads(tmp_path: Path, more: int) -> None:
    video = VIDEO + bytes(2 * 1_048_576 + more - len(VIDEO))
    path = tmp_path / "video.mp4"
    path.write_bytes(multipart(video))
    assert unwrap(path, max_bytes=2 * len(video)).path.read_bytes() == video
    path.write_bytes(multipart(video)[:-20])  # truncated before its end
    assert unwrap(path, max_bytes=2 * len(video)).removed == ()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # As found in real buckets: see docs/field-reports.md.
        (b"7\r\nhello!\n\r\n0\r\nx-amz-checksum-crc64nvme:bh/Fr0C6NuQ=\r\n\r\n", b"hello!\n"),
        (
            b"44;chunk-signature=" + b"2f" * 32 + b"\r\n" + b"Now is the time" + b"." * 53 + b"\r\n"
            b"0;chunk-signature=" + b"b9" * 32 + b"\r\n\r\n",
            b"Now is the time" + b"." * 53,
        ),
    ],
)
def test_upload_framing_from_bug_reports_is_removed(tmp_path: Path, content: bytes, expected: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    inner = unwrap(path, max_bytes=1_000)
    assert inner.removed == ("aws-chunked",)
    assert inner.path.read_bytes() == expected
    inner.discard()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"5\r\nhel",
        b"5\r\nhello\r\n",
        b"5\r\nhello 0\r\n\r\n",
        b"ffffffff\r\nhello\r\n0\r\n\r\n",
        b"404 Not Found\r\n",
        b"<html>",
        b"\x1f\x8b\x08" + bytes(1000),
        gzip.compress(VIDEO, mtime=0)[:-9],
        framed(VIDEO)[:-200],
        gzip.compress(bytes(2_000_000), 1, mtime=0),  # larger than allowed
        zlib.compress(VIDEO[:16] + bytes(2_000_000), 1),
        gzip.compress(VIDEO, mtime=0) + gzip.compress(VIDEO, mtime=0)[:-9],
        zlib.compress(VIDEO)[:-1],
        raw_deflate(VIDEO)[:-1],
        zipped(VIDEO, VIDEO),  # ambiguous: two videos
        zipped(b"Read me."),
        zipped(*[VIDEO[:100]] * 101),
        zipped(VIDEO)[:-30],
        zipped(VIDEO).replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),  # declares that it is encrypted
        BASE64[:900] + b"!" + BASE64[900:],
        base64.b64encode(random.Random(2).randbytes(3_000)),
        b'{"token": "' + base64.b64encode(random.Random(2).randbytes(300)) + b'"}',
        b"\r\n<html>",
    ],
)
def test_file_that_cannot_be_fully_unwrapped_is_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert unwrap(path, max_bytes=1_000_000).removed == ()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "is_page"),
    [
        (b"", True),
        (b"Not found\r\n" * 1000, True),
        (b'\xef\xbb\xbf <!doctype html><img src="data:image/png;base64,' + BASE64 + b'">', True),
        (b"#EXTM3U\nhttps://a.example/v.ts?token=" + b"A" * 4000, True),
        (b'{"error": "expired", "token": "' + b"A" * 500 + b'"}', True),
        (BASE64[1:5000], False),
        (b"The video:\r\n" + base64.encodebytes(VIDEO[1:]), False),
        (
            b'{"message": "here it is", "video": "' + base64.encodebytes(VIDEO[10:]).replace(b"\n", b"\\n") + b'"}',
            False,
        ),
        (b"Here it is:\0" + VIDEO, False),
    ],
)
def test_only_text_without_video_is_an_error_page(tmp_path: Path, content: bytes, is_page: bool) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert is_error_page(path) == is_page


@given(st.binary(max_size=200) | st.binary(max_size=50).map(lambda data: b"5" + data) | st.binary().map(framed))
@settings(deadline=None)
def test_any_bytes_are_unwrapped_or_left_unchanged(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "video.mp4"
    path.write_bytes(content)
    assert bool(unwrap(path, max_bytes=1_000_000).removed) == (len(list(path.parent.iterdir())) == 2)
    assert path.read_bytes() == content
