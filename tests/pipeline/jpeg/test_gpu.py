"""The decoder on a GPU: thousands of files, shuffled, outputs poisoned; and mutated ones.

JPEG_FUZZ=20000 mutates that many files. Under compute-sanitizer: `-k mutated` with JPEG_FUZZ=2000.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ImageError
from pipeline.jpeg import Decoder
from pipeline.jpeg.plan import DAMAGE, Sampling
from tests.paths import SHARED
from tests.pipeline.jpeg.test_damage import made, mutated
from tests.pipeline.jpeg.test_kernels import encoded, pillow_rgb, pillow_sample, saved

MUTATED = int(os.environ.get("JPEG_FUZZ", "2000"))
MADE = 2000
REPLICATED = 4096
IMAGES = SHARED / "imagenet" / "sample200"

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    rng = np.random.default_rng(0)
    real = [path.read_bytes() for path in sorted(IMAGES.glob("*.JPEG"))]
    return real + [(saved if number % 2 else encoded)(rng, number) for number in range(MADE)]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(30, 41)])
def test_samples(cupy: Any, files: list[bytes], sampling: Sampling) -> None:
    """Many more than are under way at a time, and a few, by many lanes each."""
    decoder = Decoder(0, 1024, size=sampling.size, resize=sampling.resize)
    expected = cupy.asarray(np.stack([pillow_sample(data, sampling) for data in files]))
    rng = np.random.default_rng(1)
    for count in (REPLICATED, 300):
        numbers = rng.permutation(np.resize(np.arange(len(files)), count))
        out = cupy.full((count, *expected.shape[1:]), 0x55, np.int8)
        errors = decoder.samples([files[number] for number in numbers], out)
        assert errors == [None] * count
        assert set(decoder.reasons) == {None}
        for begin in range(0, count, 256):
            chosen = numbers[begin : begin + 256]
            assert bool((out[begin : begin + 256] == expected[chosen]).all())


def test_pixels(cupy: Any, files: list[bytes]) -> None:
    images = Decoder(0, 256).rgb(files)
    for data, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(image.get(), pillow_rgb(data))


def test_mutated_files_are_as_pillow_has_them(cupy: Any) -> None:
    rng = np.random.default_rng(int(os.environ.get("JPEG_SEED", "3")))
    bases = made(rng, 400)
    decoder = Decoder(0, 1024)
    counts = {"GPU": 0, "damage": 0, "refused": 0}
    for begin in range(0, MUTATED, 1000):
        files = [mutated(rng, bases[number % len(bases)]) for number in range(begin, min(begin + 1000, MUTATED))]
        images = decoder.rgb(files)
        for data, image, reason in zip(files, images, decoder.reasons, strict=True):
            counts["GPU" if reason is None else "damage" if reason in DAMAGE.values() else "refused"] += 1
            if reason is None:
                assert not isinstance(image, ImageError)
                np.testing.assert_array_equal(image.get(), pillow_rgb(data), data.hex())
    print(counts)
    assert min(counts.values()) > MUTATED // 40
