"""Damaged scans: the kernels find the signs, or decode what Pillow decodes; never anything else.

JPEG_FUZZ=20000 mutates that many files instead of a few hundred.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.jpeg.parse import Refused, parse
from pipeline.jpeg.plan import DAMAGE, reason_of
from tests.kernels.emulator.driver import needs_compiler
from tests.pipeline.jpeg.emulated import EmulatedDecoder
from tests.pipeline.jpeg.encoder import AC_SYMBOLS, Block, Encoder, plain_table, random_blocks
from tests.pipeline.jpeg.test_kernels import encoded, pillow_rgb, saved

MUTATED = int(os.environ.get("JPEG_FUZZ", "256"))
AT_ONCE = 32
BIT = {reason: bit for bit, reason in DAMAGE.items()}

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def decoder(folder: Path) -> EmulatedDecoder:
    return EmulatedDecoder(folder)


def whole(restart: int = 0, tables: str = "plain", size: int = 64, **options: object) -> bytes:
    encoder = Encoder(size, size, (2, 2), tables, restart, **options)
    return encoder.encode(random_blocks(np.random.default_rng(0), 0.2, 9))


def scan_of(data: bytes) -> int:
    at = data.index(b"\xff\xda")
    return at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def expect(decoder: EmulatedDecoder, reason: str, data: bytes) -> None:
    """The sign is found, by 32 lanes and by 128; and the next image, whole, is as if nothing had been."""
    good = whole()
    for lanes in (32, 128):
        done = decoder.rgb([data, good], lanes)
        assert done.damage[0] & BIT[reason], done.damage
        assert done.damage[1] == 0
        np.testing.assert_array_equal(done.outputs[1], pillow_rgb(good))


def test_marker_in_the_scan(decoder: EmulatedDecoder) -> None:
    data = whole()
    middle = (scan_of(data) + len(data)) // 2
    for marker in (b"\xff\xd9", b"\xff\xc4", b"\xff\xd0", b"\xff\xff"):
        expect(decoder, "marker inside the scan", data[:middle] + marker + data[middle:])
    expect(decoder, "marker inside the scan", data[:-2] + b"\xff\xff\xd9")


@pytest.mark.parametrize("change", [(b"\xff\xd1", b"\xff\xd2"), (b"\xff\xd1", b""), (b"\xff\xd1", b"\xff\xd1\xff\xd2")])
def test_restart_markers(decoder: EmulatedDecoder, change: tuple[bytes, bytes]) -> None:
    expect(decoder, "restart markers missing or out of order", whole(restart=3).replace(*change))


def test_restart_markers_that_the_header_does_not_tell_of(decoder: EmulatedDecoder) -> None:
    data = whole(restart=3)
    at = data.index(b"\xff\xdd")
    expect(decoder, "marker inside the scan", data[:at] + data[at + 6 :])


def test_codes_that_are_none(decoder: EmulatedDecoder) -> None:
    data = whole()
    at = scan_of(data) + 100
    expect(decoder, "invalid code in the scan", data[:at] + b"\xff\0" * 8 + data[at:])


def test_coefficients_beyond_the_last(decoder: EmulatedDecoder) -> None:
    """A run of zeros that leaves the block: libjpeg lets it pass, Pillow has the word."""
    table = plain_table(AC_SYMBOLS)
    data = whole()
    code = f"{list(table).index(0xF0):08b}"
    assert table[0xF0] == 8
    bits = "".join(f"{byte:08b}" for byte in data[scan_of(data) : -2].replace(b"\xff\0", b"\xff"))
    scan = int(code * 60 + bits[480:], 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    expect(decoder, "invalid code in the scan", data[: scan_of(data)] + scan + data[-2:])


@pytest.mark.parametrize("cut", [1, 2, 9, 200])
def test_a_scan_that_is_too_short(decoder: EmulatedDecoder, cut: int) -> None:
    data = whole()
    assert data[-2 - cut - 1] != 0xFF
    expect(decoder, "scan longer or shorter than its blocks", data[: -2 - cut] + data[-2:])


@pytest.mark.parametrize("more", [b"\x55", b"\0\0\0", bytes(500)])
def test_a_scan_that_is_too_long(decoder: EmulatedDecoder, more: bytes) -> None:
    data = whole()
    expect(decoder, "scan longer or shorter than its blocks", data[:-2] + more + data[-2:])


def test_intervals_that_are_too_long_or_short(decoder: EmulatedDecoder) -> None:
    data = whole(restart=3)
    at = data.index(b"\xff\xd1")
    for changed in (data[:at] + b"\x55" + data[at:], data[: at - 2] + data[at:]):
        expect(decoder, "scan longer or shorter than its blocks", changed)


def test_tables_with_more_codes_than_there_are(decoder: EmulatedDecoder) -> None:
    data = bytearray(whole(tables="skewed"))
    at = data.index(b"\xff\xc4") + 5
    assert data[at : at + 2] == b"\1\1"
    data[at : at + 2] = b"\2\0"  # both codes of one bit: the one of ones alone is none
    expect(decoder, "damaged Huffman table", bytes(data))


def test_dc_symbols_that_are_none(decoder: EmulatedDecoder) -> None:
    data = bytearray(whole())
    at = data.index(b"\xff\xc4") + 5 + 16
    assert data[at : at + 12] == bytes(range(12))
    data[at + 11] = 16
    expect(decoder, "damaged Huffman table", bytes(data))


@pytest.mark.parametrize(("most", "most_dc"), [(1, 1000), (500, 10)])
def test_coefficients_out_of_range(decoder: EmulatedDecoder, most: int, most_dc: int) -> None:
    encoder = Encoder(64, 64, (1, 1), quantization=np.full(64, 255))
    data = encoder.encode(random_blocks(np.random.default_rng(0), 0.2, most, most_dc))
    expect(decoder, "coefficients out of range", data)


def test_values_that_saturate_only_between_the_passes(decoder: EmulatedDecoder) -> None:
    """Each coefficient is within the limit, and one column's sum beyond it."""

    def blocks() -> Iterator[Block]:
        block = np.zeros(64, np.int64)
        block[[0, 2, 3, 9]] = 1000  # the first column, from its top
        while True:
            yield block

    data = Encoder(8, 8, None, quantization=np.full(64, 4)).encode(blocks())
    expect(decoder, "coefficients out of range", data)


def test_more_coefficients_than_memory(decoder: EmulatedDecoder) -> None:
    """Blocks of five bits and five coefficients, in a scan that is long enough to have no room to spare."""

    def blocks() -> Iterator[Block]:
        block = np.zeros(64, np.int64)
        block[63] = 1
        while True:
            yield block

    done = decoder.rgb([Encoder(1600, 800, None, "zeros first").encode(blocks())])
    assert reason_of(int(done.damage[0])) == "more coefficients than there is memory for"


def made(rng: np.random.Generator, count: int) -> list[bytes]:
    """Small files of all kinds."""
    return [(saved if number % 2 else encoded)(rng, number, 48) for number in range(count)]


def mutated(rng: np.random.Generator, whole_file: bytes) -> bytes:
    """A file with bytes changed, removed, repeated or put in; most of them in the scan."""
    data = bytearray(whole_file)
    scan = scan_of(whole_file)
    for _ in range(int(rng.integers(1, 4))):
        in_header = rng.random() < 0.15
        begin = int(rng.integers(2, scan) if in_header else rng.integers(scan, max(len(data) - 2, scan + 1)))
        kind, length = rng.integers(5), int(rng.integers(1, 9))
        if kind == 0:
            data[begin] = rng.integers(256)
        elif kind == 1:
            data[begin] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            del data[begin : min(begin + length, len(data) - 2)]
        elif kind == 3:
            data[begin:begin] = data[begin : begin + length]
        else:
            data[begin:begin] = rng.bytes(length)
        scan = min(scan, len(data) - 3)
    return bytes(data)


def test_mutated_files_are_equal_to_pillow_or_left_to_it(decoder: EmulatedDecoder) -> None:
    rng = np.random.default_rng(int(os.environ.get("JPEG_SEED", "7")))
    counts = {"refused": 0, "damaged": 0, "equal": 0}
    bases = made(rng, 64)
    for begin in range(0, MUTATED, AT_ONCE):
        files = []
        for number in range(begin, begin + AT_ONCE):
            data = mutated(rng, bases[number % len(bases)])
            try:
                header = parse(data)
            except Refused:
                counts["refused"] += 1
                continue
            width, height = np.frombuffer(header, "<u2", 2, 8)
            if int(width) * int(height) < 1 << 20:
                files.append(data)
        if not files:
            continue
        done = decoder.rgb(files, int(rng.choice([32, 128])))
        for data, damage, output in zip(files, done.damage, done.outputs, strict=True):
            if damage:
                counts["damaged"] += 1
                continue
            np.testing.assert_array_equal(output, pillow_rgb(data), data.hex())
            counts["equal"] += 1
    print(counts)
    assert min(counts.values()) > MUTATED // 40
