"""A small JPEG encoder for tests: any coefficients, in any sampling, with any Huffman tables and restart intervals.

It begins with coefficients, not with pixels: what they look like is for Pillow to say.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[np.int64]
"""64 quantised coefficients in zigzag order."""

Symbols = Mapping[int, int]
"""Code length by symbol."""


def plain_table(symbols: list[int]) -> Symbols:
    """Codes of one length, the shortest that leaves one over."""
    return dict.fromkeys(symbols, len(symbols).bit_length())


def skewed_table(symbols: list[int]) -> Symbols:
    """Codes of 1, 2, 3 ... bits, then of 16, as far as there is room."""
    lengths = {}
    for place, symbol in enumerate(symbols):
        left = len(symbols) - place
        lengths[symbol] = place + 1 if place < 15 and left < 2 ** (15 - place) else 16
    return lengths


def longest_table(symbols: list[int]) -> Symbols:
    """Codes of 16 bits."""
    return dict.fromkeys(symbols, 16)


def zeros_first_table(symbols: list[int]) -> Symbols:
    """A run of 16 zeros in one bit, which is a coefficient to store all the same; one of 14 and a value in two."""
    return skewed_table(sorted(symbols, key=lambda symbol: (symbol != 0xF0, symbol != 0xE1)))


TABLES: dict[str, Callable[[list[int]], Symbols]] = {
    "plain": plain_table,
    "skewed": skewed_table,
    "longest": longest_table,
    "zeros first": zeros_first_table,
}

DC_SYMBOLS = list(range(12))
AC_SYMBOLS = [0, 1, 0xF0, *(run << 4 | size for size in range(1, 11) for run in range(16) if (run, size) != (0, 1))]


@dataclass
class Encoder:
    """Attributes:
    width, height: pixels.
    sampling: luma's factors, of three components; None: one component.
    tables: of DC and AC codes, by what TABLES calls them.
    restart: MCUs an interval; 0: no markers.
    quantization: of all components, 64 values in zigzag order.
    """

    width: int
    height: int
    sampling: tuple[int, int] | None
    tables: str = "plain"
    restart: int = 0
    quantization: Block = field(default_factory=lambda: np.ones(64, np.int64))
    extended: bool = False

    def encode(self, blocks: Iterator[Block]) -> bytes:
        """The file; takes one block after the other as the scan has them."""
        h, v = self.sampling or (1, 1)
        components = [(1, h, v), (2, 1, 1), (3, 1, 1)] if self.sampling else [(1, 1, 1)]
        wide = int(self.quantization.max()) > 255
        dc, ac = (_Codes(TABLES[self.tables](symbols)) for symbols in (DC_SYMBOLS, AC_SYMBOLS))
        quantization = struct.pack(">64H" if wide else ">64B", *self.quantization.tolist())
        frame = struct.pack(">BHHB", 8, self.height, self.width, len(components))
        frame += b"".join(bytes((name, h << 4 | v, 0)) for name, h, v in components)
        scan = bytes((len(components),)) + b"".join(bytes((name, 0)) for name, _, _ in components) + b"\0\x3f\0"
        return b"".join(
            (
                b"\xff\xd8",
                segment(0xDB, bytes((16 * wide,)) + quantization),
                segment(0xC1 if self.extended or wide else 0xC0, frame),
                segment(0xC4, b"\x00" + dc.text + b"\x10" + ac.text),
                segment(0xDD, struct.pack(">H", self.restart)) if self.restart else b"",
                segment(0xDA, scan),
                self._scan([h * v for _, h, v in components], dc, ac, blocks),
                b"\xff\xd9",
            )
        )

    def _scan(self, counts: list[int], dc: _Codes, ac: _Codes, blocks: Iterator[Block]) -> bytes:
        h, v = self.sampling or (1, 1)
        mcus = -(-self.width // (8 * h)) * -(-self.height // (8 * v))
        parts, bits = [], _Bits()
        last = [0] * len(counts)
        for mcu in range(mcus):
            if self.restart and mcu and mcu % self.restart == 0:
                parts += [bits.bytes(), bytes((0xFF, 0xD0 | (mcu // self.restart - 1) % 8))]
                bits, last = _Bits(), [0] * len(counts)
            for component, count in enumerate(counts):
                for _ in range(count):
                    block = next(blocks)
                    _encode_block(bits, block, int(block[0]) - last[component], dc, ac)
                    last[component] = int(block[0])
        return b"".join([*parts, bits.bytes()])


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


class _Codes:
    """Canonical codes from lengths."""

    def __init__(self, lengths: Symbols) -> None:
        by_length = sorted(lengths, key=lambda symbol: lengths[symbol])
        counts = [sum(n == bits for n in lengths.values()) for bits in range(1, 17)]
        self.text = bytes(counts) + bytes(by_length)
        self.of: dict[int, tuple[int, int]] = {}
        code, at = 0, 0
        for bits, count in enumerate(counts, 1):
            for symbol in by_length[at : at + count]:
                self.of[symbol] = code, bits
                code += 1
            assert count == 0 or code < 1 << bits, "the code of ones alone is none"
            at += count
            code <<= 1


class _Bits:
    def __init__(self) -> None:
        self._parts: list[str] = []

    def put(self, value: int, bits: int) -> None:
        if bits:
            self._parts.append(f"{value:0{bits}b}")

    def bytes(self) -> bytes:
        """Padded with ones and stuffed."""
        text = "".join(self._parts)
        text += "1" * (-len(text) % 8)
        return int(text or "0", 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def _encode_block(bits: _Bits, block: Block, difference: int, dc: _Codes, ac: _Codes) -> None:
    size = abs(difference).bit_length()
    bits.put(*dc.of[size])
    bits.put(difference if difference >= 0 else difference + (1 << size) - 1, size)
    run = 0
    for index in range(1, 64):
        value = int(block[index])
        if value == 0:
            run += 1
            continue
        while run > 15:
            bits.put(*ac.of[0xF0])
            run -= 16
        size = abs(value).bit_length()
        bits.put(*ac.of[run << 4 | size])
        bits.put(value if value > 0 else value + (1 << size) - 1, size)
        run = 0
    if run:
        bits.put(*ac.of[0])


def random_blocks(rng: np.random.Generator, density: float, most: int, most_dc: int = 250) -> Iterator[Block]:
    """Blocks without end: a share of the AC coefficients up to `most`, and a DC that wanders."""
    dc = 0
    while True:
        block = np.where(rng.random(64) < density, rng.integers(-most, most + 1, 64), 0)
        dc = int(np.clip(dc + rng.integers(-most_dc // 4, most_dc // 4 + 1), -most_dc, most_dc))
        block[0] = dc
        yield block
