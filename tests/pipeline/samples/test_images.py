"""What is taken as an image: formats, sizes and pixels; no file starts a program or takes all memory."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from int4core.preprocess import quantize_table
from pipeline.errors import ImageError
from pipeline.samples.images import FORMATS, MOST_PIXELS, ImageRules
from pipeline.samples.preprocess import Preprocessor

SIZE = 16


def sample(path: Path, rules: ImageRules | None = None) -> np.ndarray[Any, Any]:
    out = np.full((3, SIZE, SIZE), 99, dtype=np.int8)
    Preprocessor(SIZE, SIZE, rules).decode_into(path, out)
    return out


def why(path: Path, rules: ImageRules | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        sample(path, rules)
    assert caught.value.path == str(path)
    return caught.value.why


def tiff(path: Path, tags: dict[int, int], size: int) -> Path:
    """A little-endian TIFF of 32-bit tags, with zeros behind them up to `size` bytes that take no disk."""
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4))
    os.truncate(path, size)
    return path


# Formats


def test_postscript_named_jpg_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, programs = tmp_path / "started", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {mark}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    path = tmp_path / "photo.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 300 300\n%%EndComments\nshowpage\n%%EOF\n")
    assert why(path) == "not an image, or none of JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["ICO", "TGA", "PCX", "ICNS", "SGI"])
def test_other_formats_are_refused_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (64, 64), (200, 30, 40)).save(path, kind)
    assert why(path).startswith("not an image, or none of JPEG")


@pytest.mark.parametrize("kind", [*FORMATS, "MPO"])  # MPO: a JPEG with more pictures behind it, as telephones make
def test_every_format_is_read_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.xyz"
    Image.new("RGB", (SIZE, SIZE), (255, 255, 255)).save(path, kind)
    assert (sample(path) == quantize_table()[:, 255, None, None]).all()


# Greys of more than 8 bits


def deep(path: Path, mode: str) -> np.ndarray[Any, Any]:
    """Write a grey ramp of SIZE x SIZE; returns the 8 bits that stand for it."""
    steps = np.arange(SIZE * SIZE).reshape(SIZE, SIZE)
    if mode == "float":
        Image.fromarray((steps / 255).astype(np.float32)).save(path, "TIFF")
    elif mode == "netpbm":  # Pillow makes mode I of it
        path.write_bytes(f"P5 {SIZE} {SIZE} 65535\n".encode() + (steps * 256 + 255).astype(">u2").tobytes())
    elif mode == "32 bits":
        Image.fromarray((steps * 256 + 255).astype(np.int32)).save(path, "TIFF")
    else:
        Image.fromarray((steps * 256 + 255).astype(np.uint16)).save(path, mode)
    return steps


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("PNG", "16-bit grey (mode I;16)"),
        ("TIFF", "16-bit grey (mode I;16)"),
        ("netpbm", "32-bit grey (mode I)"),
        ("32 bits", "32-bit grey (mode I)"),
        ("float", "floating-point grey (mode F)"),
    ],
)
def test_deep_grey_is_refused_by_name_or_scaled(mode: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "deep"
    steps = deep(path, mode)
    assert why(path) == f"{kind}, of which 8 bits would keep one flat colour; --sixteen-bit scale maps it to 8 bits"
    expected = np.stack([table[steps] for table in quantize_table()])
    np.testing.assert_array_equal(sample(path, ImageRules(sixteen_bit="scale")), expected)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "says"),
    [
        (0, 70_000, np.int32, "run from 0 to 70000; --sixteen-bit scale takes integers from 0 to 65535"),
        (-1, 255, np.int32, "run from -1 to 255;"),
        (0, 255, np.float32, "run from 0 to 255; --sixteen-bit scale takes floats from 0 to 1"),
        (0, np.nan, np.float32, "run from nan to nan;"),
    ],
)
def test_grey_of_no_known_range_is_refused(low: float, high: float, dtype: Any, says: str, tmp_path: Path) -> None:
    pixels = np.full((SIZE, SIZE), low, dtype=dtype)
    pixels[3, 4] = high
    Image.fromarray(pixels).save(tmp_path / "deep.tif")
    assert says in why(tmp_path / "deep.tif", ImageRules(sixteen_bit="scale"))


# Sizes


def test_a_file_of_too_many_bytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "photo.bmp"
    Image.new("RGB", (SIZE, SIZE)).save(path)
    size = path.stat().st_size
    sample(path, ImageRules(max_bytes=size))
    assert why(path, ImageRules(max_bytes=size - 1)) == f"{size} bytes are more than --max-image-bytes {size - 1}"
    os.truncate(path, 4_100_000_000)
    assert why(path) == "4100000000 bytes are more than --max-image-bytes 536870912"


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("1", (400, 300)).save(path)
    sample(path, ImageRules(max_pixels=120_000))
    assert why(path, ImageRules(max_pixels=119_999)) == "400 x 300 is more than --max-pixels 119999"


@pytest.mark.parametrize("allowed", [119_999, MOST_PIXELS])
def test_no_option_is_named_for_what_pillow_itself_refuses(allowed: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.ppm"
    path.write_bytes(b"P6 20000 20000 255\n")
    said = why(path, ImageRules(max_pixels=allowed))
    assert said == "more than 178956970 pixels: Pillow refuses them, whatever --max-pixels"


def test_the_largest_photographs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (9500, 9500), 255).save(path, compress_level=1)  # Pillow warns of what is beyond 89 million pixels
    assert (sample(path) == quantize_table()[:, 255, None, None]).all()


def test_a_small_webp_that_takes_much_memory_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "small.webp"
    Image.new("RGB", (8, 8)).save(path, lossless=True)
    data = bytearray(path.read_bytes())
    bits = int.from_bytes(data[21:25], "little") & ~(2**28 - 1)
    data[21:25] = (bits | 9399 | 9399 << 14).to_bytes(4, "little")  # width and height, less one
    path.write_bytes(data)
    allowed = "more than the 1,200 MB that --max-pixels 100000000 allows"
    assert why(path) == f"decoding 9400 x 9400 pixels of WEBP takes about 1,767 MB, {allowed}"


def test_a_tiff_whose_tile_is_larger_than_the_image_is_not_decoded(tmp_path: Path) -> None:
    tags = {256: 300, 257: 300, 258: 8, 259: 5, 262: 1, 277: 1, 322: 32768, 323: 65536, 324: 8, 325: 1000}
    path = tiff(tmp_path / "sparse.tif", tags, 2000)
    allowed = "more than the 2,147 MB that any --max-pixels allows"
    for rules in (ImageRules(), ImageRules(max_pixels=MOST_PIXELS)):
        assert why(path, rules) == f"decoding 300 x 300 pixels of TIFF takes about 2,149 MB, {allowed}"


# Files that are none


@pytest.mark.timeout(120)  # the opening of a FIFO waits for a writer
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
        for path in (tmp_path / "fifo.jpg", tmp_path / "s.jpg", Path("/dev/zero")):
            assert why(path) == "it is not a regular file"
    assert why(tmp_path) == "it is a folder, not a file"
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "real.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "real.jpg")
    sample(tmp_path / "link.jpg")
