"""Reads the boxes of an MP4: is the file complete, and does it say how it was made? Only box headers are read."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

C2PA_UUID: Final = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
"""C2PA 2.1, A.5: the `uuid` box of this type contains the manifest that says how a video was made."""

# The index, the pictures and sound, and a fragment's index. Other boxes after them may be cut.
_VITAL: Final = frozenset({b"moov", b"mdat", b"moof"})
_MAX_BOXES: Final = 10_000

# Matroska's header contains its `DocType`: the EBML id, the length, the name.
_WEBM: Final = re.compile(rb"\x1a\x45\xdf\xa3.{0,80}\x42\x82(?:\x84|.{0,7}\x04)webm", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Boxes:
    """What the top-level boxes of a file show. An MP4 is a sequence of boxes, each beginning with its length.

    Attributes:
        brand: The file's main brand: ``isom``, ``qt`` with two spaces, …; ``webm`` for a WebM Matroska file.
        has_index: Whether it is an MP4 with a single, complete index of every packet. A fragmented one has several.
        least_bytes: The minimum size of a file with these vital boxes.
        has_c2pa: Whether it has a C2PA manifest.
    """

    brand: bytes = b""
    has_index: bool = False
    least_bytes: int = 0
    has_c2pa: bool = False


def read_boxes(path: Path) -> Boxes:
    """Reads the header of each top-level box, a few hundred bytes in all. Blocks. Other files have no boxes."""
    kinds: set[bytes] = set()
    least_bytes, has_c2pa, has_whole_index, brand = 0, False, False, b""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        if _WEBM.match(file.read(128)):
            return Boxes(b"webm")
        at = 0
        for _ in range(_MAX_BOXES):
            if at + 8 > size_bytes:
                break
            file.seek(at)
            head = file.read(32)
            kind, length, body = head[4:8], int.from_bytes(head[:4], "big"), head[8:]
            if at == 0 and kind != b"ftyp":
                return Boxes()
            brand = brand or body[:4]
            if length == 1:
                length, body = int.from_bytes(head[8:16], "big"), head[16:]
            kinds.add(kind)
            has_c2pa |= kind == b"jumb" or (kind == b"uuid" and body.startswith(C2PA_UUID))
            if length == 0:
                has_whole_index |= kind == b"moov"
                break  # the box extends to the end of the file
            has_whole_index |= kind == b"moov" and at + length <= size_bytes
            if kind in _VITAL:
                least_bytes = max(least_bytes, at + length)
            at += max(length, 8)
    return Boxes(brand, has_whole_index and b"moof" not in kinds, least_bytes, has_c2pa)
