"""The parser: what it takes, why it refuses, and that no bytes at all make it stumble."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import struct
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pipeline.jpeg import walk
from pipeline.jpeg.parse import HEADER, Refused, parse, sides
from tests.pipeline.jpeg.encoder import Encoder, random_blocks, segment

APP14 = b"Adobe\0\x64\0\0\0\0"


def made(mode: str = "RGB", size: tuple[int, int] = (20, 10), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 77).save(file, "JPEG", **options)
    return file.getvalue()


def encoded(sampling: tuple[int, int] | None) -> bytes:
    return Encoder(20, 10, sampling).encode(random_blocks(np.random.default_rng(0), 0.1, 9))


def with_segment(marker: int, content: bytes, data: bytes | None = None) -> bytes:
    data = made() if data is None else data
    return data[:2] + segment(marker, content) + data[2:]


def changed(marker: int, offset: int, value: int, data: bytes | None = None) -> bytes:
    """A file with one byte of a segment's content changed."""
    data = bytearray(made() if data is None else data)
    at = data.index(bytes((0xFF, marker))) + 4 + offset
    data[at] = value
    return bytes(data)


def without(marker: int) -> bytes:
    data = made()
    at = data.index(bytes((0xFF, marker)))
    return data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]


def exif(order: str, kind: int, count: int) -> bytes:
    """EXIF data with a horizontal resolution of this type and count, and its unit."""
    entries = struct.pack(order + "HHHIIHHIHH", 2, 0x011A, kind, count, 38, 0x0128, 3, 1, 2, 0)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + magic + struct.pack(order + "I", 8) + entries + struct.pack(order + "III", 0, 72, 1)


REFUSED = {
    "not a JPEG file": [b"", b"\xff", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"],
    "no end marker at the end of the file": [made()[:-1], made()[:-2], made() + b"\0", b"\xff\xd8\xff\xe0"],
    "header cut short": [b"\xff\xd8\xff\xd9", made()[:40] + b"\xff\xd9", with_segment(0xE5, b"")[:5] + b"\0\xff\xd9"],
    "bytes between segments": [made()[:2] + b"\0" + made()[2:]],
    "unusual marker": [made()[:2] + b"\xff" + made()[2:], with_segment(0xDC, b"\0\1"), with_segment(0xD8, b"")],
    "progressive": [made(progressive=True)],
    "arithmetic coding": [made().replace(b"\xff\xc0", b"\xff\xc9"), with_segment(0xCC, b"\0\0")],
    "lossless": [made().replace(b"\xff\xc0", b"\xff\xc3")],
    "hierarchical": [made().replace(b"\xff\xc0", b"\xff\xc5")],
    "CMYK": [made("CMYK")],
    "12 bits a sample": [changed(0xC0, 0, 12)],
    "unusual precision": [changed(0xC0, 0, 9)],
    "unusual number of components": [changed(0xC0, 5, 2)],
    "more than one frame": [with_segment(0xC0, made()[made().index(b"\xff\xc0") + 4 :][:15])],
    "no frame before the scan": [without(0xC0)],
    "size out of range": [changed(0xC0, 2, 0, changed(0xC0, 1, 0)), changed(0xC0, 3, 255, changed(0xC0, 4, 255))],
    "not one interleaved scan": [changed(0xDA, 1, 9), changed(0xDA, 0, 1), changed(0xC0, 9, 1, changed(0xDA, 3, 1))],
    "unusual sampling": [changed(0xC0, 7, sampling) for sampling in (0x24, 0x31, 0)] + [changed(0xC0, 10, 0x21)],
    "RGB components": [made(keep_rgb=True)],
    "Adobe colour transform": [with_segment(0xEE, APP14 + b"\0"), with_segment(0xEE, APP14 + b"\2"),
                               with_segment(0xEE, b"Adobe")],
    "several pictures in one file": [with_segment(0xE2, b"MPF\0MM\0*")],
    "no quantization table": [without(0xDB).replace(b"\xff\xdb", b"\xff\xfe")],
    "no Huffman table": [changed(0xDA, 2, 0x33)],
    "unusual EXIF data": [
        with_segment(0xE1, exif("<", 5, 2)), with_segment(0xE1, exif(">", 2, 1)), with_segment(0xE1, exif("<", 3, 1)),
        with_segment(0xE1, exif("<", 5, 1), with_segment(0xE1, exif("<", 5, 1))),
        with_segment(0xE1, b"Exif\0\0II+\0" + bytes(20)),
    ],
    "damaged segment": [
        with_segment(0xE0, b"JFIF\0"), with_segment(0xE2, b"ICC_PROFILE\0\1"), with_segment(0xDD, b"\0"),
        with_segment(0xED, b"Photoshop 3.0\x008BIM\0\0"), with_segment(0xDB, b"\0" * 64),
        with_segment(0xDB, b"\x20" + b"\1" * 128), with_segment(0xC4, b"\0" * 16), with_segment(0xC4, b"\x20" * 17),
        with_segment(0xC4, b"\0" + b"\xff" * 16), changed(0xDA, 7, 1), changed(0xDA, 9, 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "data"), [(why, data) for why, files in REFUSED.items() for data in files])
def test_refusals_are_named(reason: str, data: bytes) -> None:
    with pytest.raises(Refused, match=f"^{re.escape(reason)}$"):
        parse(data)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (made(quality=90, subsampling=0), (3, 1, 1, 0)),
        (made(subsampling=2, restart_marker_blocks=3), (3, 2, 2, 3)),
        (made(exif=b"Exif\0\0" + bytes(40), comment=b"words"), (3, 2, 2, 0)),
        (with_segment(0xE1, exif("<", 5, 1)), (3, 2, 2, 0)),
        (with_segment(0xE1, exif(">", 5, 1)), (3, 2, 2, 0)),
        (made("L"), (1, 1, 1, 0)),
        (changed(0xC0, 7, 0x22, made("L")), (1, 1, 1, 0)),
        (with_segment(0xEE, APP14 + b"\1"), (3, 2, 2, 0)),
        (encoded((4, 1)), (3, 4, 1, 0)),
        (encoded((1, 2)), (3, 1, 2, 0)),
    ],
)
def test_what_is_taken(data: bytes, expected: tuple[int, int, int, int]) -> None:
    for given in (data, memoryview(data)):
        header = np.frombuffer(parse(given), HEADER)[0]
        assert tuple(int(header[name]) for name in ("components", "h", "v", "restart")) == expected
        assert (header["width"], header["height"]) == sides(header.tobytes()) == (20, 10)
        begin = data.index(b"\xff\xda") + 2 + int.from_bytes(data[data.index(b"\xff\xda") + 2 :][:2], "big")
        assert (header["scan_begin"], header["scan_bytes"]) == (begin, len(data) - 2 - begin)


def test_tables_are_those_of_the_components() -> None:
    data = made(quality=70, optimize=True, subsampling=2)
    header = np.frombuffer(parse(data), HEADER)[0]
    image = Image.open(io.BytesIO(data))
    natural = list(image.quantization.values())
    for component in range(3):
        assert sorted(header["quantization"][component].tolist()) == sorted(natural[min(component, 1)])
    assert header["dc_table"].tolist() == [0, 1, 1]
    assert header["ac_table"].tolist() == [2, 3, 3]
    tables = [data[at + 4 :] for at in range(len(data)) if data[at : at + 2] == b"\xff\xc4"]
    assert len(tables) == 4
    for text in tables:
        place = (text[0] >> 4) * 2 + (text[0] & 15)
        codes = sum(text[1:17])
        assert bytes(header["counts"][place]) == text[1:17]
        assert bytes(header["symbols"][place][:codes]) == text[17 : 17 + codes]


def test_16_bit_quantization() -> None:
    steps = np.arange(64) * 1000 + 1
    data = Encoder(8, 8, None, quantization=steps).encode(random_blocks(np.random.default_rng(0), 0.0, 1, 4))
    assert np.frombuffer(parse(data), HEADER)[0]["quantization"][0].tolist() == steps.tolist()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pillow_opens_what_is_taken() -> None:
    """Its own reader of headers stumbles over some, in EXIF data most of all."""
    rng = np.random.default_rng(5)
    whole = without(0xE0)  # with JFIF's resolution Pillow does not look for another
    whole = with_segment(
        0xE1, exif("<", 5, 1), with_segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0" + bytes(12), whole)
    )
    header, taken = whole.index(b"\xff\xdb"), 0
    for number in range(4000):
        data = bytearray(whole)
        for place in rng.integers(2, header, int(rng.integers(1, 4))):
            data[place] = rng.choice([0, 1, 2, 5, 255, rng.integers(256)])
        with contextlib.suppress(Refused):
            parse(bytes(data))
            taken += 1
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                assert image.size == (20, 10), number
    assert taken > 400


def damaged_files() -> list[bytes]:
    rng = np.random.default_rng(1)
    whole = with_segment(0xE1, b"Exif\0\0" + bytes(30), made(subsampling=1, restart_marker_blocks=2))
    files = [whole[:end] + b"\xff\xd9" for end in range(len(whole))]
    for _ in range(3000):
        data = bytearray(whole)
        for place in rng.integers(0, len(data) - 2, int(rng.integers(1, 5))):
            data[place] = rng.integers(256)
        files.append(bytes(data))
    files += [b"\xff\xd8" + rng.bytes(int(rng.integers(200))) + b"\xff\xd9" for _ in range(500)]
    return files


def test_any_bytes_end_in_a_header_or_a_reason() -> None:
    files = damaged_files()
    taken = 0
    for data in files:
        with contextlib.suppress(Refused):
            taken += len(parse(data)) == HEADER.itemsize
    assert 0 < taken < len(files)


def outcome(module: ModuleType, data: bytes) -> tuple[int, bytes, list[int]]:
    """What a module's `walk` gives of a file, whatever kind of bytes it takes."""
    record, places, exif = bytearray(HEADER.itemsize), [0] * module.PLACES, [0, 0]
    if not module.COMPILED:
        return module.walk(data, len(data), record, places, exif), bytes(record), exif
    file, numbers = np.frombuffer(data, np.uint8), np.zeros(2, np.int64)
    file.setflags(write=False)
    why = module.walk(file, len(data), np.frombuffer(record, np.uint8), np.array(places), numbers)
    return why, bytes(record), numbers.tolist()


@pytest.mark.skipif(not walk.COMPILED, reason="needs Numba: pip install numba")
def test_the_walk_is_the_same_compiled_and_not(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec("pipeline.jpeg.walk")
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    spec.loader.exec_module(plain)
    assert not plain.COMPILED
    files = [data for found in REFUSED.values() for data in found if data] + damaged_files()
    taken = 0
    for data in files:
        found = outcome(plain, data)
        assert found == outcome(walk, data), data.hex()
        taken += found[0] == walk.TAKEN
    assert 100 < taken < len(files) // 2
