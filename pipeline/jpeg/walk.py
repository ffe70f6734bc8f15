"""The walk over a JPEG file's markers, for `parse`: by Numba where it is installed, at a tenth of the time.

It reads bytes and writes bytes: of `bytes` and a `bytearray` as Python, of uint8 arrays compiled. Compiled code does
not look whether an index exists, so every index here is compared with a length before.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

COMPILED = find_spec("numba") is not None
"""Numba is an extra."""


def compiled(function: Function) -> Function:
    if not COMPILED:
        return function
    from int4core.compiled import compiled as by_numba

    return by_numba(function)


TAKEN = 0
REASONS = (
    "",
    "not a JPEG file",
    "no end marker at the end of the file",
    "header cut short",
    "bytes between segments",
    "unusual marker",
    "progressive",
    "lossless",
    "hierarchical",
    "arithmetic coding",
    "damaged segment",
    "more than one frame",
    "12 bits a sample",
    "unusual precision",
    "CMYK",
    "unusual number of components",
    "unusual EXIF data",
    "several pictures in one file",
    "no frame before the scan",
    "size out of range",
    "scan too long",
    "not one interleaved scan",
    "unusual sampling",
    "RGB components",
    "Adobe colour transform",
    "no quantization table",
    "no Huffman table",
    "more than two Huffman tables of a kind",
)
"""Why Pillow has to decode a file, by what `walk` returns; TAKEN: it has not."""

(
    _, NOT_JPEG, NO_END, CUT, BETWEEN, MARKER, PROGRESSIVE, LOSSLESS, HIERARCHICAL, ARITHMETIC, DAMAGED, FRAMES,
    BITS_12, PRECISION, CMYK, COMPONENTS, EXIF, PICTURES, NO_FRAME, SIZE, LONG, SCANS, SAMPLING, RGB, ADOBE,
    NO_STEPS, NO_CODES, MANY_CODES,
) = range(len(REASONS))  # fmt: skip

MOST_SCAN_BYTES = 2**26 - 4096
"""A position in the scan and a place in the MCU share 32 bits."""

MOST_PIXELS_A_SIDE = 65500
"""libjpeg's limit."""

PLACES = 4 + 32
"""Of `places`: where the tables begin in the file, 0 for none: quantization by number, Huffman by class and number."""

# Where the parts of HEADER (pipeline.jpeg.parse) begin.
AT_SCAN, AT_WIDTH, AT_COMPONENTS, AT_DC, AT_AC, AT_COUNTS = 0, 8, 14, 17, 20, 24
AT_SYMBOLS = AT_COUNTS + 4 * 16
AT_STEPS = AT_SYMBOLS + 4 * 256


@compiled
def walk(data: Any, size: int, record: Any, places: Any, exif: Any) -> int:
    """TAKEN, or the reason to refuse the file.

    Args:
        data: the file, of `size` bytes.
        record: HEADER.itemsize zeros, for the header.
        places: PLACES zeros.
        exif: two zeros, for the begin and the end of EXIF data, which the caller has to look at.
    """
    if size < 4 or data[0] != 0xFF or data[1] != 0xD8:
        return NOT_JPEG
    if data[size - 2] != 0xFF or data[size - 1] != 0xD9:
        return NO_END
    at, frame, restart, converted = 2, 0, 0, False
    while True:  # at <= size - 2
        if data[at] != 0xFF:
            return BETWEEN
        marker = data[at + 1]
        if marker == 0xFF:
            return MARKER
        if at + 4 > size:
            return CUT
        begin, end = at + 4, at + 2 + _word(data, at + 2)
        if end < begin or end > size - 2:
            return CUT
        length = end - begin
        why = TAKEN
        if marker == 0xDA:
            return _scan(data, begin, end, size, frame, restart, converted, record, places)
        if marker == 0xDB:
            why = _steps(data, begin, end, places)
        elif marker == 0xC4:
            why = _codes(data, begin, end, places)
        elif marker == 0xC0 or marker == 0xC1:
            why = FRAMES if frame else _frame(data, begin, end)
            frame = begin
        elif marker == 0xDD:
            if length != 2:
                return DAMAGED
            restart = _word(data, begin)
        elif marker == 0xEE:
            if _begins(data, begin, end, b"Adobe"):
                # By Adobe's transform, to something else than YCbCr.
                converted = length < 12 or data[begin + 11] != 1
        elif marker == 0xE1:
            if _begins(data, begin, end, b"Exif\0\0"):
                if exif[1]:
                    return EXIF
                exif[0], exif[1] = begin + 6, end
        elif 0xE0 <= marker <= 0xEF:
            why = _application(data, marker, begin, end)
        elif marker != 0xFE:
            why = _other(marker)
        if why != TAKEN:
            return why
        at = end


@compiled
def _word(data: Any, at: int) -> Any:
    return data[at] * 256 + data[at + 1]


@compiled
def _begins(data: Any, begin: int, end: int, text: Any) -> bool:
    if end - begin < len(text):
        return False
    i = 0
    while i < len(text) and data[begin + i] == text[i]:
        i += 1
    return i == len(text)


@compiled
def _other(marker: int) -> int:
    """A marker that belongs to none of the files that are taken."""
    if marker == 0xC2:
        return PROGRESSIVE
    if marker == 0xC3:
        return LOSSLESS
    if 0xC5 <= marker <= 0xC7:
        return HIERARCHICAL
    return ARITHMETIC if 0xC9 <= marker <= 0xCE and marker != 0xC8 else MARKER


@compiled
def _application(data: Any, marker: int, begin: int, end: int) -> int:
    """Refuses what Pillow's own reader of these segments stumbles over."""
    if marker == 0xE0 and _begins(data, begin, end, b"JFIF") and end - begin < 14:
        return DAMAGED
    if marker == 0xE2:
        if _begins(data, begin, end, b"MPF\0"):
            return PICTURES
        if _begins(data, begin, end, b"ICC_PROFILE\0") and end - begin < 14:
            return DAMAGED
    if marker == 0xED and end - begin >= 6 and _begins(data, end - 6, end, b"8BIM"):
        return DAMAGED
    return TAKEN


@compiled
def _steps(data: Any, at: int, end: int, places: Any) -> int:
    """Quantization tables."""
    while at < end:
        wide, number = data[at] // 16, data[at] % 16
        if wide > 1 or number > 3 or at + 65 + 64 * wide > end:
            return DAMAGED
        places[number] = at
        at += 65 + 64 * wide
    return TAKEN


@compiled
def _codes(data: Any, at: int, end: int, places: Any) -> int:
    """Huffman tables: class (16: AC) and number, how many codes each of 16 lengths has, their symbols."""
    while at < end:
        if at + 17 > end or data[at] & 0xEC:
            return DAMAGED
        count = _count(data, at)
        if count > 256 or at + 17 + count > end:
            return DAMAGED
        places[4 + data[at]] = at
        at += 17 + count
    return TAKEN


@compiled
def _count(data: Any, at: int) -> int:
    """Codes of the Huffman table at `at`."""
    count = 0
    for i in range(at + 1, at + 17):
        count += data[i]
    return count


@compiled
def _frame(data: Any, begin: int, end: int) -> int:
    if end - begin < 6:
        return CUT
    if data[begin] != 8:
        return BITS_12 if data[begin] == 12 else PRECISION
    components = data[begin + 5]
    if components != 1 and components != 3:
        return CMYK if components == 4 else COMPONENTS
    return TAKEN if end - begin == 6 + 3 * components else DAMAGED


@compiled
def _scan(
    data: Any, begin: int, end: int, size: int, frame: int, restart: int, converted: bool, record: Any, places: Any
) -> int:
    """The scan's segment, with which the header is whole."""
    if not frame:
        return NO_FRAME
    height, width = _word(data, frame + 1), _word(data, frame + 3)
    if not (0 < width <= MOST_PIXELS_A_SIDE and 0 < height <= MOST_PIXELS_A_SIDE):
        return SIZE
    scan_bytes = size - 2 - end
    if scan_bytes > MOST_SCAN_BYTES:
        return LONG
    components = data[frame + 5]
    first = frame + 6  # of each component: its name, its factors, its quantization table
    if end == begin:
        return CUT
    if data[begin] != components or end - begin < 1 + 2 * components:
        return SCANS
    for i in range(components):
        if data[begin + 1 + 2 * i] != data[first + 3 * i]:
            return SCANS
        for j in range(i):
            if data[first + 3 * i] == data[first + 3 * j]:
                return SCANS
    last = begin + 1 + 2 * components
    if end - last != 3 or data[last] != 0 or data[last + 1] != 63 or data[last + 2] != 0:
        return DAMAGED

    h, v = data[first + 1] // 16, data[first + 1] % 16
    if not (1 <= h <= 4 and 1 <= v <= 4):
        return SAMPLING
    if components == 1:
        h, v = 1, 1  # of a single component they say nothing, as its blocks come one by one
    else:
        if data[first + 4] != 0x11 or data[first + 7] != 0x11 or not ((v == 1 and h != 3) or (v == 2 and h <= 2)):
            return SAMPLING
        if data[first] == 82 and data[first + 3] == 71 and data[first + 6] == 66:
            return RGB
    if converted:
        return ADOBE
    for i in range(components):
        number = data[first + 3 * i + 2]
        if number > 3 or not places[number]:
            return NO_STEPS
    for i in range(components):
        tables = data[begin + 2 + 2 * i]
        dc, ac = tables // 16, tables % 16
        if dc > 3 or ac > 3 or not places[4 + dc] or not places[20 + ac]:
            return NO_CODES
    for kind in (0, 16):
        if not _place_codes(data, begin + 2, components, kind, record, places):
            return MANY_CODES

    _put(record, AT_SCAN, end, 4)
    _put(record, AT_SCAN + 4, scan_bytes, 4)
    _put(record, AT_WIDTH, width, 2)
    _put(record, AT_WIDTH + 2, height, 2)
    _put(record, AT_WIDTH + 4, restart, 2)
    record[AT_COMPONENTS], record[AT_COMPONENTS + 1], record[AT_COMPONENTS + 2] = components, h, v
    for i in range(components):
        at = places[data[first + 3 * i + 2]]
        to = AT_STEPS + 128 * i
        if data[at] // 16:
            record[to : to + 128 : 2] = data[at + 2 : at + 129 : 2]
            record[to + 1 : to + 128 : 2] = data[at + 1 : at + 129 : 2]
        else:
            record[to : to + 128 : 2] = data[at + 1 : at + 65]
    return TAKEN


@compiled
def _place_codes(data: Any, at: int, components: int, kind: int, record: Any, places: Any) -> bool:
    """Copies the Huffman tables of a class (0: DC, 16: AC) that components use; False if they are more than two."""
    place, to, unit = (0, AT_DC, 16) if kind == 0 else (2, AT_AC, 1)
    kept = 0
    for i in range(components):
        number = data[at + 2 * i] // unit % 16
        same = kept
        for j in range(i):
            if data[at + 2 * j] // unit % 16 == number:
                same = record[to + j] - place
                break
        if same == kept:
            if kept == 2:
                return False
            table = places[4 + kind + number]
            count = _count(data, table)
            counts, symbols = AT_COUNTS + 16 * (place + kept), AT_SYMBOLS + 256 * (place + kept)
            record[counts : counts + 16] = data[table + 1 : table + 17]
            record[symbols : symbols + count] = data[table + 17 : table + 17 + count]
            kept += 1
        record[to + i] = place + same
    return True


@compiled
def _put(record: Any, at: int, value: int, count: int) -> None:
    """A number of `count` bytes, the lowest first."""
    for i in range(count):
        record[at + i] = value >> 8 * i & 255
