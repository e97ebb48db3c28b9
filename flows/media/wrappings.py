"""Unwraps what stores, proxies and gateways put around a file: compression, framing, base64, a ZIP.

A wrapping is detected by the file's first bytes, not by the host's `Content-Encoding`. Everything here blocks.
"""

import binascii
import re
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

_PIECE_BYTES: Final = 1_048_576
_MAX_LAYERS: Final = 3
# The head of a part in a multipart body: the boundary, headers, an empty line.
_PART_HEAD: Final = re.compile(rb"--([!-~]{1,70})\r?\n(?:[!-9;-~]+:[^\r\n]*\r?\n)+\r?\n")
_CHUNK_HEAD: Final = re.compile(rb"([0-9a-fA-F]{1,8})(;[!-~]*)?\r?\n")
_MAX_HEAD_BYTES: Final = 256
_LOOK_BYTES: Final = 4096

_GZIP: Final = b"\x1f\x8b\x08"
_ZIP: Final = b"PK\x03\x04"

# How video files begin. Used only to confirm guesses, such as base64: any file that plays is archived.
_VIDEO_START: Final = re.compile(
    rb"....(?:ftyp|moov|mdat|moof|styp|wide|free|skip|pnot)|\x1a\x45\xdf\xa3|RIFF....AVI |OggS|FLV\x01"
    rb"|\x00\x00\x01[\xb3\xba]|\x47.{187}\x47|.{4}\x47.{191}\x47|GIF8|\x89PNG|\x30\x26\xb2\x75|\x06\x0e\x2b\x34|DKIF",
    re.DOTALL,
)
_BEFORE_VIDEO: Final = re.compile(rb"(?:\xef\xbb\xbf|[\r\n\t ])+")

# Base64 at the beginning of the file, or in quotes, as in JSON.
_BASE64_START: Final = re.compile(
    rb"(?:\A(?:\xef\xbb\xbf)?|[\"'])\s*(?:data:[^\"',]{0,200},)?(?=[A-Za-z0-9+/_\\-]{16})", re.IGNORECASE
)
# On one line, or in lines as in MIME. Backslashes are JSON escapes, such as of line ends.
_LONG_BASE64: Final = re.compile(rb"[A-Za-z0-9+/_\\-]{1024}|(?:[A-Za-z0-9+/_\\-]{60,}+\s++){12}")
_JSON_ESCAPE: Final = re.compile(rb"\\(?:u00([0-9a-fA-F]{2})|(/)|[nrt])")
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_MARKUP_OR_PLAYLIST: Final = (b"<", b"#EXTM3U")

_MAX_ZIP_ENTRIES: Final = 100


class _NotWrappedError(Exception):
    """The file is not, or not completely, what its first bytes indicate."""


# Errors in this case: base64 and names in a ZIP raise ValueErrors, unusual ZIPs raise RuntimeErrors.
_NOT_WRAPPED: Final = (_NotWrappedError, zlib.error, zipfile.BadZipFile, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True, slots=True)
class Unwrapped:
    """What is inside a file.

    Attributes:
        path: The inner file, next to the outer one; the file itself, if nothing is around it.
        removed: The removed wrappings, the outermost first.
    """

    path: Path
    removed: tuple[str, ...] = ()

    def discard(self) -> None:
        """Removes the inner file; the outer one stays."""
        if self.removed:
            self.path.unlink(missing_ok=True)

    def replace(self, path: Path) -> None:
        """Replaces another file with the inner file, if there is one."""
        if self.removed:
            self.path.replace(path)


def unwrap(path: Path, *, max_bytes: int) -> Unwrapped:
    """Writes what is inside a file to another file next to it. The file stays: only a video that plays may replace it.

    A wrapping that cannot be removed completely is not removed.

    Args:
        max_bytes: a larger inner file is not unpacked.

    Raises:
        OSError: a file cannot be read or written.
    """
    inner = Unwrapped(path)
    while len(inner.removed) < _MAX_LAYERS and (wrapping := _wrapping(inner.path)) is not None:
        name, unwrapped = wrapping
        target = path.with_name(f"{path.name}.unwrapped-{len(inner.removed) + 1}")
        try:
            _write(inner.path, unwrapped, target, max_bytes)
        except _NOT_WRAPPED:
            target.unlink(missing_ok=True)
            break
        if inner.removed:
            inner.path.unlink()
        inner = Unwrapped(target, (*inner.removed, name))
    return inner


def is_error_page(path: Path) -> bool:
    """Whether a file is obviously not a video: text, such as a page, a message or a playlist.

    Text that contains a lot of base64 may be a video, unless it is a page: pages embed pictures that way.
    """
    with path.open("rb") as file:
        head = file.read(16 * _LOOK_BYTES)
    if any(byte < 0x20 and byte not in b"\t\n\r\f" for byte in head[:1024]):
        return False
    begins_as_page = head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_MARKUP_OR_PLAYLIST)
    return begins_as_page or _LONG_BASE64.search(head) is None


_Unwrap = Callable[[BinaryIO], Iterator[bytes]]


def _write(path: Path, unwrapped: _Unwrap, target: Path, max_bytes: int) -> None:
    left = max_bytes
    with path.open("rb") as file, target.open("wb") as out:
        for piece in unwrapped(file):
            left -= len(piece)
            if left < 0:
                raise _NotWrappedError
            out.write(piece)


def _wrapping(path: Path) -> tuple[str, _Unwrap] | None:
    with path.open("rb") as file:
        return next(_guesses(file.read(_LOOK_BYTES)), None)


def _guesses(head: bytes) -> Iterator[tuple[str, _Unwrap]]:
    if _VIDEO_START.match(head):
        return
    if head.startswith(_GZIP):
        yield "gzip", _gunzipped
    if _CHUNK_HEAD.match(head[:_MAX_HEAD_BYTES]):
        yield "aws-chunked", _dechunked
    if head.startswith(_ZIP):
        yield "a ZIP", _unzipped
    for part in _PART_HEAD.finditer(head) if head.lstrip().startswith(b"--") else ():
        if _VIDEO_START.match(head, part.end()):
            yield "a multipart body", partial(_parted, at=part.end(), boundary=part[1])
    if (before := _BEFORE_VIDEO.match(head)) and _VIDEO_START.match(head, before.end()):
        yield "a byte order mark or blank lines", partial(_from, at=before.end())
    for name, wbits in (("zlib", 15), ("deflate", -15)):
        if _holds_video(_inflated_start(head, wbits)):
            yield name, partial(_inflated, wbits=wbits)
    for start in _BASE64_START.finditer(head):
        if _holds_video(_decoded_start(head[start.end() :])):
            yield "base64", partial(_decoded, at=start.end())


def _holds_video(start: bytes) -> bool:
    return bool(_VIDEO_START.match(start)) or start.startswith((_GZIP, _ZIP))


def _from(file: BinaryIO, at: int) -> Iterator[bytes]:
    file.seek(at)
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    """Every member, as in `cat a.gz b.gz`. Bytes after the last one are padding."""
    at = 0
    while True:
        file.seek(at)
        if at and file.read(len(_GZIP)) != _GZIP:
            return
        file.seek(at)
        at += yield from _inflated(file, 31)


def _inflated(file: BinaryIO, wbits: int) -> Generator[bytes, None, int]:
    """One zlib stream, from the file's position; returns how many bytes it occupies there."""
    unpacker = zlib.decompressobj(wbits)
    taken = 0
    while not unpacker.eof and (data := file.read(_PIECE_BYTES)):
        taken += len(data)
        while data and not unpacker.eof:
            yield unpacker.decompress(data, _PIECE_BYTES)
            data = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise _NotWrappedError
    return taken - len(unpacker.unused_data)


def _inflated_start(head: bytes, wbits: int) -> bytes:
    try:
        return zlib.decompressobj(wbits).decompress(head, _MAX_HEAD_BYTES)
    except zlib.error:
        return b""


def _dechunked(file: BinaryIO) -> Iterator[bytes]:
    """`<size in hex>[;chunk-signature=…]`, the bytes, repeatedly; a size of 0 ends it, and trailers follow."""
    while head := _CHUNK_HEAD.fullmatch(file.readline(_MAX_HEAD_BYTES)):
        left = int(head[1], 16)
        if left == 0:
            return
        while left:
            piece = file.read(min(left, _PIECE_BYTES))
            if not piece:
                raise _NotWrappedError
            left -= len(piece)
            yield piece
        if file.readline(2) not in (b"\r\n", b"\n"):
            raise _NotWrappedError
    raise _NotWrappedError


def _parted(file: BinaryIO, at: int, boundary: bytes) -> Iterator[bytes]:
    """A part of a multipart body, up to the boundary that ends it."""
    file.seek(at)
    end = b"\n--" + boundary
    held = b""
    while data := file.read(_PIECE_BYTES):
        inside, found, _ = (held + data).partition(end)
        if found:
            yield inside.removesuffix(b"\r")
            return
        held = inside[-len(end) :]  # the boundary and the line end before it may continue in the next piece
        yield inside[: -len(end)]
    raise _NotWrappedError


def _unzipped(file: BinaryIO) -> Iterator[bytes]:
    """The video in a ZIP. With several, it would be unclear which one was requested."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        videos = [
            entry
            for entry in entries[:_MAX_ZIP_ENTRIES]
            # Encrypted entries cannot be read, and other compressions need libraries that may be missing.
            if not entry.flag_bits & 1 and entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if _starts_as_video(archive, entry)
        ]
        if len(videos) != 1 or len(entries) > _MAX_ZIP_ENTRIES:
            raise _NotWrappedError
        with archive.open(videos[0]) as inner:
            while piece := inner.read(_PIECE_BYTES):
                yield piece


def _starts_as_video(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    with archive.open(entry) as inner:
        return bool(_VIDEO_START.match(inner.read(_MAX_HEAD_BYTES)))


def _decoded(file: BinaryIO, at: int) -> Iterator[bytes]:
    """Base64 from this position to a quote, or to the end of the file."""
    file.seek(at)
    text = letters = b""
    is_end = False
    while not is_end:
        data = file.read(_PIECE_BYTES)
        text, *behind = re.split(rb"[\"']", text + data, maxsplit=1)
        is_end = bool(behind) or not data
        escape = -1 if is_end else text.rfind(b"\\", -len(rb"\u00"))  # it may continue in the next piece
        end = len(text) if escape < 0 else escape
        letters += _letters(text[:end])
        text = text[end:]
        whole = len(letters) - len(letters) % 4
        yield binascii.a2b_base64(letters[:whole], strict_mode=True)
        letters = letters[whole:]
    yield binascii.a2b_base64(letters + b"=" * (-len(letters) % 4), strict_mode=True)


def _decoded_start(text: bytes) -> bytes:
    letters = _letters(re.split(rb"[\"']", text, maxsplit=1)[0])[: 2 * _MAX_HEAD_BYTES]
    try:
        return binascii.a2b_base64(letters[: len(letters) - len(letters) % 4])
    except binascii.Error:
        return b""


def _letters(text: bytes) -> bytes:
    """The base64 on one line, in the standard alphabet, without JSON escapes such as `\\/`, `\\n` and `\\u002b`."""
    if b"\\" in text:
        text = _JSON_ESCAPE.sub(
            lambda escape: bytes.fromhex(escape[1].decode()) if escape[1] else escape[2] or b"", text
        )
    return re.sub(rb"\s+", b"", text).translate(_URL_SAFE)
