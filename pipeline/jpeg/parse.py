"""A JPEG file's markers: a header that the kernels can use, or the reason why Pillow has to decode the file.

What is taken is what cameras and encoders write: sequential Huffman coding, 8 bits, one component or YCbCr in one
interleaved scan, chroma not reduced or by 2 or 4. The walk is strict: whatever the standard does not ask for, and
whatever Pillow or libjpeg would look at twice, is refused here. Refused is not broken: Pillow decides that.

Huffman tables are passed on as they stand in the file, and checked where they are used: on the GPU.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TypeAlias

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

assert HEADER.fields is not None
_SIDES = struct.Struct(f"<{HEADER.fields['width'][1]}xHH")

_X_RESOLUTION, _RATIONAL = 0x011A, 5


class Refused(Exception):
    """Pillow has to decode this file. Its text is the reason, one of a small set."""


def parse(data: bytes | memoryview) -> bytes:
    """A file's header, one record of HEADER. Raises Refused with the reason, and nothing else, whatever the bytes are.

    Looks at the markers before the scan and at the last two bytes; time is bounded by the number of markers. Of a file
    with several reasons, one is given.
    """
    module = _walk()
    record = bytearray(HEADER.itemsize)
    exif: list[int] = [0, 0]
    if not module.COMPILED:
        why = module.walk(data, len(data), record, [0] * module.PLACES, exif)
    elif len(data):
        file, numbers = np.frombuffer(data, np.uint8), np.zeros(module.PLACES + 2, np.int64)
        file.setflags(write=False)  # one kind of array, so that one is compiled
        places, found = numbers[: module.PLACES], numbers[module.PLACES :]
        why = module.walk(file, len(data), np.frombuffer(record, np.uint8), places, found)
        exif = found.tolist()
    else:  # of which there is no array
        why = module.NOT_JPEG
    if why != module.TAKEN:
        raise Refused(module.REASONS[why])
    if exif[1] and not _is_plain_exif(bytes(data[exif[0] : exif[1]])):
        raise Refused(module.REASONS[module.EXIF])
    return bytes(record)


def sides(header: bytes) -> tuple[int, int]:
    """Width and height in a header, without an array's record, which takes five times as long."""
    width, height = _SIDES.unpack_from(header)
    return width, height


def warm_up() -> None:
    """Have what `parse` takes a second for before its first file, and some where it is compiled for the first time."""
    with suppress(Refused):
        parse(b"\xff\xd8\xff\xd9")


@cache
def _walk() -> ModuleType:
    """Where files are parsed alone: it brings Numba, if that is installed."""
    return import_module("pipeline.jpeg.walk")


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
