"""The network's input from a path, bytes, an image or an array: one contract, torchvision's on Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.loader import reference_sample
from int4core.errors import EngineError
from int4core.preprocess import preprocess, short_side


def photograph(width: int = 301, height: int = 257) -> Image.Image:
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("resize", [True, False])
def test_every_kind_of_source_gives_the_reference(tmp_path: Path, resize: bool) -> None:
    image, path = photograph(), tmp_path / "a.png"
    path.write_bytes(encoded(image))
    expected = reference_sample(path, 224, 256 if resize else None)
    for source in (path, str(path), path.read_bytes(), image, np.asarray(image), np.asarray(image)[:, ::-1][:, ::-1]):
        found = preprocess(source, resize=resize)
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [64, 96, 224])
def test_the_short_side_follows_the_size(size: int, tmp_path: Path) -> None:
    assert (short_side(224), short_side(64), short_side(96)) == (256, 73, 110)
    image, path = photograph(280, 333), tmp_path / "a.png"
    path.write_bytes(encoded(image))
    np.testing.assert_array_equal(preprocess(image, size), reference_sample(path, size, short_side(size)))


def test_grey_and_alpha_become_rgb() -> None:
    image = photograph()
    grey = image.convert("L")
    np.testing.assert_array_equal(preprocess(np.asarray(grey)), preprocess(grey.convert("RGB")))
    np.testing.assert_array_equal(preprocess(image.convert("RGBA")), preprocess(image))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: b"", "^bytes: no image of a format that is read: JPEG, PNG"),
        (lambda _: b"%!PS-Adobe-3.0 EPSF-3.0", "no image of a format that is read"),
        (lambda folder: folder / "none.jpg", "none.jpg: No such file"),
        (lambda _: encoded(photograph(), "JPEG")[:2000], "^bytes: damaged or cut short"),
        (lambda _: b"P6 4x 4 255 ", "^bytes: cannot be read: invalid literal"),
        (lambda _: "a\0b", r"^a\\x00b: cannot be read: embedded null"),
        (lambda _: np.zeros((4, 4, 4), np.uint8), r"^array: uint8 \(4, 4, 4\), and uint8 \(H, W, 3\) or \(H, W\)"),
        (lambda _: np.zeros((4, 4, 3), np.float32), "^array: float32"),
        (lambda _: np.zeros((0, 4, 3), np.uint8), "^array: uint8"),
        (lambda _: Image.new("I", (300, 300)), "^image: grey of more than 8 bits"),
        (lambda _: Image.new("RGB", (1, 100_000)), "too thin"),
    ],
)
def test_what_is_no_image_says_why(make: Callable[[Path], Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=why):
        preprocess(make(tmp_path))


@pytest.mark.parametrize("size", [0, -1])
def test_a_sample_without_pixels_is_no_damaged_image(size: int) -> None:
    with pytest.raises(EngineError, match=rf"^size={size}: at least one pixel is needed"):
        preprocess(photograph(), size)


def test_an_image_that_is_too_small_without_resizing() -> None:
    with pytest.raises(EngineError, match=r"^image: 223 x 300 pixels, without resizing 224 x 224 are due"):
        preprocess(photograph(223, 300), resize=False)
