"""What stores and proxies wrap around a file and forget to take off: compression, and the framing of S3 uploads.

What a host calls its answer (`Content-Encoding`) decides nothing; the first bytes do. Everything here blocks.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

_PIECE_BYTES: Final = 1_048_576
_MAX_LAYERS: Final = 3
_CHUNK_HEAD: Final = re.compile(rb"([0-9a-fA-F]{1,8})(;[!-~]*)?\r?\n")
_MAX_HEAD_BYTES: Final = 256


class _NotWrappedError(Exception):
    """The file is not, or not wholly, what its first bytes promise."""


def unwrap(path: Path, *, max_bytes: int) -> tuple[str, ...]:
    """Takes off what is wrapped around a file, in place. A file that cannot be unwrapped wholly stays what it is.

    Args:
        path: the file.
        max_bytes: a file that becomes larger stays wrapped.

    Returns:
        What was taken off, the outermost first.

    Raises:
        OSError: the disk.
    """
    removed: list[str] = []
    inner = path.with_name(f"{path.name}.unwrapped")
    try:
        while len(removed) < _MAX_LAYERS and (wrapping := _wrapping(path)) is not None:
            name, unwrapped = wrapping
            with path.open("rb") as file, inner.open("wb") as out:
                left = max_bytes
                for piece in unwrapped(file):
                    left -= len(piece)
                    if left < 0:
                        raise _NotWrappedError
                    out.write(piece)
            inner.replace(path)
            removed.append(name)
    except (_NotWrappedError, zlib.error):
        inner.unlink(missing_ok=True)
    return tuple(removed)


def _wrapping(path: Path) -> tuple[str, Callable[[BinaryIO], Iterator[bytes]]] | None:
    with path.open("rb") as file:
        head = file.read(_MAX_HEAD_BYTES)
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip", _gunzipped
    if _CHUNK_HEAD.match(head):
        return "aws-chunked", _dechunked
    return None


def _gunzipped(file: BinaryIO) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    while data := file.read(_PIECE_BYTES):
        while data and not unpacker.eof:
            yield unpacker.decompress(data, _PIECE_BYTES)
            data = unpacker.unconsumed_tail
    if not unpacker.eof:
        raise _NotWrappedError


def _dechunked(file: BinaryIO) -> Iterator[bytes]:
    """`<size in hex>[;chunk-signature=…]`, the bytes, again and again; a size of 0 ends it, and trailers follow."""
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
