"""Samples by the compiled way equal those by Pillow, size by size."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from int4core.layers import Int8Array
from int4core.preprocess import resized_size, square, write_sample
from tests.paths import SHARED, needs_shared

pytest.importorskip("numba", reason="Numba is not installed: pip install numba")

from int4core.resample import write_resized
from pipeline.samples.preprocess import Preprocessor


def noise(width: int, height: int, seed: int = 1) -> Image.Image:
    """Values of full range, half of them 0 or 255: sums come to both ends."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(-128, 384, (height, width, 3)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels)


def assert_same(image: Image.Image, size: int, short_side: int) -> None:
    due: Int8Array = np.empty((3, size, size), np.int8)
    write_sample(square(image, size, short_side), due)
    out = np.full_like(due, 99)
    write_resized(image, size, short_side, out)
    np.testing.assert_array_equal(out, due)


@pytest.mark.parametrize(
    ("width", "height"),
    [
        (256, 256), (224, 224), (255, 256), (256, 255), (257, 256), (500, 375), (375, 500), (640, 480),
        (400, 267), (320, 240), (267, 400), (500, 333), (333, 500), (1, 1), (2, 3), (3, 2), (7, 400),
        (400, 7), (1200, 300), (300, 1200), (256, 2000), (2000, 256), (1024, 1024), (511, 513), (4000, 3000),
    ],
)  # fmt: skip
def test_every_shape(width: int, height: int) -> None:
    assert_same(noise(width, height), 224, 256)


def test_random_sizes() -> None:
    rng = random.Random(11)
    for seed in range(150):
        width, height = int(2 ** rng.uniform(3, 9.6)), int(2 ** rng.uniform(3, 9.6))
        assert_same(noise(width, height, seed), 224, 256)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 70), more=st.integers(0, 30))
def test_other_crops(width: int, height: int, size: int, more: int) -> None:
    assert_same(noise(width, height, width + 200 * height), size, size + more)


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_one_colour_stays_what_it_is(value: int) -> None:
    """However the weights are rounded: they add up to a little less or more than one."""
    for width, height in ((300, 301), (1999, 1503), (20_000, 257)):
        assert resized_size(width, height, 256) != (width, height)
        assert_same(Image.new("RGB", (width, height), (value, 255 - value, value)), 224, 256)


@needs_shared
def test_real_images() -> None:
    by_pillow, compiled = Preprocessor(), Preprocessor(compiled=True)
    assert (by_pillow.compiled, compiled.compiled) == (False, True)
    due, out = np.empty((2, 3, 224, 224), np.int8)
    for path in sorted((SHARED / "imagenet" / "sample200").glob("*.JPEG"))[:60]:
        by_pillow.decode_into(path, due)
        compiled.decode_into(path, out)
        np.testing.assert_array_equal(out, due, err_msg=path.name)


def test_images_that_are_sized_are_only_cropped(tmp_path: Path) -> None:
    path = tmp_path / "sized.png"
    noise(230, 224).save(path)
    compiled = Preprocessor(resize=None, compiled=True)
    assert not compiled.compiled
    due, out = np.empty((2, 3, 224, 224), np.int8)
    Preprocessor(resize=None).decode_into(path, due)
    compiled.decode_into(path, out)
    np.testing.assert_array_equal(out, due)
