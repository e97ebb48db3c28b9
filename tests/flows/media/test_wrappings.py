"""Files as stores and proxies leave them: compressed, framed for an upload, both, or only called so."""

import gzip
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.media.wrappings import unwrap

VIDEO = b"\0\0\0\x18ftypmp42" + random.Random(1).randbytes(300_000)
SIGNATURE = b";chunk-signature=" + b"0a" * 32


def framed(
    data: bytes, *, size: int = 65_536, extension: bytes = b"", trailer: bytes = b"", end: bytes = b"\r\n"
) -> bytes:
    """The body of an S3 upload in chunks."""
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    body = b"".join(b"%x" % len(piece) + extension + end + piece + end for piece in pieces)
    return body + b"0" + extension + end + trailer + end


WRAPPED = [
    (VIDEO, ()),
    (gzip.compress(VIDEO, mtime=0), ("gzip",)),
    (framed(VIDEO), ("aws-chunked",)),
    (framed(VIDEO, extension=SIGNATURE), ("aws-chunked",)),
    (framed(VIDEO, size=10**9, trailer=b"x-amz-checksum-crc64nvme:bh/Fr0C6NuQ=\r\n"), ("aws-chunked",)),
    (framed(VIDEO, end=b"\n"), ("aws-chunked",)),
    (framed(gzip.compress(VIDEO, mtime=0)), ("aws-chunked", "gzip")),
    (gzip.compress(framed(VIDEO), mtime=0), ("gzip", "aws-chunked")),
]


@pytest.mark.parametrize(("content", "removed"), WRAPPED, ids=range(len(WRAPPED)))
def test_what_is_wrapped_around_a_file_is_taken_off(tmp_path: Path, content: bytes, removed: tuple[str, ...]) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert unwrap(path, max_bytes=len(content) + len(VIDEO)) == removed
    assert path.read_bytes() == VIDEO
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "inside"),
    [
        # As people found them in their buckets: see docs/field-reports.md.
        (b"7\r\nhello!\n\r\n0\r\nx-amz-checksum-crc64nvme:bh/Fr0C6NuQ=\r\n\r\n", b"hello!\n"),
        (
            b"44;chunk-signature=" + b"2f" * 32 + b"\r\n" + b"Now is the time" + b"." * 53 + b"\r\n"
            b"0;chunk-signature=" + b"b9" * 32 + b"\r\n\r\n",
            b"Now is the time" + b"." * 53,
        ),
    ],
)
def test_what_was_found_in_buckets_is_taken_out_of_its_framing(tmp_path: Path, content: bytes, inside: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert unwrap(path, max_bytes=1_000) == ("aws-chunked",)
    assert path.read_bytes() == inside


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
        gzip.compress(bytes(50_000_000), mtime=0),  # larger than allowed
    ],
)
def test_what_cannot_be_unwrapped_wholly_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    assert unwrap(path, max_bytes=1_000_000) == ()
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@given(st.binary(max_size=200) | st.binary(max_size=50).map(lambda data: b"5" + data) | st.binary().map(framed))
@settings(deadline=None)
def test_any_bytes_are_unwrapped_or_left_alone(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "video.mp4"
    path.write_bytes(content)
    if not unwrap(path, max_bytes=1_000_000):
        assert path.read_bytes() == content
