"""The decoder's kernels, emulated on a CPU, equal to Pillow in every byte: whole images, and samples.

JPEG_FILES=3000 decodes that many made files instead of a few hundred, and all real ones.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipeline.jpeg.plan import Sampling
from pipeline.samples.preprocess import Preprocessor
from tests.kernels.emulator.driver import EAGER, REVERSE, needs_compiler
from tests.paths import SHARED
from tests.pipeline.jpeg.emulated import EmulatedDecoder
from tests.pipeline.jpeg.encoder import TABLES, Encoder, random_blocks

MADE = int(os.environ.get("JPEG_FILES", "160"))
AT_ONCE = 32
SAMPLINGS = (None, (1, 1), (2, 1), (2, 2), (1, 2), (4, 1))
IMAGES = SHARED / "imagenet" / "sample200"

pytestmark = needs_compiler


def pillow_rgb(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_sample(data: bytes, sampling: Sampling) -> npt.NDArray[np.int8]:
    out = np.empty((3, sampling.size, sampling.size), np.int8)
    Preprocessor(sampling.size, sampling.resize).decode_bytes(data, "made", out)
    return out


def expect_rgb(decoder: EmulatedDecoder, files: Sequence[bytes], lanes: int = 32) -> None:
    for i in range(0, len(files), AT_ONCE):
        done = decoder.rgb(files[i : i + AT_ONCE], lanes)
        assert not done.damage.any(), (i, done.damage)
        for data, output in zip(files[i : i + AT_ONCE], done.outputs, strict=True):
            np.testing.assert_array_equal(output, pillow_rgb(data))


def expect_samples(decoder: EmulatedDecoder, files: Sequence[bytes], lanes: int = 32) -> None:
    done = decoder.samples(files, lanes)
    assert not done.damage.any(), done.damage
    for data, output in zip(files, done.outputs, strict=True):
        np.testing.assert_array_equal(output, pillow_sample(data, decoder.sampling))


def pixels(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Noise, black and white noise, one colour, or waves."""
    kind = rng.integers(4)
    if kind == 0:
        image = rng.integers(0, 256, (height, width, 3))
    elif kind == 1:
        image = rng.integers(0, 2, (height, width, 3)) * 255
    elif kind == 2:
        image = np.broadcast_to(rng.integers(0, 256, 3), (height, width, 3))
    else:
        y, x = np.mgrid[:height, :width]
        image = np.stack([128 + 127 * np.sin(x / 7 + y / 11 + phase) for phase in range(3)], -1)
    return image.astype(np.uint8)


def saved(rng: np.random.Generator, number: int, most_side: int = 130) -> bytes:
    """A file that Pillow writes: every quality in turn, any size, sampling, tables and restart interval."""
    height, width = rng.integers(1, most_side + 1, 2)
    image = Image.fromarray(pixels(rng, height, width))
    grey = rng.random() < 0.15
    options = {} if grey else {"subsampling": int(rng.integers(3))}
    file = io.BytesIO()
    (image.convert("L") if grey else image).save(
        file, "JPEG", quality=1 + number % 100, optimize=bool(rng.integers(2)),
        restart_marker_blocks=int(rng.integers(8)) * int(rng.integers(2)), **options,
    )  # fmt: skip
    return file.getvalue()


def encoded(rng: np.random.Generator, number: int, most_side: int = 130) -> bytes:
    """A file of the tests' own encoder: every sampling and kind of tables in turn."""
    height, width = (int(side) for side in rng.integers(1, most_side + 1, 2))
    quantization = rng.integers(1, 9, 64) if rng.random() < 0.9 else rng.integers(1, 400, 64)
    encoder = Encoder(
        width, height, SAMPLINGS[number % len(SAMPLINGS)], list(TABLES)[number // len(SAMPLINGS) % len(TABLES)],
        int(rng.integers(8)), quantization, bool(rng.integers(2)),
    )  # fmt: skip
    density, most = [(0.0, 1), (0.02, 60), (0.2, 10), (1.0, 3)][int(rng.integers(4))]
    coarsest = int(quantization.max())
    return encoder.encode(random_blocks(rng, density, max(1, min(most, 500 // coarsest)), 1000 // coarsest))


def test_files_that_pillow_writes(folder: Path) -> None:
    rng = np.random.default_rng(1)
    expect_rgb(EmulatedDecoder(folder), [saved(rng, number) for number in range(MADE // 2)])


def test_files_of_every_sampling_and_kind_of_tables(folder: Path) -> None:
    rng = np.random.default_rng(2)
    expect_rgb(EmulatedDecoder(folder), [encoded(rng, number) for number in range(MADE // 2)], 128)


@pytest.mark.parametrize("flags", [0, EAGER, REVERSE, EAGER | REVERSE])
def test_the_ring_filled_in_the_background(folder: Path, flags: int) -> None:
    rng = np.random.default_rng(3)
    files = [saved(rng, 95, 100) for _ in range(4)] + [encoded(rng, number, 60) for number in range(8)]
    expect_rgb(EmulatedDecoder(folder, 800, flags=flags), files)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(32, None), Sampling(96, 113), Sampling(30, 41)])
def test_samples(folder: Path, sampling: Sampling) -> None:
    """Fused and in two passes: reduced, enlarged, much wider than tall, and much taller than wide."""
    rng = np.random.default_rng(4)
    sizes = [(61, 47), (130, 257), (300, 90), (301, 299), (33, 500), (500, 33), (640, 41), (64, 64), (256, 256)]
    files = []
    for number, (height, width) in enumerate(sizes):
        encoder = Encoder(width, height, SAMPLINGS[number % len(SAMPLINGS)], quantization=np.full(64, 4))
        files.append(encoder.encode(random_blocks(rng, 0.1, 12)))
    expect_samples(EmulatedDecoder(folder, sampling=sampling), files)


def test_samples_of_large_images_take_two_passes(folder: Path) -> None:
    rng = np.random.default_rng(5)
    files = [Encoder(4100, 40, (2, 2)).encode(random_blocks(rng, 0.01, 9))]
    files.append(Encoder(900, 1000, (2, 1)).encode(random_blocks(rng, 0.01, 9)))
    expect_samples(EmulatedDecoder(folder, sampling=Sampling(32, 33)), files)


@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs ../shared beside the checkout: real images")
def test_real_files(folder: Path) -> None:
    """Every 25th, or all: whole images by 32 lanes, samples by 128."""
    names = sorted(IMAGES.glob("*.JPEG"))
    files = [name.read_bytes() for name in (names if MADE >= 3000 else names[::25])]
    decoder = EmulatedDecoder(folder)
    for i in range(0, len(files), AT_ONCE):
        expect_rgb(decoder, files[i : i + AT_ONCE])
        expect_samples(decoder, files[i : i + AT_ONCE], 128)
