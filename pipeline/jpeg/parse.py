"""A JPEG file's markers: a header that the kernels can use, or the reason why Pillow has to decode the file.

What is taken is what cameras and encoders write: sequential Huffman coding, 8 bits, one component or YCbCr in one
interleaved scan, chroma not reduced or by 2 or 4. The walk is strict: whatever the standard does not ask for, and
whatever Pillow or libjpeg would look at twice, is refused here. Refused is not broken: Pillow decides that.

Huffman tables are passed on as they stand in the file, and checked where they are used: on the GPU.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Headers: TypeAlias = npt.NDArray[np.void]
"""Records of HEADER."""

HEADER = np.dtype(
    [
        ("scan_begin", "<u4"),  # in the file, of the entropy-coded bytes
        ("scan_bytes", "<u4"),  # to the end marker, without it
        ("width", "<u2"),
        ("height", "<u2"),
        ("restart", "<u2"),  # MCUs between restart markers; 0: there are none
        ("components", "u1"),  # 1 or 3
        ("h", "u1"),  # sampling factors of luma; those of chroma are 1
        ("v", "u1"),
        ("dc_table", "u1", 3),  # by component: 0 or 1
        ("ac_table", "u1", 3),  # by component: 2 or 3
        ("pad", "u1"),
        ("counts", "u1", (4, 16)),  # Huffman codes of each length, of two DC tables and two AC tables
        ("symbols", "u1", (4, 256)),
        ("quantization", "<u2", (3, 64)),  # by component, zigzag
    ]
)

MOST_SCAN_BYTES = 2**26 - 4096
"""A position in the scan and a place in the MCU share 32 bits."""

MOST_PIXELS_A_SIDE = 65500
"""libjpeg's limit."""

_X_RESOLUTION, _RATIONAL = 0x011A, 5

_FIELDS: Mapping[str, Any] = HEADER.fields or {}
_COUNTS, _SYMBOLS, _QUANTIZATION = (_FIELDS[name][1] for name in ("counts", "symbols", "quantization"))
_FIXED = struct.Struct(
    "<" + "".join(f"{prod(kind.shape)}{kind.base.char}" for kind, at in _FIELDS.values() if at < _FIELDS["pad"][1])
)
"""What comes before `pad`; NumPy and struct call these types alike."""

_SAMPLINGS = frozenset({(1, 1), (2, 1), (2, 2), (1, 2), (4, 1)})
_FRAMES = {
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    0xC9: "arithmetic coding",
    0xCA: "arithmetic coding",
    0xCB: "arithmetic coding",
    0xCC: "arithmetic coding",
    0xCD: "arithmetic coding",
    0xCE: "arithmetic coding",
    0xCF: "arithmetic coding",
}


class Refused(Exception):
    """Pillow has to decode this file. Its text is the reason, one of a small set."""


def parse(data: bytes | memoryview) -> bytes:
    """A file's header, one record of HEADER. Raises Refused with the reason, and nothing else, whatever the bytes are.

    Looks at the markers before the scan and at the last two bytes; time is bounded by the number of markers.
    """
    try:
        return _parse(data)
    except (IndexError, struct.error):
        raise Refused("header cut short") from None


def _parse(data: bytes | memoryview) -> bytes:
    size = len(data)
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        raise Refused("not a JPEG file")
    if data[size - 2] != 0xFF or data[size - 1] != 0xD9:
        raise Refused("no end marker at the end of the file")
    walk = _Walk()
    at = 2
    while True:
        if data[at] != 0xFF:
            raise Refused("bytes between segments")
        marker = data[at + 1]
        if marker == 0xFF:
            raise Refused("unusual marker")
        length = data[at + 2] << 8 | data[at + 3]
        end = at + 2 + length
        if length < 2 or end > size - 2:
            raise Refused("header cut short")
        segment = bytes(data[at + 4 : end])
        if marker == 0xDA:
            return walk.scan(segment, end, size - 2 - end)
        walk.take(marker, segment)
        at = end


class _Walk:
    """What the segments before the scan have said so far."""

    def __init__(self) -> None:
        self.quantization: dict[int, bytes] = {}
        self.huffman: dict[int, tuple[bytes, bytes]] = {}
        self.frame = b""
        self.restart = 0
        self.exif = False
        self.converted = False  # by Adobe's transform, to something else than YCbCr

    def take(self, marker: int, segment: bytes) -> None:
        if marker == 0xDB:
            self._quantization(segment)
        elif marker == 0xC4:
            self._huffman(segment)
        elif marker in (0xC0, 0xC1):
            self._frame(segment)
        elif marker == 0xDD:
            if len(segment) != 2:
                raise Refused("damaged segment")
            self.restart = segment[0] << 8 | segment[1]
        elif 0xE0 <= marker <= 0xEF:
            self._application(marker, segment)
        elif marker != 0xFE:
            raise Refused(_FRAMES.get(marker, "unusual marker"))

    def _quantization(self, segment: bytes) -> None:
        at = 0
        while at < len(segment):
            wide, number = segment[at] >> 4, segment[at] & 15
            entries = segment[at + 1 : at + 65 + 64 * wide]
            if wide > 1 or number > 3 or len(entries) != 64 + 64 * wide:
                raise Refused("damaged segment")
            words = bytearray(128)
            words[0::2] = entries[1::2] if wide else entries
            if wide:
                words[1::2] = entries[0::2]
            self.quantization[number] = bytes(words)
            at += 65 + 64 * wide

    def _huffman(self, segment: bytes) -> None:
        at = 0
        while at < len(segment):
            number, counts = segment[at], segment[at + 1 : at + 17]
            codes = sum(counts)
            symbols = segment[at + 17 : at + 17 + codes]
            if number & 0xEC or len(counts) != 16 or codes > 256 or len(symbols) != codes:
                raise Refused("damaged segment")
            self.huffman[number] = counts, symbols
            at += 17 + codes

    def _frame(self, segment: bytes) -> None:
        if self.frame:
            raise Refused("more than one frame")
        precision, _, _, components = struct.unpack_from(">BHHB", segment)
        if precision != 8:
            raise Refused(f"{precision} bits a sample" if precision == 12 else "unusual precision")
        if components not in (1, 3):
            raise Refused("CMYK" if components == 4 else "unusual number of components")
        if len(segment) != 6 + 3 * components:
            raise Refused("damaged segment")
        self.frame = segment

    def _application(self, marker: int, segment: bytes) -> None:
        """Refuses what Pillow's own reader of these segments stumbles over."""
        if marker == 0xE0:
            if segment.startswith(b"JFIF") and len(segment) < 14:
                raise Refused("damaged segment")
        elif marker == 0xE1:
            if segment.startswith(b"Exif\0\0"):
                if self.exif or not _is_plain_exif(segment[6:]):
                    raise Refused("unusual EXIF data")
                self.exif = True
        elif marker == 0xE2:
            if segment.startswith(b"MPF\0"):
                raise Refused("several pictures in one file")
            if segment.startswith(b"ICC_PROFILE\0") and len(segment) < 14:
                raise Refused("damaged segment")
        elif marker == 0xED:
            if segment[-6:-2] == b"8BIM":
                raise Refused("damaged segment")
        elif marker == 0xEE and segment.startswith(b"Adobe"):
            self.converted = len(segment) < 12 or segment[11] != 1

    def scan(self, segment: bytes, begin: int, length: int) -> bytes:
        """The header, once the scan's own segment has come."""
        frame = self.frame
        if not frame:
            raise Refused("no frame before the scan")
        _, height, width, components = struct.unpack_from(">BHHB", frame)
        if not (0 < width <= MOST_PIXELS_A_SIDE and 0 < height <= MOST_PIXELS_A_SIDE):
            raise Refused("size out of range")
        if length > MOST_SCAN_BYTES:
            raise Refused("scan too long")
        ids = frame[6::3]
        if segment[0] != components or segment[1 : 1 + 2 * components : 2] != ids or len(set(ids)) != components:
            raise Refused("not one interleaved scan")
        if segment[1 + 2 * components :] != b"\x00\x3f\x00":
            raise Refused("damaged segment")
        h, v = _sampling(frame[7::3])
        if components == 3 and ids == b"RGB":
            raise Refused("RGB components")
        if self.converted:
            raise Refused("Adobe colour transform")
        if not self.quantization.keys() >= set(frame[8::3]):
            raise Refused("no quantization table")

        tables = segment[2 : 1 + 2 * components : 2]
        dc, ac = [table >> 4 for table in tables], [16 | table & 15 for table in tables]
        if not self.huffman.keys() >= {*dc, *ac}:
            raise Refused("no Huffman table")
        dc_kinds, ac_kinds = list(dict.fromkeys(dc)), list(dict.fromkeys(ac))
        if len(dc_kinds) > 2 or len(ac_kinds) > 2:
            raise Refused("more than two Huffman tables of a kind")

        record = bytearray(HEADER.itemsize)
        spare = [0] * (3 - components)
        _FIXED.pack_into(
            record, 0, begin, length, width, height, self.restart, components, h, v,
            *[dc_kinds.index(table) for table in dc], *spare,
            *[2 + ac_kinds.index(table) for table in ac], *spare,
        )  # fmt: skip
        for place, number in [*enumerate(dc_kinds), *enumerate(ac_kinds, 2)]:
            counts, symbols = self.huffman[number]
            record[_COUNTS + 16 * place : _COUNTS + 16 * place + 16] = counts
            record[_SYMBOLS + 256 * place : _SYMBOLS + 256 * place + len(symbols)] = symbols
        for component, number in enumerate(frame[8::3]):
            at = _QUANTIZATION + 128 * component
            record[at : at + 128] = self.quantization[number]
        return bytes(record)


def _sampling(factors: bytes) -> tuple[int, int]:
    """Luma's factors (h, v); of a single component they say nothing, as its blocks come one by one."""
    h, v = factors[0] >> 4, factors[0] & 15
    if not (1 <= h <= 4 and 1 <= v <= 4):
        raise Refused("unusual sampling")
    if len(factors) == 1:
        return 1, 1
    if factors[1:] != b"\x11\x11" or (h, v) not in _SAMPLINGS:
        raise Refused("unusual sampling")
    return h, v


def _is_plain_exif(tiff: bytes) -> bool:
    """Whether its resolution, where it has one, is what it should be: Pillow does not open a file where it is not."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return tiff[:4] not in (b"II+\0", b"MM\0+")
    begin = int.from_bytes(tiff[4:8], "little" if order == "<" else "big")
    count = int.from_bytes(tiff[begin : begin + 2], "little" if order == "<" else "big")
    entries = tiff[begin + 2 : begin + 2 + 12 * count]
    whole = entries[: len(entries) // 12 * 12]
    return all(
        (kind, number) == (_RATIONAL, 1)
        for tag, kind, number, _ in struct.iter_unpack(order + "HHII", whole)
        if tag == _X_RESOLUTION
    )
