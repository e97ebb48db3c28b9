"""The boxes of an MP4: whether the file is all there, and whether it says how it was made. Only heads are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

C2PA_UUID: Final = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
"""C2PA 2.1, A.5: the `uuid` box with this type holds the manifest that says how a video was made."""

# The index, the pictures and sound, and a fragment's index. Bytes of other kinds behind them harm nobody.
_VITAL: Final = frozenset({b"moov", b"mdat", b"moof"})
_MAX_BOXES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Boxes:
    """What the top-level boxes of a file tell. An MP4 is a row of boxes, each with its length in front.

    Attributes:
        brand: What the file calls itself first, like ``isom``, or ``qt`` with two blanks.
        has_index: It is an MP4 whose one index lists every piece of it; a fragmented one has an index per fragment.
        least_bytes: How large the file has to be for what is vital in it.
        has_c2pa: Whether it holds a C2PA manifest.
    """

    brand: bytes = b""
    has_index: bool = False
    least_bytes: int = 0
    has_c2pa: bool = False


def read_boxes(path: Path) -> Boxes:
    """Reads the head of each top-level box, some hundred bytes in all. Blocks. Another kind of file has no boxes."""
    kinds: set[bytes] = set()
    least_bytes, has_c2pa, brand = 0, False, b""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
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
                break  # up to the end of the file
            if kind in _VITAL:
                least_bytes = max(least_bytes, at + length)
            at += max(length, 8)
    return Boxes(brand, b"moov" in kinds and b"moof" not in kinds, least_bytes, has_c2pa)
